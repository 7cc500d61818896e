"""The one place where a prediction becomes a number: per image, at the image's original size, never averaged over batches.

MASK_METRICS take the pixel counts of N images and give N values; SURFACE_METRICS take the distances between the outlines of one image's two masks and give
one value, in pixels; LABEL_METRICS take N labels and give one value. Add one: a function and a line. Any but a distance can be named in `score`.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from src.core.console import InputError, nearest, say

Array = np.ndarray

# --------------------------------------------------------------------------- masks: counts tp, fp, fn, tn (N) of pixels -> (N) values from 0 to 1


def _share(part: np.ndarray, whole: np.ndarray, otherwise: np.ndarray | float = 1.0) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), otherwise)


def dice(tp, fp, fn, tn):
    """2·TP / (2·TP + FP + FN) (Dice 1945), which is the F1 of pixels. No lesion, none predicted: 1."""
    return _share(2 * tp, 2 * tp + fp + fn)


def iou(tp, fp, fn, tn):
    """TP / (TP + FP + FN) (Jaccard 1912). No lesion, none predicted: 1."""
    return _share(tp, tp + fp + fn)


def precision(tp, fp, fn, tn):
    """TP / (TP + FP). Nothing predicted: 1 where there is no lesion, 0 where there is one."""
    return _share(tp, tp + fp, fn == 0)


def recall(tp, fp, fn, tn):
    """TP / (TP + FN). No lesion: 1 where nothing is predicted, 0 where something is (precision with prediction and truth exchanged)."""
    return _share(tp, tp + fn, fp == 0)


def specificity(tp, fp, fn, tn):
    """TN / (TN + FP). Lesion all over the image: 1."""
    return _share(tn, tn + fp)


def pixel_accuracy(tp, fp, fn, tn):
    """(TP + TN) / all pixels. High wherever lesions are small, whatever was predicted: read it beside Dice."""
    return (tp + tn) / (tp + fp + fn + tn)


def volume_similarity(tp, fp, fn, tn):
    """1 − |FN − FP| / (2·TP + FP + FN) (Taha & Hanbury 2015, "Metrics for evaluating 3D medical image segmentation"): whether the areas are alike,
    wherever they lie. No lesion, none predicted: 1."""
    return 1 - _share(abs(fn - fp), 2 * tp + fp + fn, 0.0)


MASK_METRICS = {
    "dice": dice,
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "specificity": specificity,
    "pixel_accuracy": pixel_accuracy,
    "volume_similarity": volume_similarity,
}

# -------- outlines: distances there (P) from the predicted one's pixels to the true one, back (Q) from the true one's to the predicted -> pixels, 0 is best


def hausdorff(there, back):
    """The farthest that one outline is from the other (Huttenlocher et al. 1993)."""
    return float(max(there.max(), back.max()))


def hd95(there, back):
    """The larger of the two 95th percentiles, between ranks linearly, as in MONAI: hausdorff without the few worst pixels."""
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def assd(there, back):
    """Average symmetric surface distance: the mean over the pixels of both outlines (Heimann et al. 2009)."""
    return float(np.concatenate([there, back]).mean())


SURFACE_METRICS = {"hausdorff": hausdorff, "hd95": hd95, "assd": assd}


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels (H,W) bool of a mask that have background, or the outside of the image, left, right, above or below."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    return mask & (
        cv2.erode(
            np.ascontiguousarray(mask).view(np.uint8),
            cross,
            borderType=cv2.BORDER_CONSTANT,
            borderValue=0,
        )
        == 0
    )


def outline_distances(pred: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two masks (H,W) bool -> float64 distances there (P) and back (Q), in pixels, between centres of pixels. Both masks empty: a single 0 each way.
    One empty: a single diagonal of the image, longer than any distance in it."""
    from scipy.spatial import KDTree  # a third of a second, which infer need not spend

    if not pred.any() or not true.any():
        single = np.full(1, np.hypot(*true.shape) if pred.any() or true.any() else 0.0)
        return single, single
    # A tree of whole numbers, whose squares are summed and compared exactly. cv2.distanceTransform
    # gives another last digit from run to run: its square root goes by where in memory it works.
    points = [np.argwhere(outline(mask)) for mask in (pred, true)]
    there = KDTree(points[1]).query(points[0])[0]
    back = KDTree(points[0]).query(points[1])[0]
    return there, back


# ------------------------------------------------------ labels: truth (N) int, decided (N) int, probabilities (N,C) -> one value from 0 to 1


def accuracy(truth, decided, probabilities):
    return float((truth == decided).mean())


def balanced_accuracy(truth, decided, probabilities):
    """Mean recall of the classes that occur in the truth (Brodersen et al. 2010)."""
    hit, _, n = _class_counts(truth, decided, probabilities)
    return float((hit[n > 0] / n[n > 0]).mean())


def macro_precision(truth, decided, probabilities):
    """Mean over the classes that occur in the truth or were decided; a class never decided: 0."""
    hit, said, n = _class_counts(truth, decided, probabilities)
    return float(_share(hit, said, 0.0)[n + said > 0].mean())


def macro_recall(truth, decided, probabilities):
    """Mean over the classes that occur in the truth or were decided; a class that does not occur: 0."""
    hit, said, n = _class_counts(truth, decided, probabilities)
    return float(_share(hit, n, 0.0)[n + said > 0].mean())


def macro_f1(truth, decided, probabilities):
    """Mean of 2·TP / (2·TP + FP + FN) over the classes that occur in the truth or were decided."""
    hit, said, n = _class_counts(truth, decided, probabilities)
    return float((2 * hit / np.maximum(n + said, 1))[n + said > 0].mean())


def auc(truth, decided, probabilities):
    """Area under the ROC curve, one class against the rest, mean over classes: the Mann-Whitney U of ranks, ties sharing theirs (Hanley & McNeil 1982).
    Classes that all or no images have are left out; with one class alone: 0.5. Uses the probabilities, whatever was decided."""
    areas = []
    for c in range(probabilities.shape[1]):
        is_class = truth == c
        n, rest = int(is_class.sum()), int((~is_class).sum())
        if n and rest:
            _, where, many = np.unique(probabilities[:, c], return_inverse=True, return_counts=True)
            ranks = (np.cumsum(many) - (many - 1) / 2)[where]
            areas.append((ranks[is_class].sum() - n * (n + 1) / 2) / (n * rest))
    return float(np.mean(areas)) if areas else 0.5


LABEL_METRICS = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_precision": macro_precision,
    "macro_recall": macro_recall,
    "macro_f1": macro_f1,
    "auc": auc,
}


def _class_counts(truth, decided, probabilities) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each class: how often it was decided rightly, decided, true."""
    c = probabilities.shape[1]
    return (
        np.bincount(truth[truth == decided], minlength=c),
        np.bincount(decided, minlength=c),
        np.bincount(truth, minlength=c),
    )


def confusion(truth: np.ndarray, decided: np.ndarray, classes: int) -> np.ndarray:
    """(C,C) counts: row = truth, column = decided."""
    return np.bincount(truth * classes + decided, minlength=classes * classes).reshape(
        classes, classes
    )


# ------------------------------------------------------------------------------------------------------------------- from masks to the score


def counts(pred_masks: list[np.ndarray], true_masks: list[np.ndarray]) -> np.ndarray:
    """Pairs of masks (H,W) bool, each pair of its own size -> (4,N) int64: tp, fp, fn, tn."""
    found = np.zeros((4, len(pred_masks)), dtype=np.int64)
    for i, (pred, true) in enumerate(zip(pred_masks, true_masks, strict=True)):
        if pred.shape != true.shape:
            raise ValueError(f"masks {i} differ in size: {pred.shape} and {true.shape}")
        found[:, i] = from_areas(
            np.count_nonzero(pred & true), np.count_nonzero(pred), np.count_nonzero(true), true.size
        )
    return found


def from_areas(both, pred, true, pixels) -> np.ndarray:
    """Areas of the overlap, the prediction, the truth and the image -> tp, fp, fn, tn."""
    return np.stack([both, pred - both, true - both, pixels - pred - true + both])


def per_image(pixel_counts: np.ndarray) -> dict[str, np.ndarray]:
    """(4,N) counts -> every mask metric, (N) values each."""
    return {name: metric(*pixel_counts) for name, metric in MASK_METRICS.items()}


def values(
    images: dict[str, Array] | None,
    truth: Array,
    decided: Array | None,
    probabilities: Array | None,
    rows=slice(None),
) -> dict[str, float]:
    """Every metric over the given rows (a slice, indices or a bool mask): means of the per-image values, and the labels' metrics.
    None: an answer that is absent."""
    found = {name: float(each[rows].mean()) for name, each in (images or {}).items()}
    if decided is not None:
        found |= {
            name: metric(truth[rows], decided[rows], probabilities[rows])
            for name, metric in LABEL_METRICS.items()
        }
    return found


def score(weights: dict[str, float], found: dict[str, float]) -> float:
    """The weighted sum that competition.yaml names. Where masks or labels are absent, the rest's weights are scaled up to the same sum, and it says so once."""
    check_score(weights)
    present = {name: w for name, w in weights.items() if name in found}
    if not present:
        todo = f"They have {', '.join(found)}"
        raise InputError(
            f"the score names {', '.join(weights)}, and these predictions have neither",
            "competition.yaml, score",
            todo,
            code="no_such_answer",
        )
    if len(present) < len(weights):
        _say_once(
            f"no {', '.join(n for n in weights if n not in found)} in these predictions: the score is {' and '.join(present)} alone"
        )
    return (
        sum(w * found[name] for name, w in present.items())
        * sum(weights.values())
        / sum(present.values())
    )


def check_score(weights: dict[str, float]) -> None:
    """Raises InputError for a metric that is not known, or weights that are no weights."""
    for name, weight in weights.items():
        if name in SURFACE_METRICS:
            todo = "It is in metrics.json and report.html; score by dice or iou"
            raise InputError(
                f"{name} is a distance in pixels, 0 is best: no score",
                "competition.yaml, score",
                todo,
                code="invalid_value",
            )
        if name not in MASK_METRICS and name not in LABEL_METRICS:
            raise InputError(
                f"unknown metric '{name}'",
                "competition.yaml, score",
                nearest(name, [*MASK_METRICS, *LABEL_METRICS]),
                code="unknown_part",
            )
        if not weight > 0:
            raise InputError(
                f"the weight of {name} is {weight}",
                "competition.yaml, score",
                "Weights are over 0",
                code="invalid_value",
            )
    if not weights:
        raise InputError(
            "no metric named",
            "competition.yaml, score",
            "For example score: {dice: 0.5, macro_f1: 0.5}",
            code="invalid_value",
        )


@functools.cache
def _say_once(text: str) -> None:
    say(text)
