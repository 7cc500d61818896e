"""The numbers as the lecture computes them, bit for bit, from the same predictions: to be compared with its slides, not to be believed.

Each validation fold is a hold-out of its own, its images in the order of their classes, in batches of eight; within a class they keep their order, as in the
lecture, which does not shuffle validation. A pixel is lesion where its raw logit exceeds 0.5, at the network's resolution. The pixels of a batch are pooled;
each number is the mean of background and lesion, then the mean over batches. Here also over folds: the lecture has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import fmean

import numpy as np

from src.data.predictions import Predictions
from src.parts import metrics

BATCH = 8
# sigmoid(0.5), the probability of a logit of 0.5. Predictions hold float16, which rounds: a pixel of a probability from 0.62231 to 0.62246 (a logit from
# 0.4994 to 0.5) counts as lesion, where the lecture has background.
THRESHOLD = np.float32(1 / (1 + np.exp(-0.5)))


def numbers(
    predictions: Predictions,
    truths: Iterable[np.ndarray] | None,
    labels: np.ndarray,
    folds: np.ndarray,
) -> dict[str, float]:
    """Predictions of N images in the index's order, their true masks (S,S) of two values, stretched to the predictions' size (images.resize with
    is_mask=True), labels (N) int, folds (N) int -> lecture_iou, lecture_f1, lecture_dice, lecture_precision, lecture_recall of masks,
    lecture_accuracy, lecture_macro_f1 of labels; those of an absent answer are left out. truths may be None where there are no predicted masks.

    A class without pixels, neither true nor predicted, counts 1; in lecture_dice, otherwise the same as lecture_f1, it counts 0.
    Means are correctly rounded (fmean), so that no order of summation changes a bit.
    """
    return mean(by_fold(predictions, truths, labels, folds))


def mean(folds: dict[int, dict[str, float]]) -> dict[str, float]:
    """Over folds, each its own hold-out."""
    return {
        name: fmean(each[name] for each in folds.values()) for name in next(iter(folds.values()))
    }


def by_fold(
    predictions: Predictions,
    truths: Iterable[np.ndarray] | None,
    labels: np.ndarray,
    folds: np.ndarray,
) -> dict[int, dict[str, float]]:
    """The same of each fold by itself."""
    found: dict[int, dict[str, float]] = {}
    pixel_counts = None
    if predictions.mask is not None:
        said = (prob.astype(np.float32) > THRESHOLD for prob in predictions.mask)
        pixel_counts = np.concatenate(
            [metrics.counts([pred], [true > 0]) for pred, true in zip(said, truths, strict=True)],
            axis=1,
        )
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        each: dict[str, list[float]] = {}
        for batch in batches(rows[np.argsort(labels[rows], kind="stable")]):
            of_batch = (
                {} if pixel_counts is None else of_pixels(*pixel_counts[:, batch].sum(1).tolist())
            )
            if predictions.label is not None:
                truth, probs = labels[batch], predictions.label[batch]
                decided = probs.argmax(1)
                of_batch |= {
                    "lecture_accuracy": metrics.accuracy(truth, decided, probs),
                    "lecture_macro_f1": metrics.macro_f1(truth, decided, probs),
                }
            for name, value in of_batch.items():
                each.setdefault(name, []).append(value)
        found[int(fold)] = {name: fmean(values) for name, values in each.items()}
    return found


def batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Eight at a time; the last batch may be smaller, and weighs as much as the others."""
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def of_pixels(tp: int, fp: int, fn: int, tn: int) -> dict[str, float]:
    """The counts of one batch's pixels, pooled -> its numbers, each the mean of lesion and background."""

    def both(part: tuple[int, int], whole: tuple[int, int], empty: float = 1.0) -> float:
        return fmean(p / w if w else empty for p, w in zip(part, whole))

    hit, wrong = (
        (tp, tn),
        fp + fn,
    )  # of lesion and background: what is false in one is false in the other
    twice, sums = (2 * tp, 2 * tn), (2 * tp + wrong, 2 * tn + wrong)
    return {
        "lecture_iou": both(hit, (tp + wrong, tn + wrong)),
        "lecture_f1": both(twice, sums),
        "lecture_dice": both(twice, sums, empty=0.0),
        "lecture_precision": both(hit, (tp + fp, tn + fn)),
        "lecture_recall": both(hit, (tp + fn, tn + fp)),
    }
