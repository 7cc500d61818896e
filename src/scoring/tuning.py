"""Finding the decision that scores best on out-of-fold predictions: the whole grid, in seconds.

Pixels are looked at once. For each image and each way of drawing its mask (threshold, smoothing,
holes, hulls) a table holds the areas of the connected components and their overlaps with the truth,
at original size. Which components are kept, and what the rules between mask and class change,
follows from the table exactly as from postprocess.apply (a test proves it).
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field, fields

import cv2
import numpy as np

from src.core.console import progress
from src.core.settings import Classes, Competition, Evaluate
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.parts import metrics
from src.parts.postprocess import (
    RULES,
    STEPS,
    Decision,
    apply_rules,
    connected_components,
    count_larger,
    draw,
    keep_mask,
    stretch,
)
from src.scoring.images import in_threads

# Scores closer than this count as equal: a ninth of one standard error of 780 images. Among equals
# the decision nearest the untuned one is taken, so that the grid does not pick up noise.
SCORE_TOLERANCE = 0.001


def grid(competition: Competition, has_mask: bool, has_label: bool) -> list[Decision]:
    """Every combination of competition.evaluate's lists, the untuned decision first.

    A field that cannot matter keeps its untuned value: the rules compare two answers and need an
    empty class, all other fields need a mask.
    """
    comparable = has_mask and has_label and competition.data.empty_class is not None
    lists = {}
    for name in (f.name for f in fields(Decision)):
        tried = getattr(competition.evaluate, name)
        matters = comparable if name in RULES else has_mask
        lists[name] = tried if matters else tried[:1]
    return [Decision(**dict(zip(lists, values))) for values in itertools.product(*lists.values())]


def distances(decisions: list[Decision], evaluate: Evaluate) -> np.ndarray:
    """How far each decision is from the untuned one: the sum over its fields of the share of the
    list's range, or of 1 where words or counts differ."""
    found, untuned = np.zeros(len(decisions)), Decision.untuned(evaluate)
    for name in (f.name for f in fields(Decision)):
        values = [getattr(d, name) for d in decisions]
        start = getattr(untuned, name)
        if isinstance(start, float):
            tried = getattr(evaluate, name)
            span = max(tried) - min(tried) or 1.0
            found += [abs(value - start) / span for value in values]
        else:  # `largest` is no scale either: 0 stands for all components
            found += [float(value != start) for value in values]
    return found


# ------------------------------------------------------------------------------- the table


@dataclass
class Table:
    """All that decisions need to know about N images.

    probs (N,C) or None: class probabilities. pixels, true (N) or None: areas of the images and of
    their lesions. components: for each drawing of the masks the image (P), the area (P) and the
    overlap with the truth (P) of every connected component, and how many components of its image
    are larger (P).
    """

    probs: np.ndarray | None
    classes: Classes
    pixels: np.ndarray | None = None
    true: np.ndarray | None = None
    components: dict[Hashable, tuple[np.ndarray, ...]] = field(default_factory=dict)

    def answer(self, decision: Decision) -> tuple[np.ndarray | None, np.ndarray | None]:
        """What the decision makes of all images: pixel counts (4,N) as of metrics.counts, and
        labels (N); None for an answer that is absent."""
        if self.pixels is None:
            return apply_rules(decision, None, self.probs, self.classes)
        image, areas, overlaps, larger = self.components[drawing(decision)]
        keep = keep_mask(decision, areas, larger, self.pixels[image])
        pred, overlap = (
            np.bincount(image[keep], values[keep], len(self.pixels)).astype(np.int64)
            for values in (areas, overlaps)
        )
        emptied, label = apply_rules(decision, pred == 0, self.probs, self.classes)
        pred[emptied] = overlap[emptied] = 0
        return metrics.from_areas(overlap, pred, self.true, self.pixels), label


def drawing(decision: Decision) -> Hashable:
    """The fields that decide how a mask is drawn, before components are dropped."""
    return tuple(getattr(decision, name) for name in ("threshold", *STEPS))


def build_table(
    predictions: Predictions, truth: Truth, decisions: list[Decision], classes: Classes
) -> Table:
    """The connected components at original size of every mask in every drawing that the decisions
    need."""
    if predictions.mask is None:
        return Table(predictions.label, classes)
    drawings = {drawing(decision): decision for decision in decisions}

    def look(i: int) -> tuple[int, int, list[tuple[np.ndarray, ...]]]:
        true = truth.mask(predictions.ids[i])
        found = _components(predictions.mask[i], true, list(drawings.values()))
        return true.size, np.count_nonzero(true), found

    pixels, true, found = zip(*in_threads(look, len(predictions), "connected components"))
    components = {}
    for key, per_image in zip(drawings, zip(*found)):
        areas, overlaps, larger = (np.concatenate(column) for column in zip(*per_image))
        image = np.repeat(np.arange(len(per_image)), [len(columns[0]) for columns in per_image])
        components[key] = image, areas, overlaps, larger
    return Table(predictions.label, classes, np.array(pixels), np.array(true), components)


def _components(
    prob: np.ndarray, true: np.ndarray, decisions: list[Decision]
) -> list[tuple[np.ndarray, ...]]:
    """prob (S,S), true (H,W) -> for each drawing the areas and overlaps of its components, and how
    many components are larger."""
    full, pixels = stretch(prob, *true.shape), true.size
    # only the box that holds a lesion at the lowest threshold: no step draws outside it
    lowest = np.float32(min(decision.threshold for decision in decisions))
    left, top, width, height = cv2.boundingRect((full > lowest).view(np.uint8))
    if not width:
        return [(np.zeros(0, np.int64),) * 3] * len(decisions)
    box = np.s_[top : top + height, left : left + width]
    full, true = full[box], true[box]
    found, seen = [], {}
    for decision in decisions:
        mask = draw(full, decision, pixels)
        before, columns = seen.get(decision.threshold, (None, None))
        # most masks have no holes to fill, and many are convex
        if before is None or not np.array_equal(mask, before):
            numbers, areas = connected_components(mask)
            overlaps = np.bincount(numbers[true], minlength=len(areas))
            columns = areas[1:], overlaps[1:], count_larger(areas[1:])
            seen[decision.threshold] = mask, columns
        found.append(columns)
    return found


# ------------------------------------------------------------------------------ the search


def tune(
    decisions: list[Decision],
    table: Table,
    labels: np.ndarray,
    cv_folds: np.ndarray,
    competition: Competition,
) -> tuple[Decision, dict[int, Decision]]:
    """The best decision on all images, and for each fold (N) the best on all the others: applied to
    that fold, it has not seen what it is scored on."""
    folds = np.unique(cv_folds)
    # the subsets on which decisions are compared; the last one is all images
    subsets = [cv_folds != k for k in folds] + [np.ones(len(cv_folds), dtype=bool)]
    # (N, K+1): times values (N) it is their mean over each subset
    share = np.stack([rows / rows.sum() for rows in subsets], axis=1)
    mask_metrics = [m for m in competition.score if m in metrics.MASK_METRICS]
    label_metrics = [m for m in competition.score if m in metrics.LABEL_METRICS]
    scores, seen = np.zeros((len(decisions), len(subsets))), {}
    with progress(len(decisions), "decisions") as bar:
        for i, decision in enumerate(decisions):
            counts, decided = table.answer(decision)
            found = {}
            if counts is not None:
                for m in mask_metrics:
                    # no @: a matrix product adds in another order with every number of threads
                    found[m] = (metrics.MASK_METRICS[m](*counts)[:, None] * share).sum(0)
            if decided is not None and label_metrics:
                key = decided.tobytes()  # most decisions leave the labels as they are
                if key not in seen:
                    cells = [(labels[r], decided[r], table.probs[r]) for r in subsets]
                    seen[key] = {
                        m: np.array([metrics.LABEL_METRICS[m](*cell) for cell in cells])
                        for m in label_metrics
                    }
                found |= seen[key]
            scores[i] = metrics.score(competition.score, found)
            bar.update()
    far = distances(decisions, competition.evaluate)
    best = [decisions[_nearest_of_best(column, far)] for column in scores.T]
    return best[-1], {int(k): decision for k, decision in zip(folds, best)}


def _nearest_of_best(scores: np.ndarray, far: np.ndarray) -> int:
    """Among scores within SCORE_TOLERANCE of the best: the least distance from the untuned
    decision, then the higher score, then the earlier."""
    near = np.flatnonzero(scores >= scores.max() - SCORE_TOLERANCE)
    return int(near[np.lexsort((-scores[near], far[near]))[0]])


def apply_each(
    decision_of: dict[int, Decision], table: Table, cv_folds: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Every fold (N) answered by its own decision: pixel counts (4,N) and labels (N)."""
    answers = {k: table.answer(decision) for k, decision in decision_of.items()}
    counts, labels = next(iter(answers.values()))
    for k, (of_fold, labels_of_fold) in answers.items():
        rows = cv_folds == k
        if counts is not None:
            counts[:, rows] = of_fold[:, rows]
        if labels is not None:
            labels[rows] = labels_of_fold[rows]
    return counts, labels
