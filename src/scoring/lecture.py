"""The numbers as the lecture computes them, bit for bit, from the same predictions: to be compared
with its slides, not to be believed.

Each validation fold is a hold-out of its own, its images in the order of their classes, in batches
of eight; within a class they keep their order, as in the lecture, which does not shuffle
validation. A pixel is lesion where its raw logit exceeds 0.5, at the network's resolution. The
pixels of a batch are pooled; each number is the mean of background and lesion, then the mean over
batches, and here also over folds: the lecture has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

import numpy as np

from src.data.predictions import Predictions
from src.parts import metrics

BATCH = 8
# sigmoid(0.5), the probability of a logit of 0.5. Predictions hold float16, which rounds: a pixel
# of a probability from 0.62231 to 0.62246 (a logit from 0.4994 to 0.5) counts as lesion, where the
# lecture has background.
THRESHOLD = np.float32(1 / (1 + np.exp(-0.5)))


def by_fold(
    predictions: Predictions,
    truths: Iterable[np.ndarray] | None,
    labels: np.ndarray,
    folds: np.ndarray,
) -> dict[int, dict[str, float]]:
    """Predictions of N images in the index's order, their true masks (S,S) of two values, stretched
    to the predictions' size (images.resize with is_mask=True), labels (N) int, folds (N) int -> for
    each fold lecture_iou, lecture_f1, lecture_dice, lecture_precision, lecture_recall of masks,
    lecture_accuracy, lecture_macro_f1 of labels; those of an absent answer are left out.

    truths may be None where there are no predicted masks. A class without pixels, neither true nor
    predicted, counts 1; in lecture_dice, otherwise the same as lecture_f1, it counts 0. Means are
    correctly rounded (fmean), so that no order of summation changes a bit.
    """
    counts = None
    if predictions.mask is not None:
        pairs = zip(predictions.mask, truths, strict=True)
        counts = np.array(
            [metrics.counts(prob.astype(np.float32) > THRESHOLD, true > 0) for prob, true in pairs]
        )
    found: dict[int, dict[str, float]] = {}
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        rows = rows[np.argsort(labels[rows], kind="stable")]
        # the last batch may be smaller, and weighs as much as the others
        batches = np.split(rows, range(BATCH, len(rows), BATCH))
        found[int(fold)] = mean([_of_batch(predictions, counts, labels, b) for b in batches])
    return found


def mean(each: Iterable[dict[str, float]]) -> dict[str, float]:
    """Of several times the same numbers: over batches, or over folds."""
    each = list(each)
    return {name: fmean(numbers[name] for numbers in each) for name in each[0]}


def _of_batch(
    predictions: Predictions, counts: np.ndarray | None, labels: np.ndarray, batch: np.ndarray
) -> dict[str, float]:
    found = {} if counts is None else of_pixels(*counts[batch].sum(0).tolist())
    if predictions.label is not None:
        truth, probs = labels[batch], predictions.label[batch]
        decided = probs.argmax(1)
        found["lecture_accuracy"] = metrics.accuracy(truth, decided, probs)
        found["lecture_macro_f1"] = metrics.macro_f1(truth, decided, probs)
    return found


def of_pixels(tp: int, fp: int, fn: int, tn: int) -> dict[str, float]:
    """The counts of one batch's pixels, pooled -> its numbers, each the mean of lesion and
    background: what is a false positive in one is a false negative in the other."""

    def mean_ratio(parts: tuple[int, int], wholes: tuple[int, int], empty: float = 1.0) -> float:
        return fmean(p / w if w else empty for p, w in zip(parts, wholes))

    right, wrong = (tp, tn), fp + fn
    doubled, sums = (2 * tp, 2 * tn), (2 * tp + wrong, 2 * tn + wrong)
    return {
        "lecture_iou": mean_ratio(right, (tp + wrong, tn + wrong)),
        "lecture_f1": mean_ratio(doubled, sums),
        "lecture_dice": mean_ratio(doubled, sums, empty=0.0),
        "lecture_precision": mean_ratio(right, (tp + fp, tn + fn)),
        "lecture_recall": mean_ratio(right, (tp + fn, tn + fp)),
    }
