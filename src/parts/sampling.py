"""Which images an epoch draws. To add a sampling: a function in SAMPLINGS, then train.sampling
names it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from src.config.names import check_known
from src.core.settings import Data, Train

# annealed: the share of lesions in the first epoch and in the last
FIRST_SHARE, LAST_SHARE = 0.9, 0.6


def uniform(labels: np.ndarray, lesion: np.ndarray, progress: float) -> np.ndarray:
    """Every image once."""
    return np.ones(len(labels))


def balanced(labels: np.ndarray, lesion: np.ndarray, progress: float) -> np.ndarray:
    """Every class equally often."""
    return 1 / np.bincount(labels)[labels]


def annealed(labels: np.ndarray, lesion: np.ndarray, progress: float) -> np.ndarray:
    """Mostly lesions at first, so that masks are learned, and fewer and fewer (Pneumothorax
    segmentation, 1st place, Kaggle 2019)."""
    share = FIRST_SHARE + (LAST_SHARE - FIRST_SHARE) * progress
    return np.where(lesion, share / max(1, lesion.sum()), (1 - share) / max(1, (~lesion).sum()))


# (labels (N) int, whether each image has a lesion (N) bool, the share of the training that is over)
# -> weights (N): how often each is drawn
SAMPLINGS = {"uniform": uniform, "balanced": balanced, "annealed": annealed}


def draw(
    settings: Train, labels: np.ndarray, data: Data
) -> Callable[[np.random.Generator, int], np.ndarray]:
    """(generator, epoch) -> the N images of that epoch (N), in random order: each image, and each
    class, as often as its weight says, rounded up or down at random."""
    if data.empty_class:
        lesion = labels != data.classes.index(data.empty_class)
    else:
        lesion = np.ones(len(labels), bool)

    def of_epoch(random: np.random.Generator, epoch: int) -> np.ndarray:
        n = len(labels)
        order = random.permutation(n)
        progress = epoch / max(1, settings.epochs - 1)
        weights = SAMPLINGS[settings.sampling](labels, lesion, progress)
        if np.ptp(weights) == 0:
            return order
        # class by class, so that a class as a whole too is drawn as often as its weights say
        order = order[np.argsort(labels[order], kind="stable")]
        # systematic sampling: no image is drawn more than once more often than its weight says
        ends = np.cumsum(weights[order]) / weights.sum() * n
        marks = np.arange(n) + random.uniform()
        return random.permutation(order[np.searchsorted(ends, marks, side="right").clip(max=n - 1)])

    return of_epoch


def check(settings: Train) -> None:
    check_known(settings.sampling, SAMPLINGS, "sampling", "train.sampling")
