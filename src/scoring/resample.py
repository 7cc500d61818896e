"""Parts and resamples of images that keep near-duplicates together: two pictures of one lesion are not two witnesses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from src.core.console import InputError

PARTS = 5  # with a single validation fold: how many parts of it take turns


def cross_folds(folds: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[np.ndarray, bool]:
    """folds (N) of validated images -> what leave-one-fold-out leaves out (N), and whether these are the folds themselves.

    With one fold alone (holdout), its duplicate groups are dealt into PARTS parts, in random order, each group to the part that is smallest so far.
    """
    if len(np.unique(folds)) > 1:
        return folds, True
    names, sizes = np.unique(groups, return_counts=True)
    if len(names) < 2:
        raise InputError(
            "the validation images are all near-duplicates of one another",
            "folds.csv",
            "One picture cannot be cross-validated: validate on more",
            code="too_few_groups",
        )
    filled, part_of = np.zeros(min(PARTS, len(names)), dtype=int), {}
    for i in np.random.default_rng(seed).permutation(len(names)):
        part = int(filled.argmin())
        part_of[names[i]] = part
        filled[part] += sizes[i]
    return np.array([part_of[g] for g in groups]), False


def bootstrap(groups: np.ndarray, times: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Rows of `times` resamples: as many groups as there are, drawn with replacement, each with all its images (cluster bootstrap, Field & Welsh 2007)."""
    _, number = np.unique(groups, return_inverse=True)
    order = np.argsort(number, kind="stable")
    sizes = np.bincount(number)
    starts = np.cumsum(sizes) - sizes
    generator = np.random.default_rng(seed)
    for _ in range(times):
        drawn = generator.integers(0, len(sizes), len(sizes))
        many = sizes[drawn]
        within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        yield order[np.repeat(starts[drawn], many) + within]


def interval(samples: np.ndarray) -> list[float]:
    """The middle 95 % of the samples."""
    return [float(v) for v in np.percentile(samples, [2.5, 97.5])]
