"""Predictions and a decision -> masks and labels at original size -> numbers."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from src.core.console import progress
from src.core.settings import Classes, Competition
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.parts import metrics
from src.parts.postprocess import Decision, apply

Array = np.ndarray


def score_predictions(
    predictions: Predictions,
    labels: Array,
    truths: list[Array],
    competition: Competition,
    decision: Decision | None = None,
) -> dict:
    """Predictions of N images, their labels (N) int and true masks (H,W) bool at original size ->
    {"score", every metric of pixel counts and labels that applies, "per_image": {each mask metric (N), "area", "true_area", "label"}}.
    decision: by default the untuned one."""
    found = measure(
        predictions,
        labels,
        truths,
        decision or Decision.untuned(competition.evaluate),
        competition.classes,
    )
    return {"score": metrics.score(competition.score, found)} | found


def measure(
    predictions: Predictions,
    labels: Array,
    truths: list[Array],
    decision: Decision,
    classes: Classes,
) -> dict:
    """The same without a score: nothing in it goes by how a contest weighs the metrics."""
    pixel_counts = np.zeros((4, len(predictions)), dtype=np.int64)
    decided = None if predictions.label is None else np.zeros(len(predictions), dtype=np.int64)
    for i in range(
        len(predictions)
    ):  # one at a time: the masks of a fold at original size need not lie in memory together
        prob = None if predictions.mask is None else predictions.mask[i]
        height, width = (1, 1) if prob is None else truths[i].shape
        mask, label = apply(
            decision,
            prob,
            None if decided is None else predictions.label[i],
            height,
            width,
            classes,
        )
        if mask is not None:
            pixel_counts[:, i] = metrics.counts([mask], [truths[i]])[:, 0]
        if label is not None:
            decided[i] = label
    images = None if predictions.mask is None else metrics.per_image(pixel_counts)
    found = metrics.values(images, labels, decided, predictions.label)
    each = dict(images or {})
    if images is not None:
        each |= {
            "area": pixel_counts[0] + pixel_counts[1],
            "true_area": pixel_counts[0] + pixel_counts[2],
        }
    if decided is not None:
        each["label"] = decided
    return found | {"per_image": each}


def surfaces(
    predictions: Predictions, truth: Truth, decisions: list[Decision], classes: Classes
) -> dict[str, Array]:
    """Predictions with masks of N images, each answered by its own decision (N) -> every surface metric, (N) values each, in pixels of the original size."""

    def look(i: int) -> list[float]:
        true = truth.mask(predictions.ids[i])
        label = None if predictions.label is None else predictions.label[i]
        pred, _ = apply(decisions[i], predictions.mask[i], label, *true.shape, classes)
        distances = metrics.outline_distances(pred, true)
        return [metric(*distances) for metric in metrics.SURFACE_METRICS.values()]

    found = np.zeros((len(predictions), len(metrics.SURFACE_METRICS)))
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress(len(predictions), "outlines") as bar:
        for i, found[i] in enumerate(pool.map(look, range(len(predictions)))):
            bar.update()
    return dict(zip(metrics.SURFACE_METRICS, found.T))
