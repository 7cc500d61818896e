"""Predictions: the only thing that crosses from models to decisions."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.core.console import InputError, counted, listing, short
from src.core.disk import replacing


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
    def load(cls, path: Path, classes: list[str]) -> Predictions:
        """Raises InputError for a file that is missing, damaged, of other kinds or shapes than
        above, or of other classes. Nothing is read before its kind and shape are known to fit."""
        where = short(path)
        form = "Expected an npz with ids, classes, mask and/or label"
        try:
            wrong = _misfit(kinds := _kinds(path), len(classes))
            if not wrong:
                with np.load(path) as file:
                    found = {k: file[k] for k in kinds}
                    self = cls(
                        found["ids"],
                        found.get("mask"),
                        found.get("label"),
                        np.asarray(found["classes"], dtype=str).tolist(),
                    )
        except FileNotFoundError:
            raise InputError("no such predictions", where, code="no_predictions") from None
        except (
            Exception
        ) as error:  # zipfile, numpy and zlib each raise their own for a damaged file
            what = f"not readable as predictions: {type(error).__name__} {error}"
            raise InputError(what, where, form, code="predictions_damaged") from None
        if wrong:
            raise InputError(wrong, where, form, code="predictions_damaged")
        if self.classes != list(classes):
            what = f"classes are {self.classes}, the competition's are {list(classes)}"
            raise InputError(
                what, where, "Same names in the same order are needed", code="predictions_classes"
            )
        if len(set(self.ids)) != len(self):
            raise InputError("the same id twice", where, code="predictions_damaged")
        for name, values in (("mask", self.mask), ("label", self.label)):
            if values is not None and not (
                np.isfinite(values).all()
                and values.min(initial=0) >= 0
                and values.max(initial=0) <= 1.001
            ):
                raise InputError(
                    f"{name} holds values that are no probabilities",
                    where,
                    "Probabilities are from 0 to 1, not from 0 to 255",
                    code="predictions_values",
                )
        if self.label is not None and (abs(self.label.sum(1, dtype=np.float64) - 1) > 1e-3).any():
            what = "the probabilities of an image's classes in label do not add up to 1"
            raise InputError(what, where, "Divide each row by its sum", code="predictions_values")
        return self

    def select(self, ids) -> Predictions:
        """The rows of these ids, in this order; raises InputError where some are missing."""
        row = {k: i for i, k in enumerate(self.ids)}
        if absent := [i for i in ids if i not in row]:
            what = counted(len(absent), "id has no prediction", "ids have no prediction")
            raise InputError(
                f"{what}: {listing(absent)}",
                "",
                "Was the data changed after predict? Run the whole chain again",
                code="predictions_ids_missing",
            )
        rows = [row[i] for i in ids]
        return Predictions(
            self.ids[rows],
            None if self.mask is None else self.mask[rows],
            None if self.label is None else self.label[rows],
            self.classes,
        )


def _kinds(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each of an npz's arrays that count here, by their headers alone: an array
    of objects, or one too large for the memory, is never read. Raises ValueError where a header
    and the length of what follows contradict each other."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        there = {info.filename: info for info in archive.infolist()}
        for name in ("ids", "classes", "mask", "label"):
            if (info := there.get(f"{name}.npy")) is None:
                continue
            with archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(file)
                size = int(np.prod(shape, dtype=object)) * dtype.itemsize
                if not dtype.hasobject and size != info.file_size - file.tell():
                    raise ValueError(f"{name} is cut short")
            found[name] = shape, dtype
    return found


def _misfit(kinds: dict[str, tuple[tuple[int, ...], np.dtype]], classes: int) -> str:
    """What is wrong with these shapes and dtypes, in words; ''."""
    if absent := [name for name in ("ids", "classes") if name not in kinds]:
        return f"there are no {absent[0]} in it"
    if not {"mask", "label"} & kinds.keys():
        return "neither mask nor label"
    for name, letters, words in (
        ("ids", "USiu", "text"),
        ("classes", "US", "text"),
        ("mask", "f", "float16"),
        ("label", "f", "float32"),
    ):
        shape, dtype = kinds.get(name, (None, None))
        if shape is not None and dtype.kind not in letters:
            return f"{name} holds {dtype}, not {words}"
    ids, named = kinds["ids"][0], kinds["classes"][0]
    if len(ids) != 1 or not ids[0]:
        return f"ids has shape {ids}, not (N,) with an image or more"
    if len(named) != 1:
        return f"classes has shape {named}, not ({classes},)"
    n = ids[0]
    mask, label = (kinds[name][0] if name in kinds else None for name in ("mask", "label"))
    if mask is not None and (len(mask) != 3 or mask[0] != n or mask[1] != mask[2] or not mask[1]):
        return f"mask has shape {mask}, not ({n}, S, S)"
    if label is not None and label != (n, classes):
        return f"label has shape {label}, not ({n}, {classes})"
    return ""
