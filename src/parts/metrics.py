"""The one place where a prediction becomes a number: per image, at the image's original size, never
averaged over batches.

MASK_METRICS take the pixel counts of N images and give N values; SURFACE_METRICS take the distances
between the outlines of one image's two masks and give one value, in pixels; LABEL_METRICS take N
labels and give one value. To add one, write a function and a line in its dict. Any but a distance
can be named in `score`.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from src.core.console import InputError, nearest, say

# --------------------- masks: counts tp, fp, fn, tn (N) of pixels -> (N) values from 0 to 1


def _ratio(part: np.ndarray, whole: np.ndarray, otherwise: np.ndarray | float = 1.0) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), otherwise)


def dice(tp, fp, fn, tn):
    """2·TP / (2·TP + FP + FN) (Dice 1945), the F1 of pixels. No lesion, none predicted: 1."""
    return _ratio(2 * tp, 2 * tp + fp + fn)


def iou(tp, fp, fn, tn):
    """TP / (TP + FP + FN) (Jaccard 1912). No lesion, none predicted: 1."""
    return _ratio(tp, tp + fp + fn)


def precision(tp, fp, fn, tn):
    """TP / (TP + FP). Nothing predicted: 1 where there is no lesion, 0 where there is one."""
    return _ratio(tp, tp + fp, fn == 0)


def recall(tp, fp, fn, tn):
    """TP / (TP + FN). No lesion: 1 where nothing is predicted, 0 where something is (precision with
    prediction and truth exchanged)."""
    return _ratio(tp, tp + fn, fp == 0)


def specificity(tp, fp, fn, tn):
    """TN / (TN + FP). Lesion all over the image: 1."""
    return _ratio(tn, tn + fp)


def pixel_accuracy(tp, fp, fn, tn):
    """(TP + TN) / all pixels. High wherever lesions are small, whatever was predicted: read it
    beside Dice."""
    return (tp + tn) / (tp + fp + fn + tn)


def volume_similarity(tp, fp, fn, tn):
    """1 − |FN − FP| / (2·TP + FP + FN) (Taha & Hanbury 2015, "Metrics for evaluating 3D medical
    image segmentation"): whether the areas are alike, wherever they lie. No lesion, none predicted:
    1."""
    return 1 - _ratio(abs(fn - fp), 2 * tp + fp + fn, 0.0)


MASK_METRICS = {
    "dice": dice,
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "specificity": specificity,
    "pixel_accuracy": pixel_accuracy,
    "volume_similarity": volume_similarity,
}

# -------- outlines: distances `there` (P) from the predicted outline's pixels to the true outline,
# -------- `back` (Q) from the true one's to the predicted -> pixels, 0 is best


def hausdorff(there, back):
    """The farthest that one outline is from the other (Huttenlocher et al. 1993)."""
    return float(max(there.max(), back.max()))


def hd95(there, back):
    """The larger of the two 95th percentiles, interpolated linearly as in MONAI: hausdorff without
    the few worst pixels."""
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def assd(there, back):
    """Average symmetric surface distance: the mean over the pixels of both outlines (Heimann et al.
    2009)."""
    return float(np.concatenate([there, back]).mean())


SURFACE_METRICS = {"hausdorff": hausdorff, "hd95": hd95, "assd": assd}


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels (H,W) bool of a mask that have background, or the outside of the image, left,
    right, above or below."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    border = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    return mask & (cv2.erode(mask.astype(np.uint8), cross, **border) == 0)


def outline_distances(pred: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two masks (H,W) bool -> float64 distances there (P) and back (Q), in pixels, between centres
    of pixels. Both masks empty: a single 0 each way. One empty: a single diagonal of the image,
    longer than any distance in it."""
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


# ---- labels: truth (N) int, decided (N) int, probabilities (N,C) -> one value from 0 to 1


def accuracy(truth, decided, probabilities):
    return float((truth == decided).mean())


def balanced_accuracy(truth, decided, probabilities):
    """Mean recall of the classes that occur in the truth (Brodersen et al. 2010)."""
    right, _, true = _class_counts(truth, decided, probabilities)
    return _macro(right, true, true > 0)


def macro_precision(truth, decided, probabilities):
    """Mean over the classes that occur in the truth or were decided; a class never decided: 0."""
    right, answered, true = _class_counts(truth, decided, probabilities)
    return _macro(right, answered, answered + true > 0)


def macro_recall(truth, decided, probabilities):
    """Mean over the classes that occur in the truth or were decided; a class that does not occur:
    0."""
    right, answered, true = _class_counts(truth, decided, probabilities)
    return _macro(right, true, answered + true > 0)


def macro_f1(truth, decided, probabilities):
    """Mean of 2·TP / (2·TP + FP + FN) over the classes that occur in the truth or were decided."""
    right, answered, true = _class_counts(truth, decided, probabilities)
    return _macro(2 * right, answered + true, answered + true > 0)


def auc(truth, decided, probabilities):
    """Area under the ROC curve, one class against the rest, mean over classes: the Mann-Whitney U
    of ranks, ties sharing theirs (Hanley & McNeil 1982).

    Classes that all or no images have are left out; with one class alone: 0.5. Uses the
    probabilities, whatever was decided.
    """
    from scipy.stats import rankdata  # half a second, which infer need not spend

    areas = []
    for c, ranks in enumerate(rankdata(probabilities, axis=0).T):
        is_class = truth == c
        n, rest = int(is_class.sum()), int((~is_class).sum())
        if n and rest:
            u = ranks[is_class].sum() - n * (n + 1) / 2
            areas.append(u / (n * rest))
    return float(np.mean(areas)) if areas else 0.5


LABEL_METRICS = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_precision": macro_precision,
    "macro_recall": macro_recall,
    "macro_f1": macro_f1,
    "auc": auc,
}


def _macro(part: np.ndarray, whole: np.ndarray, classes: np.ndarray) -> float:
    return float(_ratio(part, whole, 0.0)[classes].mean())


def _class_counts(truth, decided, probabilities) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each class: how often it was decided rightly, decided, true."""
    table = confusion(truth, decided, probabilities.shape[1])
    return table.diagonal(), table.sum(0), table.sum(1)


def confusion(truth: np.ndarray, decided: np.ndarray, classes: int) -> np.ndarray:
    """(C,C) counts: row = truth, column = decided."""
    cells = np.bincount(truth * classes + decided, minlength=classes * classes)
    return cells.reshape(classes, classes)


# ------------------------------------------------------------------- from masks to the score


def counts(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Two masks (H,W) bool -> (4) int64: tp, fp, fn, tn."""
    if pred.shape != true.shape:
        raise ValueError(f"masks differ in size: {pred.shape} and {true.shape}")
    areas = [np.count_nonzero(mask) for mask in (pred & true, pred, true)]
    return from_areas(*areas, true.size)


def from_areas(both, pred, true, pixels) -> np.ndarray:
    """Areas of the overlap, the prediction, the truth and the image -> tp, fp, fn, tn."""
    return np.stack([both, pred - both, true - both, pixels - pred - true + both])


def per_image(pixel_counts: np.ndarray) -> dict[str, np.ndarray]:
    """(4,N) counts -> every mask metric, (N) values each."""
    return {name: metric(*pixel_counts) for name, metric in MASK_METRICS.items()}


def values(images, truth, decided, probabilities, rows=slice(None)) -> dict[str, float]:
    """Every metric over the given rows (a slice, indices or a bool mask): means of the per-image
    values `images` (each metric (N) by name), and the labels' metrics. None: an answer that is
    absent."""
    found = {name: float(each[rows].mean()) for name, each in (images or {}).items()}
    if decided is not None:
        answers = truth[rows], decided[rows], probabilities[rows]
        found |= {name: metric(*answers) for name, metric in LABEL_METRICS.items()}
    return found


def score(weights: dict[str, float], found: dict[str, float]) -> float:
    """The weighted sum that competition.yaml names. Where masks or labels are absent, the weights
    of the others are scaled up to the same sum, and this is said once."""
    check_score(weights)
    present = [name for name in weights if name in found]
    if not present:
        raise InputError(
            f"the score names {', '.join(weights)}, and these predictions have neither",
            "competition.yaml, score",
            f"They have {', '.join(found)}",
            code="no_such_answer",
        )
    if absent := [name for name in weights if name not in found]:
        _say_once(
            f"no {', '.join(absent)} in these predictions: the score is "
            f"{' and '.join(present)} alone"
        )
    total = sum(weights[name] * found[name] for name in present)
    return total * sum(weights.values()) / sum(weights[name] for name in present)


def check_score(weights: dict[str, float]) -> None:
    """Raises InputError for an unknown metric, one that cannot be a score, or a weight of 0 or
    less."""
    if not weights:
        todo = "For example score: {dice: 0.5, macro_f1: 0.5}"
        raise _wrong_score("no metric named", todo)
    for name, weight in weights.items():
        if name in SURFACE_METRICS:
            todo = "It is in metrics.json and report.html; score by dice or iou"
            raise _wrong_score(f"{name} is a distance in pixels, 0 is best: not a score", todo)
        if name not in MASK_METRICS and name not in LABEL_METRICS:
            todo = nearest(name, [*MASK_METRICS, *LABEL_METRICS])
            raise _wrong_score(f"unknown metric '{name}'", todo, "unknown_part")
        if not weight > 0:
            raise _wrong_score(f"the weight of {name} is {weight}", "Weights are over 0")


def _wrong_score(what: str, todo: str, code: str = "invalid_value") -> InputError:
    return InputError(what, "competition.yaml, score", todo, code=code)


@functools.cache
def _say_once(text: str) -> None:
    say(text)
