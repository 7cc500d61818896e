"""Post-processing: from probabilities to one mask and one class per image, by a Decision.

The order is that of Decision's fields: the probability map is thresholded, STEPS edit the mask,
small connected components are dropped, RULES compare mask and class. To add a step, write a
function, a line in STEPS, a field of the same name in Decision, and a list of values in the
config's `evaluate`; the search (scoring/tuning.py) tries it from then on. No step may draw outside
the bounding box of its mask, because the search draws within that box only.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from src.core.console import InputError, command, nearest
from src.core.disk import read_json, write_json
from src.core.setting_types import Share
from src.core.settings import Classes, Evaluate
from src.data.images import scaled
from src.data.predictions import Predictions


@dataclass(frozen=True, config=ConfigDict(strict=True))
class Decision:
    """The numbers that turn probabilities into answers. A wrong value is a ValidationError."""

    # a pixel is lesion where its probability exceeds this
    threshold: Share = 0.5
    # window of the majority filter, as a share of the image's side √(H·W); 0: off
    smooth: Share = 0.0
    fill_holes: bool = False
    # every connected component becomes its convex hull
    convex: bool = False
    # only this many components are kept, the largest; 0: all
    largest: Annotated[int, Field(ge=0, lt=10**9)] = 0
    # components smaller than this share of the image's area are dropped
    min_area: Share = 0.0
    # the mask is emptied where P(empty class) exceeds this; 1: never
    empty_above: Share = 1.0
    # which answer gives way where mask and class contradict each other; no: both stand
    agree: Literal["no", "mask", "label"] = "no"

    @classmethod
    def untuned(cls, grid: Evaluate) -> Decision:
        """The first value of each list of the grid."""
        return cls(**{f.name: getattr(grid, f.name)[0] for f in fields(cls)})

    @classmethod
    def load(cls, path: Path) -> Decision:
        """Read decision.json, which users edit; raises InputError."""
        if not path.is_file():
            todo = f"Make it with {command('evaluate')}"
            raise InputError("no decision here", path, todo, code="no_decision")
        try:
            found = read_json(path)
        except (OSError, RecursionError, InputError):
            todo = f"Correct it, or make it again with {command('evaluate', '--force')}"
            what = "not readable as JSON"
            raise InputError(what, path, todo, code="damaged_json") from None
        return cls.from_dict(found, path)

    @classmethod
    def from_dict(cls, found: dict, path: Path) -> Decision:
        """Raises InputError that names `path` and the key that is wrong, unknown or missing."""
        names = [f.name for f in fields(cls)]
        again = f"Make it again with {command('evaluate', '--force')}"
        for key in found:
            if key not in names:
                todo = nearest(key, names)
                raise InputError(f"unknown key '{key}'", path, todo, code="decision_key")
        for name in names:
            if name not in found:
                raise InputError(f"{name} is missing", path, again, code="decision_key")
        try:
            return cls(**found)
        except ValidationError as error:
            first = error.errors()[0]
            wanted = first["msg"].removeprefix("Input ")
            what = f"{first['loc'][0]} {wanted}, not {first['input']!r}"
            raise InputError(what, path, again, code="invalid_value") from None

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))


# ------------------------------------------------- steps: (H,W) bool -> (H,W) bool


def smooth(mask: np.ndarray, decision: Decision, pixels: int) -> np.ndarray:
    """Majority filter: a pixel is lesion where more than half of the square window around it is.

    Outside the image there is no lesion. The window's side is the odd number nearest
    decision.smooth · √pixels. A window centred outside the mask's bounding box is never half full,
    so nothing is drawn outside that box.
    """
    window = 2 * int(decision.smooth * np.sqrt(pixels) / 2) + 1
    if window == 1 or not mask.any():
        return mask
    # sums of whole numbers: the answer does not depend on where the mask was cropped
    how = {"normalize": False, "borderType": cv2.BORDER_CONSTANT}
    lesion = cv2.boxFilter(mask.astype(np.uint8), cv2.CV_32S, (window, window), **how)
    return 2 * lesion > window * window


def fill_holes(mask: np.ndarray, decision: Decision, pixels: int) -> np.ndarray:
    """Background enclosed by lesion becomes lesion; what touches the image's edge is not enclosed.

    The background is 4-connected where the lesion is 8-connected: otherwise both would cross a
    diagonal.
    """
    if not decision.fill_holes or not mask.any():
        return mask
    background = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    _, numbers = cv2.connectedComponents(background, connectivity=4)
    return (numbers != numbers[0, 0])[1:-1, 1:-1]


def convex(mask: np.ndarray, decision: Decision, pixels: int) -> np.ndarray:
    """Every connected component becomes the convex hull of its pixels, as cv2.fillConvexPoly draws
    it: all pixels inside, and those that its edges pass within half a pixel.

    Hulls that meet become one component, which need not be convex.
    """
    if not decision.convex or not mask.any():
        return mask
    outlines, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    hulls = np.zeros(mask.shape, dtype=np.uint8)
    for outline in outlines:
        cv2.fillConvexPoly(hulls, cv2.convexHull(outline), 1)
    return hulls.view(bool)


STEPS = {"smooth": smooth, "fill_holes": fill_holes, "convex": convex}

# ------------- connected components: the last steps, known from their areas without drawing


def drop_components(mask: np.ndarray, decision: Decision, pixels: int) -> np.ndarray:
    """What decision.largest and decision.min_area leave of a mask (H,W) bool.

    `pixels`: of the whole image.
    """
    if not decision.largest and not decision.min_area:
        return mask
    numbers, areas = connected_components(mask)
    return keep_mask(decision, areas, count_larger(areas), pixels)[numbers]


def connected_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mask (H,W) bool -> the component's number for each pixel (H,W), 0 = background, and the area
    of each component (1+n), the background's set to 0; 8-connected."""
    pixels = mask.astype(np.uint8)
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    areas[0] = 0
    return numbers, areas


def count_larger(areas: np.ndarray) -> np.ndarray:
    """Areas (n) of one image's components -> how many of them are larger than each (n)."""
    return len(areas) - np.searchsorted(np.sort(areas), areas, side="right")


def keep_mask(
    decision: Decision, areas: np.ndarray, larger: np.ndarray, pixels: int | np.ndarray
) -> np.ndarray:
    """Which components (n) bool are kept: those of at least min_area of the image, and of these the
    `largest`. `larger` (n): how many components are larger.

    Equal areas are kept or dropped together. The order of the two rules does not matter: whatever
    is larger than a component that is large enough is large enough itself.
    """
    among_largest = (larger < decision.largest) | (decision.largest == 0)
    return (areas > 0) & (areas >= decision.min_area * pixels) & among_largest


def stretch(prob: np.ndarray, height: int, width: int) -> np.ndarray:
    """Probabilities (S,S) of the whole image -> (height, width) float32: linear interpolation, or
    area averages where the image is smaller than S."""
    return scaled(np.asarray(prob, dtype=np.float32), int(height), int(width))


def draw(prob: np.ndarray, decision: Decision, pixels: int) -> np.ndarray:
    """prob (H,W) float32 -> mask (H,W) bool by the threshold and STEPS.

    `pixels`: of the whole image, should prob be a crop of it.
    """
    mask = prob > np.float32(decision.threshold)
    for step in STEPS.values():
        mask = step(mask, decision, pixels)
    return mask


# ------------- rules between mask and class: (emptied (N) bool, label (N) int) -> the same


def empty_above(
    decision: Decision, emptied: np.ndarray, label: np.ndarray, probs: np.ndarray, empty: int
) -> tuple[np.ndarray, np.ndarray]:
    """The mask is emptied where the empty class is more probable than decision.empty_above."""
    if decision.empty_above >= 1:  # off: rounding may leave a probability a little over 1
        return emptied, label
    return emptied | (probs[:, empty] > np.float32(decision.empty_above)), label


def agree(
    decision: Decision, emptied: np.ndarray, label: np.ndarray, probs: np.ndarray, empty: int
) -> tuple[np.ndarray, np.ndarray]:
    """mask: it is emptied where the label is the empty class. label: it follows the mask, and is
    the empty class or the most probable of the others."""
    if decision.agree == "mask":
        return emptied | (label == empty), label
    if decision.agree == "label":
        others = probs.copy()
        others[:, empty] = -1
        with_lesion = np.where(label == empty, others.argmax(1), label)
        return emptied, np.where(emptied, empty, with_lesion)
    return emptied, label


RULES = {"empty_above": empty_above, "agree": agree}


def apply_rules(
    decision: Decision, emptied: np.ndarray | None, probs: np.ndarray | None, classes: Classes
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """emptied (N) bool: whose mask is empty after STEPS, or None; probs (N,C) or None -> whose mask
    is empty in the end (N) bool, and labels (N) int; None for an answer that is absent.

    With only one of the two answers, or without an empty class, there is nothing to compare: the
    mask stands, and the label is the most probable class.
    """
    label = None if probs is None else probs.argmax(1)
    if emptied is not None and label is not None and classes.empty is not None:
        empty = classes.names.index(classes.empty)
        for rule in RULES.values():
            emptied, label = rule(decision, emptied, label, probs, empty)
    return emptied, label


def apply(
    decision: Decision, predictions: Predictions, row: int, size: tuple[int, int], classes: Classes
) -> tuple[np.ndarray | None, int | None]:
    """The answer to one row of the predictions, an image of `size` (height, width): its mask
    (height, width) bool and its label int; None for an answer that is absent."""
    mask = emptied = probs = None
    if predictions.mask is not None:
        pixels = size[0] * size[1]
        mask = draw(stretch(predictions.mask[row], *size), decision, pixels)
        mask = drop_components(mask, decision, pixels)
        emptied = np.array([not mask.any()])
    if predictions.label is not None:
        probs = predictions.label[row][None]
    emptied, label = apply_rules(decision, emptied, probs, classes)
    if mask is not None and emptied[0]:
        mask = np.zeros_like(mask)
    return mask, None if label is None else int(label[0])
