"""Finding the decision that scores best on out-of-fold predictions, the whole grid of it, in seconds.

Pixels are looked at once: for each image and way of drawing (threshold, smoothing, holes, hulls) a table of the connected parts' areas and overlaps with the
truth, at original size. How many parts stay, and the effect of gate and agreement, follow from the tables: exactly as by postprocess.apply (a test proves it).
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np

from src.core.console import InputError, progress
from src.core.settings import Competition, Evaluate
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.parts import metrics
from src.parts.postprocess import (
    STEPS,
    Decision,
    apply_rules,
    components,
    draw,
    keep_mask,
    larger,
    stretch,
)

# Scores closer than this are the same: a ninth of one standard error of 780 images. Among equals the decision nearest the untuned one is taken, so that
# the grid does not pick up noise.
SCORE_TOLERANCE = 0.001
RULED = ("empty_above", "agree")  # fields that need both answers and an empty class


def grid(competition: Competition, has_mask: bool, has_label: bool) -> list[Decision]:
    """Every combination of competition.evaluate's lists, the untuned decision first; a field that cannot matter here stays untuned."""
    compares = has_mask and has_label and competition.data.empty_class is not None
    lists = {}
    for name in (f.name for f in fields(Decision)):
        tried = getattr(competition.evaluate, name)
        if not tried:
            raise InputError(
                f"evaluate.{name} is empty",
                "competition.yaml",
                "The first value of each list is the untuned decision",
                code="invalid_value",
            )
        lists[name] = tried if (compares if name in RULED else has_mask) else tried[:1]
    return [
        Decision(**dict(zip(lists, combination)))
        for combination in itertools.product(*lists.values())
    ]


def distances(decisions: list[Decision], evaluate: Evaluate) -> np.ndarray:
    """How far each decision is from the untuned one: for each field the share of the list's range, or 1 where words or counts differ; the sum of these."""
    found, untuned = np.zeros(len(decisions)), Decision.untuned(evaluate)
    for name in (f.name for f in fields(Decision)):
        tried, start = getattr(evaluate, name), getattr(untuned, name)
        numeric = isinstance(start, float)  # `largest` is no scale: 0 stands for all parts
        span = (max(tried) - min(tried) or 1.0) if numeric else 1.0
        found += [
            abs(getattr(d, name) - start) / span if numeric else float(getattr(d, name) != start)
            for d in decisions
        ]
    return found


# ------------------------------------------------------------------------------------------------------------------------------ the tables


@dataclass
class Table:
    """pixels, true (N): areas of the images and of their lesions. parts: for each way of drawing a mask the image (P), the area (P), the overlap
    with the truth (P) of every connected part, and how many parts of its image are larger (P)."""

    pixels: np.ndarray
    true: np.ndarray
    parts: dict[Decision, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]

    def counts(self, decision: Decision) -> np.ndarray:
        """(4,N) tp, fp, fn, tn before the rules."""
        image, area, both, ahead = self.parts[drawn_by(decision)]
        keep = keep_mask(decision, area, ahead, self.pixels[image])
        pred = np.bincount(image[keep], area[keep], len(self.pixels)).astype(np.int64)
        overlap = np.bincount(image[keep], both[keep], len(self.pixels)).astype(np.int64)
        return metrics.from_areas(overlap, pred, self.true, self.pixels)


def drawn_by(decision: Decision) -> Decision:
    """The decision with everything reset that tables know without drawing: what names a table."""
    return replace(
        decision,
        **{
            f.name: f.default
            for f in fields(Decision)
            if f.name != "threshold" and f.name not in STEPS
        },
    )


def build_table(predictions: Predictions, truth: Truth, decisions: list[Decision]) -> Table:
    """The parts of every image's mask in each of the ways that the decisions need, at original size."""
    ways = list(dict.fromkeys(map(drawn_by, decisions)))
    rows = [truth.row[i] for i in predictions.ids]
    pixels = truth.sizes[rows].prod(1)
    found: dict[Decision, list] = {way: [] for way in ways}
    true = np.zeros(len(rows), dtype=np.int64)

    def look(i: int) -> tuple[int, list[tuple[np.ndarray, ...]]]:
        mask = truth.mask(predictions.ids[i])
        return np.count_nonzero(mask), _parts(predictions.mask[i], mask, ways)

    # threads: nearly all of the time is spent in OpenCV and numpy, which run side by side, and nothing needs to be copied to another process
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress(len(rows), "connected parts") as bar:
        for i, (true[i], each) in enumerate(pool.map(look, range(len(rows)))):
            for way, columns in zip(ways, each):
                found[way].append((np.full(len(columns[0]), i), *columns))
            bar.update()
    return Table(
        pixels,
        true,
        {
            way: tuple(np.concatenate(column) for column in zip(*each))
            for way, each in found.items()
        },
    )


def _parts(
    prob: np.ndarray, true: np.ndarray, ways: list[Decision]
) -> list[tuple[np.ndarray, ...]]:
    """prob (S,S), true (H,W) -> for each way the areas and overlaps of its parts, and how many parts are larger."""
    full = stretch(prob, *true.shape)
    # only the box that holds a lesion at the lowest threshold; no step reaches out of it
    left, top, width, height = cv2.boundingRect(
        (full > np.float32(min(w.threshold for w in ways))).view(np.uint8)
    )
    box = np.s_[top : top + height, left : left + width]
    full, true, pixels = np.ascontiguousarray(full[box]), np.ascontiguousarray(true[box]), true.size
    found, seen = [], {}
    for way in ways:
        if not full.size:
            found.append((np.zeros(0, np.int64),) * 3)
            continue
        mask = draw(full, way, pixels)
        before, answer = seen.get(way.threshold, (None, None))
        if before is None or not np.array_equal(
            mask, before
        ):  # most masks have no holes to fill, many are convex
            numbers, areas = components(mask)
            answer = (
                areas[1:],
                np.bincount(numbers[true], minlength=len(areas))[1:],
                larger(areas[1:]),
            )
            seen[way.threshold] = mask, answer
        found.append(answer)
    return found


# ------------------------------------------------------------------------------------------------------------------------------ the search


def answer(
    decision: Decision, table: Table | None, probs: np.ndarray | None, competition: Competition
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What the decision makes of all images: pixel counts (4,N) and labels (N), None for an answer that is absent."""
    found = None if table is None else table.counts(decision)
    emptied, label = apply_rules(
        decision,
        None if table is None else found[0] + found[1] == 0,
        probs,
        competition.classes,
    )
    if table is not None:
        nothing = np.zeros_like(table.true)
        found = np.where(
            emptied, metrics.from_areas(nothing, nothing, table.true, table.pixels), found
        )
    return found, label


def tune(
    decisions: list[Decision],
    table: Table | None,
    probs: np.ndarray | None,
    truth: np.ndarray,
    parts: np.ndarray,
    competition: Competition,
) -> tuple[Decision, dict[int, Decision]]:
    """The best decision on all images, and for each part (N) the best on all the others: applied to that part, it has not seen what it is scored on."""
    names = np.unique(parts)
    without = [parts != k for k in names] + [
        np.ones(len(parts), dtype=bool)
    ]  # the subsets on which decisions are compared; the last one is all
    share = np.stack(
        [rows / rows.sum() for rows in without], axis=1
    )  # (N, K+1): times values (N) it is their mean over each subset
    wanted_masks = [m for m in competition.score if m in metrics.MASK_METRICS and table is not None]
    wanted_labels = [
        m for m in competition.score if m in metrics.LABEL_METRICS and probs is not None
    ]
    scores, seen = np.zeros((len(decisions), len(without))), {}
    with progress(len(decisions), "decisions") as bar:
        for i, decision in enumerate(decisions):
            pixel_counts, label = answer(decision, table, probs, competition)
            # no @: a product of matrices adds in another order with every number of threads
            found = {
                m: (metrics.MASK_METRICS[m](*pixel_counts)[:, None] * share).sum(0)
                for m in wanted_masks
            }
            if wanted_labels:
                key = label.tobytes()  # most decisions leave the labels as they are
                if key not in seen:
                    seen[key] = {
                        m: np.array(
                            [
                                metrics.LABEL_METRICS[m](truth[r], label[r], probs[r])
                                for r in without
                            ]
                        )
                        for m in wanted_labels
                    }
                found |= seen[key]
            scores[i] = metrics.score(competition.score, found)
            bar.update()
    far = distances(decisions, competition.evaluate)
    best = [decisions[_nearest_of_best(column, far)] for column in scores.T]
    return best[-1], {int(k): d for k, d in zip(names, best)}


def _nearest_of_best(scores: np.ndarray, far: np.ndarray) -> int:
    """Among scores within SCORE_TOLERANCE of the best: the least distance from untuned, then the higher score, then the earlier."""
    near = np.flatnonzero(scores >= scores.max() - SCORE_TOLERANCE)
    return int(near[np.lexsort((-scores[near], far[near]))[0]])


def apply_each(
    decision_of: dict[int, Decision],
    table: Table | None,
    probs: np.ndarray | None,
    parts: np.ndarray,
    competition: Competition,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Every part (N) answered by its own decision: pixel counts (4,N) and labels (N)."""
    pixel_counts, label = answer(next(iter(decision_of.values())), table, probs, competition)
    for k, decision in decision_of.items():
        its_counts, its_label = answer(decision, table, probs, competition)
        if pixel_counts is not None:
            pixel_counts[:, parts == k] = its_counts[:, parts == k]
        if label is not None:
            label[parts == k] = its_label[parts == k]
    return pixel_counts, label
