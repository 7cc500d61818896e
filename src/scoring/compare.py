"""Two or more sets of out-of-fold answers to the same images, compared so that chance is told from difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.parts import metrics
from src.scoring.resample import bootstrap, interval


@dataclass
class Answers:
    """What one experiment (or ensemble) answered out of fold, image by image, in an order that all share.

    images: each mask metric (N), or None. decided (N) int and probabilities (N,C), or None. truth (N) int, groups (N): near-duplicates."""

    images: dict[str, np.ndarray] | None
    decided: np.ndarray | None
    probabilities: np.ndarray | None
    truth: np.ndarray
    groups: np.ndarray

    @classmethod
    def read(cls, table: pd.DataFrame, index: pd.DataFrame, classes: list[str]) -> Answers:
        """table: per_image.csv of evaluate; index: the rows of index.csv of the same images, for their sizes."""
        table = table.set_index("id").loc[index.id]
        images = decided = probabilities = None
        if (
            "dice" in table
        ):  # areas and Dice give every pixel count back: the overlap is a whole number
            area, true = table.area.to_numpy(), table.true_area.to_numpy()
            both = np.round(
                np.where(area + true > 0, table.dice.to_numpy() * (area + true) / 2, 0)
            ).astype(np.int64)
            images = metrics.per_image(
                metrics.from_areas(both, area, true, (index.height * index.width).to_numpy())
            )
        if "predicted" in table:
            decided = table.predicted.map({c: i for i, c in enumerate(classes)}).to_numpy()
            probabilities = table[[f"p_{c}" for c in classes]].to_numpy()
        return cls(
            images,
            decided,
            probabilities,
            table.label.map({c: i for i, c in enumerate(classes)}).to_numpy(),
            index.group.to_numpy(),
        )

    def has(self, metric: str) -> bool:
        return (
            self.images is not None if metric in metrics.MASK_METRICS else self.decided is not None
        )

    def value(self, metric: str, rows=slice(None)) -> float:
        if metric in metrics.MASK_METRICS:
            return float(self.images[metric][rows].mean())
        return metrics.LABEL_METRICS[metric](
            self.truth[rows], self.decided[rows], self.probabilities[rows]
        )


@dataclass
class Difference:
    """Of one metric between a cell and the base: the difference, the middle 95 % of its bootstrap, and whether that leaves zero out."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no evidence"


def paired(
    base: list[Answers], cell: list[Answers], weights: dict[str, float], times: int
) -> dict[str, Difference]:
    """Each metric of the score that both answer, and the score where they answer all of it. One Answers for each seed, averaged.

    Paired cluster bootstrap: every resample draws duplicate groups and seeds, and asks both about the same images (Efron & Tibshirani 1993, ch. 8)."""
    shared = [m for m in weights if all(a.has(m) for a in (*base, *cell))]
    if not shared:
        return {}

    def differences(
        rows, of_cell: list[Answers] = cell, of_base: list[Answers] = base
    ) -> list[float]:
        found = [
            np.mean([a.value(m, rows) for a in of_cell])
            - np.mean([a.value(m, rows) for a in of_base])
            for m in shared
        ]
        whole = (
            [sum(weights[m] * d for m, d in zip(shared, found))]
            if len(shared) == len(weights)
            else []
        )
        return [*whole, *found]

    names = [*(["score"] if len(shared) == len(weights) else []), *shared]
    random = np.random.default_rng(0)
    drawn = (
        random.integers(0, len(cell), len(cell)) for _ in range(times)
    )  # the same seeds of both, as the same images
    samples = np.array(
        [
            differences(rows, *([of[i] for i in seeds] for of in (cell, base)))
            for rows, seeds in zip(bootstrap(base[0].groups, times), drawn)
        ]
    )
    return {
        name: Difference(value, *interval(column))
        for name, value, column in zip(names, differences(slice(None)), samples.T)
    }
