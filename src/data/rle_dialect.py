"""The dialect of a train table's run lengths, found by decoding them against the images.

Lesions are compact, and few of them reach two opposite edges. So in the right order and from the
right first pixel hardly a run goes on from one column (or row) into the next; in the wrong order,
or one pixel off where a lesion touches an edge, many do. Only square images look alike in both
orders: there the picture decides, since a lesion's inside differs from what is around it, and a
transposed mask lies elsewhere.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import product, starmap
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from src.core.console import InputError, warn
from src.core.settings import Submission
from src.data import rle
from src.data.columns import RUN_SETTINGS
from src.data.decode import size_of
from src.data.images import read_image

# of squares that contests resize masks to
SIDES = (64, 96, 101, 128, 224, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048)
LOOKED_AT = 60  # images whose pixels are compared with their masks
SURE, ENOUGH = 4.0, 6  # standard errors, and images, for pictures to decide
MARGIN = 3  # runs over the end of a line: one or two may be so by right
POOR = 0.05  # this share of runs over the end of a line: nothing fits well


class Dialect(NamedTuple):
    """How the pixels are counted; named as in report.json."""

    order: str  # 'column' or 'row'
    first: int  # the number of the first pixel
    relative: bool  # every start but the first counts from the end of the run before


DIALECTS = list(starmap(Dialect, product(("column", "row"), (1, 0), (False, True))))


class Fit(NamedTuple):
    """How badly a dialect fits all run lengths."""

    bad: int  # texts that fit no mask of their image
    crossing: int  # runs that go on from one column or row into the next
    dialect: Dialect


class Masks(NamedTuple):
    """The run lengths of one image."""

    texts: list[str]
    image: Path
    size: tuple[int, int]  # of the image: height, width


# (first, relative) -> the runs of each text, None where it is not run lengths
Parsed = dict[tuple[int, bool], list[np.ndarray | None]]


def detect(
    texts: list[list[str]], images: list[Path], given: Submission, several: bool
) -> dict[str, Any]:
    """texts: the run lengths of each image; images: their files; several: whether images have
    several rows, one a lesion -> {order, first, relative, size, several, assumed, why}.

    assumed: what the data leave open; there what `given` has counts, or else what is usual. Raises
    InputError where `given` contradicts the data.
    """
    masks = _of_readable_images(texts, images)
    flat = [text for m in masks for text in m.texts]
    parsed = {
        (first, relative): [_parsed(text, first, relative) for text in flat]
        for first, relative in product((1, 0), (False, True))
    }
    count = sum(len(runs) for runs in parsed[1, False] if runs is not None)
    fits = _fits(parsed, [m.size for m in masks for _ in m.texts])
    best, size = fits[0], None
    misfit = best.bad > max(MARGIN, 0.05 * len(flat)) or best.crossing > 0.02 * count
    if misfit and len(flat) > MARGIN:
        fits, size = _fits_of_one_size(parsed, fits, given.size)
        best = fits[0]
    equal = [f.dialect for f in fits if f.bad == best.bad and f.crossing - best.crossing < MARGIN]
    others = [f.crossing for f in fits if f.dialect not in equal]
    why = f"{best.crossing} of {count} runs go on from one line into the next"
    if others:
        why += f", {others[0]} by the next best dialect"
    if count:
        equal = _as_given(equal, given)
    assumed = []
    if _is_open(equal, "order"):
        order, sure = _order_by_pictures(masks, equal[0], size)
        equal = [d for d in equal if d.order == order]
        if sure:
            why += "; the order by the pictures under the masks"
        else:
            assumed.append("order")
    if _is_open(equal, "relative"):  # masks of one run each: both mean the same
        equal = [d for d in equal if not d.relative]
    if _is_open(equal, "first"):
        assumed.append("first")
        # SIIM-ACR, the one known contest of relative starts, counts from 0; others mostly from 1
        equal = [d for d in equal if d.first == (0 if d.relative else 1)]
    if best.crossing > POOR * count and len(flat) > MARGIN:
        warn(f"no dialect fits the run lengths of the train table well: {why}")
    more = {"size": list(size) if size else None, "several": several, "assumed": assumed}
    return equal[0]._asdict() | more | {"why": why}


def _of_readable_images(texts: list[list[str]], images: list[Path]) -> list[Masks]:
    """Those that have any; prepare names the images that cannot be read."""
    masks = []
    for its, file in zip(texts, images):
        size = _size(file) if its else None
        if size:
            masks.append(Masks(its, file, size))
    return masks


def _size(file: Path) -> tuple[int, int] | None:
    with suppress(Exception):  # whatever Pillow raises; a DICOM file is not one of its kinds
        return size_of(file)
    with suppress(ValueError):
        return read_image(file).shape[:2]
    return None


def _parsed(text: str, first: int, relative: bool) -> np.ndarray | None:
    with suppress(ValueError):
        return rle.parse(text, first, relative)
    return None


# ------------------------------------------------------------------------------- by where runs end


def _fits(parsed: Parsed, sizes: list[tuple[int, int]]) -> list[Fit]:
    """Of each dialect for masks of these sizes (height, width), the best first; equal ones in the
    order of DIALECTS."""
    fits = []
    for dialect in DIALECTS:
        bad = crossing = 0
        for runs, (height, width) in zip(parsed[dialect[1:]], sizes):
            if runs is None or not len(runs):
                continue
            ends, line = runs.sum(1), height if dialect.order == "column" else width
            if runs[0, 0] < 0 or ends[-1] > height * width or (runs[1:, 0] < ends[:-1]).any():
                bad += 1
            else:
                crossing += int((runs[:, 0] // line != (ends - 1) // line).sum())
        fits.append(Fit(bad, crossing, dialect))
    return sorted(fits, key=lambda fit: fit[:2])


def _fits_of_one_size(
    parsed: Parsed, own: list[Fit], given: tuple[int, int] | None
) -> tuple[list[Fit], tuple[int, int] | None]:
    """(fits, size) where masks of one size for all images fit far better than masks of the images'
    own sizes; else (own, None)."""
    count = len(parsed[1, False])
    sizes = dict.fromkeys([*([tuple(given)] if given else []), *zip(SIDES, SIDES)])
    tried = {size: _fits(parsed, [size] * count) for size in sizes}
    size = min(tried, key=lambda size: tried[size][0][:2])
    best = tried[size][0]
    fewer_bad = best.bad <= min(0.05 * count, own[0].bad)
    if fewer_bad and best.crossing < 0.25 * max(1, own[0].crossing):
        return tried[size], size
    return own, None


def _is_open(dialects: list[Dialect], name: str) -> bool:
    return len({getattr(d, name) for d in dialects}) > 1


def _as_given(equal: list[Dialect], given: Submission) -> list[Dialect]:
    """Those of the equally good dialects that are as the settings say; raises InputError where
    there are none."""
    for name, setting in RUN_SETTINGS.items():
        value = getattr(given, setting)
        fitting = [d for d in equal if value is None or getattr(d, name) == value]
        if not fitting:
            raise InputError(
                f"submission.{setting} is {value}, but the run lengths of the train table have "
                f"{setting} {getattr(equal[0], name)}",
                "competition.yaml",
                f"Leave submission.{setting} out, or correct it",
                code="invalid_value",
            )
        equal = fitting
    return equal


# ---------------------------------------------------------------------- by what is under the masks


def _order_by_pictures(
    masks: list[Masks], dialect: Dialect, size: tuple[int, int] | None
) -> tuple[str, bool]:
    """The order in which masks lie on what differs from its surroundings, and whether the
    difference is beyond chance."""
    gains = []
    for its in masks[:: max(1, len(masks) // LOOKED_AT)]:
        try:
            picture = cv2.GaussianBlur(read_image(its.image).astype(np.float32), (0, 0), 1.5)
        except ValueError:
            continue
        shape = size or its.size
        if picture.shape != shape:
            picture = cv2.resize(picture, shape[::-1])
        column, row = (
            _contrast(picture, _drawn(its.texts, dialect._replace(order=order), shape))
            for order in ("column", "row")
        )
        if column is not None and row is not None:
            gains.append(column - row)
    if len(gains) < ENOUGH:
        return "column", False
    mean, error = np.mean(gains), np.std(gains, ddof=1) / np.sqrt(len(gains))
    sure = bool(abs(mean) > SURE * error)
    return ("row" if sure and mean < 0 else "column"), sure


def _drawn(texts: list[str], dialect: Dialect, shape: tuple[int, int]) -> np.ndarray:
    """The union (H,W) bool of the masks that fit."""
    union = np.zeros(shape, bool)
    for text in texts:
        with suppress(ValueError):
            union |= rle.decode(text, *shape, dialect.order, dialect.first, "", dialect.relative)
    return union


def _contrast(picture: np.ndarray, mask: np.ndarray) -> float | None:
    """How steep the picture (H,W) is at the mask's edge, and how much the mask's inside differs
    from what is around it, in standard deviations; None for a mask without an edge or surroundings.
    """
    plane, spread = mask.astype(np.uint8), picture.std() + 1e-6
    edge = cv2.morphologyEx(plane, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).astype(bool)
    around = cv2.dilate(plane, np.ones((15, 15), np.uint8)).astype(bool) & ~mask
    if not edge.any() or not around.any():
        return None
    slope = np.hypot(cv2.Sobel(picture, cv2.CV_32F, 1, 0), cv2.Sobel(picture, cv2.CV_32F, 0, 1))
    return float(slope[edge].mean() + abs(picture[mask].mean() - picture[around].mean())) / spread
