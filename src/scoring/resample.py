"""Folds and resamples of images that keep near-duplicates together: two pictures of one lesion are
not two independent observations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from src.core.console import InputError

SUBFOLDS = 5  # with a single validation fold: how many it is divided into for cross-fitting


def cross_folds(folds: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, bool]:
    """folds (N) of validated images -> what leave-one-fold-out leaves out (N), and whether these
    are the folds themselves.

    A single fold (holdout) is divided into SUBFOLDS: its duplicate groups, in random order, each go
    to the subfold that is smallest so far. Raises InputError where all images are one group.
    """
    if len(np.unique(folds)) > 1:
        return folds, True
    names, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InputError(
            "the validation images are all near-duplicates of one another",
            "folds.csv",
            "One picture cannot be cross-validated: validate on more",
            code="too_few_groups",
        )
    filled = np.zeros(min(SUBFOLDS, len(names)), dtype=int)
    subfold_of = np.zeros(len(names), dtype=int)
    for i in np.random.default_rng(0).permutation(len(names)):
        subfold_of[i] = filled.argmin()
        filled[subfold_of[i]] += sizes[i]
    return subfold_of[group], False


def bootstrap(groups: np.ndarray, times: int) -> Iterator[np.ndarray]:
    """Rows of `times` resamples: as many groups as there are, drawn with replacement, each with all
    its images (cluster bootstrap, Field & Welsh 2007)."""
    _, number = np.unique(groups, return_inverse=True)
    order = np.argsort(number, kind="stable")
    sizes = np.bincount(number)
    starts = np.cumsum(sizes) - sizes
    generator = np.random.default_rng(0)
    for _ in range(times):
        drawn = generator.integers(0, len(sizes), len(sizes))
        repeats = sizes[drawn]
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        yield order[np.repeat(starts[drawn], repeats) + within]


def interval(samples: np.ndarray) -> list[float]:
    """The middle 95 % of the samples."""
    return np.percentile(samples, [2.5, 97.5]).tolist()
