"""From probabilities to an answer: one mask and one class an image, by the few numbers of a Decision.

STEPS turn a probability map into a mask, pixel by pixel; RULES then compare mask and class. To add a step: a function, a line in STEPS, a field in
Decision and a list of values in the config's `evaluate`; the search (parts/search.py) tries it from then on. `min_area` stays the last step: the
search knows what it does to a mask without drawing it.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np

from src.core.config import Evaluate
from src.core.console import InputError, command, nearest, short
from src.core.freshness import read_json, write_json
from src.core.images import scaled

AGREE = ("no", "mask", "label")


@dataclass(frozen=True)
class Decision:
    threshold: float = 0.5  # a pixel is lesion where its probability exceeds this
    fill_holes: bool = False
    min_area: float = 0.0  # share of the image's area: smaller connected parts are dropped
    empty_above: float = 1.0  # the mask is emptied where P(empty class) exceeds this; 1: never
    agree: str = "no"  # which answer gives way where mask and class contradict each other: no (both stand), mask, label

    def __post_init__(self):
        for name in ("threshold", "min_area", "empty_above"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise InputError(f"{name} is a number from 0 to 1, not {value!r}")
        if not isinstance(self.fill_holes, bool):
            raise InputError(f"fill_holes is true or false, not {self.fill_holes!r}")
        if self.agree not in AGREE:
            raise InputError(f"agree is one of {', '.join(AGREE)}, not {self.agree!r}")

    @classmethod
    def untuned(cls, grid: Evaluate) -> "Decision":
        """The first value of each list of the grid."""
        return cls(**{f.name: getattr(grid, f.name)[0] for f in fields(cls)})

    @classmethod
    def load(cls, path: Path) -> "Decision":
        """Users edit this file: raises InputError with the key that is wrong, unknown or missing."""
        if not path.is_file():
            raise InputError("no decision here", short(path), f"Make it with {command('evaluate')}")
        found, names = read_json(path), [f.name for f in fields(cls)]
        if not isinstance(found, dict):
            raise InputError("a decision is a list of key: value pairs", short(path))
        for key in found:
            if key not in names:
                raise InputError(f"unknown key '{key}'", short(path), nearest(key, names))
        if absent := [n for n in names if n not in found]:
            raise InputError(f"{absent[0]} is missing", short(path), f"Make it again with {command('evaluate', '--force')}")
        try:
            return cls(**found)
        except InputError as error:
            raise InputError(str(error).rstrip("."), short(path)) from None

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))


# ------------------------------------------------------------------------------------------------------- pixels: (H,W) bool -> (H,W) bool


def fill_holes(mask: np.ndarray, decision: Decision, pixels: int) -> np.ndarray:
    """Background that is enclosed by lesion becomes lesion; what touches the image's edge is not enclosed."""
    if not decision.fill_holes or not mask.any():
        return mask
    background = cv2.copyMakeBorder((~mask).view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    _, parts = cv2.connectedComponents(background, connectivity=4)  # 4 for the background where the lesion has 8, else both would cross a diagonal
    return (parts != parts[0, 0])[1:-1, 1:-1]


def drop_small(mask: np.ndarray, decision: Decision, pixels: int) -> np.ndarray:
    """Connected parts smaller than decision.min_area of the image's `pixels` go."""
    if not decision.min_area:
        return mask
    parts, areas = components(mask)
    return large_enough(areas, decision.min_area, pixels)[parts]


STEPS = {"fill_holes": fill_holes, "min_area": drop_small}


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mask (H,W) bool -> part number of each pixel (H,W), 0 = background, and area of each part (1+n), the background's set to 0; 8-connected."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    areas[0] = 0
    return parts, areas


def large_enough(areas: np.ndarray, min_area: float, pixels: int | np.ndarray) -> np.ndarray:
    return (areas > 0) & (areas >= min_area * pixels)


def stretch(prob: np.ndarray, height: int, width: int) -> np.ndarray:
    """Probabilities (S,S) of the whole image -> (height, width) float32: linear, or averaged over areas where the image is smaller than S."""
    return scaled(np.asarray(prob, dtype=np.float32), int(height), int(width))


def draw(prob: np.ndarray, decision: Decision, pixels: int, skip: str = "") -> np.ndarray:
    """prob (H,W) float32 -> mask (H,W) bool by the threshold and STEPS, the one called `skip` left out. `pixels`: of the whole image, should prob be a part."""
    mask = prob > np.float32(decision.threshold)
    for name, step in STEPS.items():
        if name != skip:
            mask = step(mask, decision, pixels)
    return mask


# ------------------------------------------------- rules between mask and class, for N images at once: (emptied (N) bool, label (N) int) -> the same


def empty_above(decision: Decision, emptied: np.ndarray, label: np.ndarray, probs: np.ndarray, empty: int) -> tuple[np.ndarray, np.ndarray]:
    """The mask is emptied where the empty class is more probable than decision.empty_above."""
    if decision.empty_above >= 1:  # off: rounding may leave a probability a little over 1
        return emptied, label
    return emptied | (probs[:, empty] > np.float32(decision.empty_above)), label


def agree(decision: Decision, emptied: np.ndarray, label: np.ndarray, probs: np.ndarray, empty: int) -> tuple[np.ndarray, np.ndarray]:
    """mask: it is emptied where the label is the empty class. label: it follows the mask, empty class or the most probable of the others."""
    if decision.agree == "mask":
        return emptied | (label == empty), label
    if decision.agree == "label":
        lesion = probs.copy()
        lesion[:, empty] = -1
        return emptied, np.where(emptied, empty, np.where(label == empty, lesion.argmax(1), label))
    return emptied, label


RULES = {"empty_above": empty_above, "agree": agree}


def judge(decision: Decision, emptied: np.ndarray | None, probs: np.ndarray | None, classes: list[str], empty_class: str | None):
    """emptied (N) bool: whose mask is empty after STEPS, or None; probs (N,C) or None -> which masks are empty in the end (N), and labels (N) int, or None.

    With only one of the two answers, or no empty class, there is nothing to compare: the mask stands, the label is the most probable class.
    """
    label = None if probs is None else probs.argmax(1)
    if emptied is not None and label is not None and empty_class is not None:
        for rule in RULES.values():
            emptied, label = rule(decision, emptied, label, probs, classes.index(empty_class))
    return emptied, label


def apply(decision: Decision, prob: np.ndarray | None, label_probs: np.ndarray | None, height: int, width: int, classes: list[str], empty_class: str | None):
    """prob (S,S) or None, label_probs (C) or None -> mask (height, width) bool or None, label int or None."""
    mask = None if prob is None else draw(stretch(prob, height, width), decision, height * width)
    emptied = None if mask is None else np.array([not mask.any()])
    emptied, label = judge(decision, emptied, None if label_probs is None else label_probs[None], classes, empty_class)
    if mask is not None and emptied[0]:
        mask = np.zeros_like(mask)
    return mask, None if label is None else int(label[0])
