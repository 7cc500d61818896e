"""Two or more sets of out-of-fold answers to the same images, compared so that a difference is told
from chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.parts import metrics
from src.scoring.resample import bootstrap, interval


@dataclass
class Answers:
    """The out-of-fold answers of one experiment (or ensemble), in an order that all share.

    images: each mask metric (N), or None. decided (N) int and probabilities (N,C), or None.
    truth (N) int; groups (N): near-duplicates.
    """

    images: dict[str, np.ndarray] | None
    decided: np.ndarray | None
    probabilities: np.ndarray | None
    truth: np.ndarray
    groups: np.ndarray

    @classmethod
    def read(cls, table: pd.DataFrame, index: pd.DataFrame, classes: list[str]) -> Answers:
        """table: per_image.csv of evaluate; index: the rows of index.csv of the same images, for
        their sizes."""
        table = table.set_index("id").loc[index.id]
        number = {name: c for c, name in enumerate(classes)}
        images = decided = probabilities = None
        if "dice" in table:
            # areas and Dice give every pixel count back: the overlap is a whole number
            area, true = table.area.to_numpy(), table.true_area.to_numpy()
            overlap = np.round(table.dice.to_numpy() * (area + true) / 2).astype(np.int64)
            pixels = (index.height * index.width).to_numpy()
            images = metrics.per_image(metrics.from_areas(overlap, area, true, pixels))
        if "predicted" in table:
            decided = table.predicted.map(number).to_numpy()
            probabilities = table[[f"p_{c}" for c in classes]].to_numpy()
        truth = table.label.map(number).to_numpy()
        return cls(images, decided, probabilities, truth, index.group.to_numpy())

    def has(self, metric: str) -> bool:
        answer = self.images if metric in metrics.MASK_METRICS else self.decided
        return answer is not None

    def value(self, metric: str, rows=slice(None)) -> float:
        if metric in metrics.MASK_METRICS:
            return float(self.images[metric][rows].mean())
        return metrics.LABEL_METRICS[metric](
            self.truth[rows], self.decided[rows], self.probabilities[rows]
        )


@dataclass
class Difference:
    """Of one metric between a cell and the base: its value and the middle 95 % of its bootstrap."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no evidence"


def paired(
    base: list[Answers], cell: list[Answers], weights: dict[str, float], times: int
) -> dict[str, Difference]:
    """Each metric of the score that both answer, and the score where they answer all of it. One
    Answers for each seed, averaged.

    Paired cluster bootstrap: every resample draws duplicate groups and seeds, and takes the same
    images and seeds of both (Efron & Tibshirani 1993, ch. 8).
    """
    shared = [m for m in weights if all(a.has(m) for a in (*base, *cell))]
    if not shared:
        return {}

    def differences(rows, seeds) -> dict[str, float]:
        found = {
            m: np.mean([cell[s].value(m, rows) for s in seeds])
            - np.mean([base[s].value(m, rows) for s in seeds])
            for m in shared
        }
        if len(shared) < len(weights):
            return found
        return {"score": sum(weights[m] * d for m, d in found.items())} | found

    random = np.random.default_rng(0)
    samples = [
        differences(rows, random.integers(0, len(cell), len(cell)))
        for rows in bootstrap(base[0].groups, times)
    ]
    return {
        name: Difference(value, *interval([sample[name] for sample in samples]))
        for name, value in differences(slice(None), range(len(cell))).items()
    }
