"""Predictions: the only thing that crosses from models to decisions."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.core.console import InputError, listing, short
from src.core.freshness import replacing


@dataclass
class Predictions:
    """ids (N) str; mask (N,S,S) float16, probability of lesion over the whole image stretched to S×S, or None;
    label (N,C) float32 class probabilities, or None; classes (C) str."""

    ids: np.ndarray
    mask: np.ndarray | None
    label: np.ndarray | None
    classes: list[str]

    def __post_init__(self):
        self.ids = np.asarray(self.ids, dtype=str)

    def __len__(self) -> int:
        return len(self.ids)

    def save(self, path: Path) -> None:
        answers = {k: v for k, v in (("mask", self.mask), ("label", self.label)) if v is not None}
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, ids=self.ids, classes=np.asarray(self.classes, dtype=str), **answers)

    @classmethod
    def load(cls, path: Path, classes: list[str]) -> "Predictions":
        """Raises InputError for a file that is missing, damaged, of the wrong shape or of other classes."""
        try:
            with np.load(path) as file:
                found = {k: file[k] for k in file.files}
            self = cls(found["ids"], found.get("mask"), found.get("label"), found["classes"].tolist())
        except FileNotFoundError:
            raise InputError("no such predictions", short(path)) from None
        except Exception as error:  # zipfile, numpy and zlib each raise their own for a damaged file
            raise InputError(f"not readable as predictions: {type(error).__name__} {error}", short(path), "Expected an npz with ids, classes, mask and/or label") from None
        n = len(self)
        if self.classes != list(classes):
            raise InputError(f"classes are {self.classes}, the competition's are {list(classes)}", short(path), "Same names in the same order are needed")
        if len(set(self.ids)) != n:
            raise InputError("the same id twice", short(path))
        if self.mask is None and self.label is None:
            raise InputError("neither mask nor label", short(path))
        if self.mask is not None and (self.mask.ndim != 3 or len(self.mask) != n or self.mask.shape[1] != self.mask.shape[2]):
            raise InputError(f"mask has shape {self.mask.shape}, not ({n}, S, S)", short(path))
        if self.label is not None and self.label.shape != (n, len(classes)):
            raise InputError(f"label has shape {self.label.shape}, not ({n}, {len(classes)})", short(path))
        for name, values in (("mask", self.mask), ("label", self.label)):
            if values is not None and not (np.isfinite(values).all() and values.min(initial=0) >= 0 and values.max(initial=0) <= 1.001):
                raise InputError(f"{name} holds values that are no probabilities", short(path))
        return self

    def select(self, ids) -> "Predictions":
        """The rows of these ids, in this order; raises InputError where some are missing."""
        row = {k: i for i, k in enumerate(self.ids)}
        if absent := [i for i in ids if i not in row]:
            raise InputError(f"{len(absent)} ids have no prediction: {listing(absent)}", "", "Was the data changed after predict? Run the whole chain again")
        rows = [row[i] for i in ids]
        return Predictions(self.ids[rows], None if self.mask is None else self.mask[rows], None if self.label is None else self.label[rows], self.classes)
