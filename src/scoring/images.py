"""Predictions and a decision -> masks and labels at original size -> numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from joblib import cpu_count

from src.core.console import progress
from src.core.settings import Classes, Competition
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.parts import metrics
from src.parts.postprocess import Decision, apply

T = TypeVar("T")


def score_predictions(
    predictions: Predictions,
    labels: np.ndarray,
    truths: list[np.ndarray],
    competition: Competition,
) -> dict:
    """Predictions of N images, their labels (N) int and true masks (H,W) bool at original size ->
    {"score", every metric of pixel counts and labels that applies, "per_image": {each mask metric
    (N), "area", "true_area", "label"}}, by the untuned decision."""
    decision = Decision.untuned(competition.evaluate)
    found = measure(predictions, labels, truths, decision, competition.classes)
    return {"score": metrics.score(competition.score, found)} | found


def measure(
    predictions: Predictions,
    labels: np.ndarray,
    truths: list[np.ndarray],
    decision: Decision,
    classes: Classes,
) -> dict:
    """The same without a score: nothing here depends on how a contest weights the metrics."""
    counts = np.zeros((4, len(predictions)), dtype=np.int64)
    decided = np.zeros(len(predictions), dtype=np.int64)
    # one at a time: the masks of a fold at original size need not be in memory together
    for i in range(len(predictions)):
        size = (1, 1) if predictions.mask is None else truths[i].shape
        mask, label = apply(decision, predictions, i, size, classes)
        if mask is not None:
            counts[:, i] = metrics.counts(mask, truths[i])
        if label is not None:
            decided[i] = label
    per_image, images = {}, None
    if predictions.mask is not None:
        images = metrics.per_image(counts)
        per_image = images | {"area": counts[0] + counts[1], "true_area": counts[0] + counts[2]}
    if predictions.label is None:
        decided = None
    else:
        per_image["label"] = decided
    found = metrics.values(images, labels, decided, predictions.label)
    return found | {"per_image": per_image}


def surfaces(
    predictions: Predictions, truth: Truth, decisions: list[Decision], classes: Classes
) -> dict[str, np.ndarray] | None:
    """Predictions of N images, each answered by its own decision (N) -> every surface metric, (N)
    values each, in pixels of the original size; None without masks."""
    if predictions.mask is None:
        return None

    def distances(i: int) -> list[float]:
        true = truth.mask(predictions.ids[i])
        pred, _ = apply(decisions[i], predictions, i, true.shape, classes)
        between = metrics.outline_distances(pred, true)
        return [metric(*between) for metric in metrics.SURFACE_METRICS.values()]

    found = np.array(list(in_threads(distances, len(predictions), "outlines")))
    return dict(zip(metrics.SURFACE_METRICS, found.T))


def in_threads(function: Callable[[int], T], times: int, label: str) -> Iterator[T]:
    """function(0), function(1), … in order, computed in threads: nearly all of their time is spent
    in OpenCV and numpy, which run in parallel, and nothing is copied to another process."""
    with ThreadPoolExecutor(cpu_count()) as pool, progress(times, label) as bar:
        for result in pool.map(function, range(times)):
            yield result
            bar.update()
