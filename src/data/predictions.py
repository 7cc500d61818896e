"""Predictions: the only thing that crosses from models to decisions."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.core.console import InputError, counted, listing, short
from src.core.disk import replacing


@dataclass
class Predictions:
    """ids (N) str; mask (N,S,S) float16, probability of lesion over the whole image stretched to
    S×S, or None; label (N,C) float32 class probabilities, or None; classes (C) str."""

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
    def load(cls, path: Path, classes: list[str]) -> Predictions:
        """Raises InputError for a file that is missing, damaged, of other kinds or shapes than
        above, or of other classes. Nothing is read before its kind and shape are known to fit."""
        where, todo = short(path), "Expected an npz with ids, classes, mask and/or label"
        try:
            kinds = _kinds(path)
            wrong = _misfit(kinds, len(classes))
            if not wrong:
                with np.load(path) as file:
                    found = {name: file[name] for name in kinds}
        except FileNotFoundError:
            raise InputError("no such predictions", where, code="no_predictions") from None
        except Exception as error:  # zipfile, numpy and zlib each raise their own
            what = f"not readable as predictions: {type(error).__name__} {error}"
            raise InputError(what, where, todo, code="predictions_damaged") from None
        if wrong:
            raise InputError(wrong, where, todo, code="predictions_damaged")
        named = found["classes"].astype(str).tolist()
        self = cls(found["ids"], found.get("mask"), found.get("label"), named)
        if named != list(classes):
            what = f"classes are {named}, the competition's are {list(classes)}"
            todo = "Same names in the same order are needed"
            raise InputError(what, where, todo, code="predictions_classes")
        if len(set(self.ids)) != len(self):
            raise InputError("the same id twice", where, code="predictions_damaged")
        self._check_probabilities(where)
        return self

    def _check_probabilities(self, where: str) -> None:
        todo = "Probabilities are from 0 to 1, not from 0 to 255"
        for name, values in (("mask", self.mask), ("label", self.label)):
            if values is None:
                continue
            low, high = values.min(initial=0), values.max(initial=0)
            if not (low >= 0 and high <= 1.001):  # also where one of them is NaN
                what = f"{name} holds values that are not probabilities"
                raise InputError(what, where, todo, code="predictions_values")
        if self.label is not None and (abs(self.label.sum(1, dtype=np.float64) - 1) > 1e-3).any():
            what = "the probabilities of an image's classes in label do not add up to 1"
            raise InputError(what, where, "Divide each row by its sum", code="predictions_values")

    def select(self, ids: Sequence[str]) -> Predictions:
        """The rows of these ids, in this order; raises InputError where some are missing."""
        row = {k: i for i, k in enumerate(self.ids)}
        if absent := [i for i in ids if i not in row]:
            what = counted(len(absent), "id has no prediction", "ids have no prediction")
            what = f"{what}: {listing(absent)}"
            todo = "Was the data changed after predict? Run the whole chain again"
            raise InputError(what, "", todo, code="predictions_ids_missing")
        rows = [row[i] for i in ids]
        mask, label = (None if a is None else a[rows] for a in (self.mask, self.label))
        return Predictions(self.ids[rows], mask, label, self.classes)


# name -> shape and dtype of an array
Kinds = dict[str, tuple[tuple[int, ...], np.dtype]]


def _kinds(path: Path) -> Kinds:
    """Those of an npz's arrays that count here, by their headers alone: an array of objects, or one
    too large for the memory, is never read. Raises ValueError where a header and the length of what
    follows contradict each other."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        for name in ("ids", "classes", "mask", "label"):
            info = members.get(f"{name}.npy")
            if info is None:
                continue
            with archive.open(info) as file:
                is_first = np.lib.format.read_magic(file) == (1, 0)
                read = getattr(np.lib.format, f"read_array_header_{1 if is_first else 2}_0")
                shape, _, dtype = read(file)
                size = int(np.prod(shape, dtype=object)) * dtype.itemsize
                if not dtype.hasobject and size != info.file_size - file.tell():
                    raise ValueError(f"{name} is cut short")
            found[name] = shape, dtype
    return found


def _misfit(kinds: Kinds, classes: int) -> str:
    """What is wrong with these shapes and dtypes, in words; ''."""
    if absent := [name for name in ("ids", "classes") if name not in kinds]:
        return f"there are no {absent[0]} in it"
    if not {"mask", "label"} & kinds.keys():
        return "neither mask nor label"
    letters = {"ids": "USiu", "classes": "US", "mask": "f", "label": "f"}
    words = {"ids": "text", "classes": "text", "mask": "float16", "label": "float32"}
    for name, (_, dtype) in kinds.items():
        if dtype.kind not in letters[name]:
            return f"{name} holds {dtype}, not {words[name]}"
    ids, named, mask, label = (kinds.get(name, [None])[0] for name in letters)
    if len(ids) != 1 or not ids[0]:
        return f"ids has shape {ids}, not (N,) with an image or more"
    if len(named) != 1:
        return f"classes has shape {named}, not ({classes},)"
    n = ids[0]
    if mask is not None and (len(mask) != 3 or mask != (n, mask[2], mask[2]) or not mask[1]):
        return f"mask has shape {mask}, not ({n}, S, S)"
    if label is not None and label != (n, classes):
        return f"label has shape {label}, not ({n}, {classes})"
    return ""
