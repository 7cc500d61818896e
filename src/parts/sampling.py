"""Which images an epoch draws. To add a way: a function in SAMPLINGS, then train.sampling names it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from src.core.console import InputError, nearest
from src.core.settings import Data, Train

FROM, TO = 0.9, 0.6  # annealed: the share of lesions in the first epoch and in the last


def uniform(labels: np.ndarray, lesion: np.ndarray, progress: float) -> np.ndarray:
    """Every image once."""
    return np.ones(len(labels))


def balanced(labels: np.ndarray, lesion: np.ndarray, progress: float) -> np.ndarray:
    """Every class equally often."""
    return 1 / np.bincount(labels)[labels]


def annealed(labels: np.ndarray, lesion: np.ndarray, progress: float) -> np.ndarray:
    """Mostly lesions at first, so that masks are learned, and fewer and fewer (Pneumothorax segmentation, 1st place, Kaggle 2019)."""
    share = FROM + (TO - FROM) * progress
    return np.where(lesion, share / max(1, lesion.sum()), (1 - share) / max(1, (~lesion).sum()))


# labels (N) int, whether each image has a lesion (N) bool, the share of the training that is over -> weights (N): how often each is drawn
SAMPLINGS = {"uniform": uniform, "balanced": balanced, "annealed": annealed}


def draw(
    settings: Train, labels: np.ndarray, data: Data
) -> Callable[[np.random.Generator, int], np.ndarray]:
    """(generator, epoch) -> the N images of that epoch (N), in random order: each image, and each class, as often as its weight says, rounded
    up or down at random."""
    lesion = (
        labels != data.classes.index(data.empty_class)
        if data.empty_class
        else np.ones(len(labels), bool)
    )

    def of_epoch(random: np.random.Generator, epoch: int) -> np.ndarray:
        order, weights = (
            random.permutation(len(labels)),
            SAMPLINGS[settings.sampling](labels, lesion, epoch / max(1, settings.epochs - 1)),
        )
        if np.ptp(weights) == 0:
            return order
        order = order[
            np.argsort(labels[order], kind="stable")
        ]  # class by class, so that a class as a whole too is drawn as often as its weights say
        weights = weights[order]
        ends = (
            np.cumsum(weights) / weights.sum() * len(labels)
        )  # systematic sampling: no image more than once more often than its weight says
        drawn = order[
            np.searchsorted(ends, np.arange(len(labels)) + random.uniform(), side="right").clip(
                max=len(labels) - 1
            )
        ]
        return random.permutation(drawn)

    return of_epoch


def check(settings: Train) -> None:
    if settings.sampling not in SAMPLINGS:
        raise InputError(
            f"unknown sampling '{settings.sampling}'",
            "train.sampling",
            nearest(settings.sampling, SAMPLINGS),
            code="unknown_part",
        )
