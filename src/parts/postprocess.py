"""From probabilities to an answer: one mask and one class an image, by the few numbers of a Decision.

The order is that of Decision's fields: a probability map is cut at the threshold, STEPS draw on the mask, small parts are dropped, RULES compare mask and
class. To add a step: a function, a line in STEPS, a field of the same name in Decision and a list of values in the config's `evaluate`; the search
(scoring/tuning.py) tries it from then on. No step may draw outside the box that bounds its mask: the search draws within that box only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np

from src.core.console import InputError, command, nearest, short
from src.core.disk import read_json, write_json
from src.core.settings import Classes, Evaluate
from src.data.images import scaled

AGREE = ("no", "mask", "label")


@dataclass(frozen=True)
class Decision:
    threshold: float = 0.5  # a pixel is lesion where its probability exceeds this
    smooth: float = (
        0.0  # side of the majority filter's window, as a share of the image's side √(H·W); 0: off
    )
    fill_holes: bool = False
    convex: bool = False  # every connected part becomes its convex hull
    largest: int = 0  # only so many parts stay, the largest; 0: all
    min_area: float = 0.0  # share of the image's area: smaller connected parts are dropped
    empty_above: float = 1.0  # the mask is emptied where P(empty class) exceeds this; 1: never
    agree: str = "no"  # which answer gives way where mask and class contradict each other: no (both stand), mask, label

    def __post_init__(self):
        for name in ("threshold", "smooth", "min_area", "empty_above"):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value <= 1
            ):
                raise InputError(
                    f"{name} is a number from 0 to 1, not {value!r}", code="invalid_value"
                )
        for name in ("fill_holes", "convex"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(
                    f"{name} is true or false, not {getattr(self, name)!r}", code="invalid_value"
                )
        if (
            isinstance(self.largest, bool)
            or not isinstance(self.largest, int)
            or not 0 <= self.largest < 10**9
        ):
            raise InputError(
                f"largest is a whole number, 0 or more, not {self.largest!r}", code="invalid_value"
            )
        if self.agree not in AGREE:
            raise InputError(
                f"agree is one of {', '.join(AGREE)}, not {self.agree!r}", code="invalid_value"
            )

    @classmethod
    def untuned(cls, grid: Evaluate) -> Decision:
        """The first value of each list of the grid."""
        return cls(**{f.name: getattr(grid, f.name)[0] for f in fields(cls)})

    @classmethod
    def load(cls, path: Path) -> Decision:
        """Users edit this file: raises InputError with the key that is wrong, unknown or missing."""
        if not path.is_file():
            raise InputError(
                "no decision here",
                short(path),
                f"Make it with {command('evaluate')}",
                code="no_decision",
            )
        names, again = (
            [f.name for f in fields(cls)],
            f"Make it again with {command('evaluate', '--force')}",
        )
        try:
            found = read_json(path)
        except (OSError, RecursionError, InputError):
            todo = "Correct it, or make it again with " + command("evaluate", "--force")
            raise InputError(
                "not readable as JSON", short(path), todo, code="damaged_json"
            ) from None
        if not isinstance(found, dict):
            raise InputError(
                "a decision is a list of key: value pairs", short(path), again, code="damaged_json"
            )
        for key in found:
            if key not in names:
                raise InputError(
                    f"unknown key '{key}'", short(path), nearest(key, names), code="decision_key"
                )
        if absent := [n for n in names if n not in found]:
            raise InputError(f"{absent[0]} is missing", short(path), again, code="decision_key")
        try:
            return cls(**found)
        except InputError as error:
            raise InputError(str(error).rstrip("."), short(path), again, code=error.code) from None

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))


# ------------------------------------------------------------------------------------------------------- pixels: (H,W) bool -> (H,W) bool


def smooth(mask: np.ndarray, decision: Decision, pixels: int) -> np.ndarray:
    """Majority filter: a pixel is lesion where more than half of the square window around it is; outside of the image there is none. The window's side
    is the odd number nearest decision.smooth · √pixels. A window centred outside the mask's bounding box is never half full: no step out of the box."""
    window = 2 * int(decision.smooth * np.sqrt(pixels) / 2) + 1
    if window == 1 or not mask.any():
        return mask
    # sums of whole numbers: the answer does not depend on where the mask was cropped
    lesion = cv2.boxFilter(
        np.ascontiguousarray(mask).view(np.uint8),
        cv2.CV_32S,
        (window, window),
        normalize=False,
        borderType=cv2.BORDER_CONSTANT,
    )
    return 2 * lesion > window * window


def fill_holes(mask: np.ndarray, decision: Decision, pixels: int) -> np.ndarray:
    """Background that is enclosed by lesion becomes lesion; what touches the image's edge is not enclosed."""
    if not decision.fill_holes or not mask.any():
        return mask
    background = cv2.copyMakeBorder(
        (~mask).view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1
    )
    _, parts = cv2.connectedComponents(
        background, connectivity=4
    )  # 4 for the background where the lesion has 8, else both would cross a diagonal
    return (parts != parts[0, 0])[1:-1, 1:-1]


def convex(mask: np.ndarray, decision: Decision, pixels: int) -> np.ndarray:
    """Every connected part becomes the convex hull of its pixels, as cv2.fillConvexPoly draws it: all pixels within, and those that its edges pass within
    half a pixel. Hulls that meet become one part, which need not be convex."""
    if not decision.convex or not mask.any():
        return mask
    hulls = np.zeros(mask.shape, dtype=np.uint8)
    for outline in cv2.findContours(
        np.ascontiguousarray(mask).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )[0]:
        cv2.fillConvexPoly(hulls, cv2.convexHull(outline), 1)
    return hulls.view(bool)


STEPS = {"smooth": smooth, "fill_holes": fill_holes, "convex": convex}

# ------------------------------------------------------------------- connected parts: the last steps, known from the parts' areas without drawing


def drop_parts(mask: np.ndarray, decision: Decision, pixels: int) -> np.ndarray:
    """The connected parts that decision.largest and decision.min_area leave of a mask (H,W) bool. `pixels`: of the whole image."""
    if not decision.largest and not decision.min_area:
        return mask
    parts, areas = components(mask)
    return keep_mask(decision, areas, larger(areas), pixels)[parts]


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mask (H,W) bool -> part number of each pixel (H,W), 0 = background, and area of each part (1+n), the background's set to 0; 8-connected."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=8
    )
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    areas[0] = 0
    return parts, areas


def larger(areas: np.ndarray) -> np.ndarray:
    """Areas (n) of one image's parts -> how many of them are larger than each (n)."""
    return len(areas) - np.searchsorted(np.sort(areas), areas, side="right")


def keep_mask(
    decision: Decision, areas: np.ndarray, ahead: np.ndarray, pixels: int | np.ndarray
) -> np.ndarray:
    """Which parts (n) stay: those of at least min_area of the image, and of these the `largest`, so many. ahead (n): how many parts are larger; areas that
    are equal stay or go together. The order of the two does not matter: what is larger than a part that is large enough is so itself."""
    return (
        (areas > 0)
        & (areas >= decision.min_area * pixels)
        & ((ahead < decision.largest) | (decision.largest == 0))
    )


def stretch(prob: np.ndarray, height: int, width: int) -> np.ndarray:
    """Probabilities (S,S) of the whole image -> (height, width) float32: linear, or averaged over areas where the image is smaller than S."""
    return scaled(np.asarray(prob, dtype=np.float32), int(height), int(width))


def draw(prob: np.ndarray, decision: Decision, pixels: int) -> np.ndarray:
    """prob (H,W) float32 -> mask (H,W) bool by the threshold and STEPS. `pixels`: of the whole image, should prob be a part."""
    mask = prob > np.float32(decision.threshold)
    for step in STEPS.values():
        mask = step(mask, decision, pixels)
    return mask


# ------------------------------------------------- rules between mask and class, for N images at once: (emptied (N) bool, label (N) int) -> the same


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
    """mask: it is emptied where the label is the empty class. label: it follows the mask, empty class or the most probable of the others."""
    if decision.agree == "mask":
        return emptied | (label == empty), label
    if decision.agree == "label":
        lesion = probs.copy()
        lesion[:, empty] = -1
        return emptied, np.where(emptied, empty, np.where(label == empty, lesion.argmax(1), label))
    return emptied, label


RULES = {"empty_above": empty_above, "agree": agree}


def apply_rules(
    decision: Decision,
    emptied: np.ndarray | None,
    probs: np.ndarray | None,
    classes: Classes,
):
    """emptied (N) bool: whose mask is empty after STEPS, or None; probs (N,C) or None -> which masks are empty in the end (N), and labels (N) int, or None.

    With only one of the two answers, or no empty class, there is nothing to compare: the mask stands, the label is the most probable class.
    """
    label = None if probs is None else probs.argmax(1)
    if emptied is not None and label is not None and classes.empty is not None:
        for rule in RULES.values():
            emptied, label = rule(
                decision, emptied, label, probs, classes.names.index(classes.empty)
            )
    return emptied, label


def apply(
    decision: Decision,
    prob: np.ndarray | None,
    label_probs: np.ndarray | None,
    height: int,
    width: int,
    classes: Classes,
):
    """prob (S,S) or None, label_probs (C) or None -> mask (height, width) bool or None, label int or None."""
    mask, pixels = None, height * width
    if prob is not None:
        mask = drop_parts(draw(stretch(prob, height, width), decision, pixels), decision, pixels)
    emptied = None if mask is None else np.array([not mask.any()])
    emptied, label = apply_rules(
        decision, emptied, None if label_probs is None else label_probs[None], classes
    )
    if mask is not None and emptied[0]:
        mask = np.zeros_like(mask)
    return mask, None if label is None else int(label[0])
