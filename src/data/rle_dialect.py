"""How a train table's run lengths count: found out by decoding them against the images.

Lesions are compact, and few of them reach two opposite edges. So in the right order and from the right first pixel hardly a run goes on from one column
(or row) into the next; in the wrong order, or one pixel off where a lesion touches an edge, many do. Only square images look alike in both orders: there the
picture decides, since a lesion's inside differs from what is around it, and a transposed mask lies elsewhere.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from src.core.console import InputError, warn
from src.core.settings import Submission
from src.data import rle
from src.data.decode import size_of
from src.data.images import read_image

# what report.json knows of the run lengths -> the setting of submission: that decides it
SETTING = {"order": "order", "first": "first_pixel", "relative": "relative_starts"}
SIDES = (
    64,
    96,
    101,
    128,
    224,
    256,
    320,
    384,
    448,
    512,
    640,
    768,
    1024,
    1536,
    2048,
)  # of squares that contests resize masks to
LOOKED_AT = 60  # images whose pixels are compared with their masks
SURE, ENOUGH = 4.0, 6  # standard errors, and images, for pictures to decide
MARGIN = 3  # runs over the end of a line: one or two may be so by right
POOR = 0.05  # this share of runs over the end of a line: nothing fits well


def detect(
    texts: list[list[str]], images: list[Path], given: Submission, several: bool
) -> dict[str, Any]:
    """texts: the run lengths of each image, images: their files -> {order, first, relative, size, assumed: what could not be known, why}. Where the data leave
    it open, what `given` says stands; raises InputError where it says something else than they do. `several`: whether images have several rows, one a part."""
    runs_of: dict[tuple, list] = {}
    kept: list[tuple[list[str], Path, tuple[int, int]]] = []
    for its, file in zip(texts, images):
        if its and (size := _size(file)):
            kept.append((its, file, size))
    sizes = [k[2] for k in kept]
    ways = list(itertools.product(("column", "row"), (1, 0), (False, True)))
    flat = [(i, t) for i, (its, _, _) in enumerate(kept) for t in its]
    for first, relative in {w[1:] for w in ways}:
        runs_of[first, relative] = [_parsed(t, first, relative) for _, t in flat]
    owners = [i for i, _ in flat]
    best = _best(ways, runs_of, [sizes[i] for i in owners])
    size = None
    count = sum(len(r) for r in next(iter(runs_of.values())) if r is not None)
    if len(flat) > MARGIN and (
        best[0][0] > max(MARGIN, 0.05 * len(flat)) or best[0][1] > 0.02 * count
    ):  # they fit no image as it is: masks of one size for all?
        tried = [
            (ranked[0], n, ranked)
            for n in dict.fromkeys(
                [*([tuple(given.size)] if given.size else []), *((n, n) for n in SIDES)]
            )
            for ranked in [_best(ways, runs_of, [n] * len(flat))]
        ]
        found = min(tried, key=lambda t: t[0][:2])
        if found[0][0] <= min(0.05 * len(flat), best[0][0]) and found[0][1] < 0.25 * max(
            1, best[0][1]
        ):
            best, size = found[2], found[1]
    bad, crossing = best[0][:2]
    equal = [way for *cost, way in best if cost[0] == bad and cost[1] - crossing < MARGIN]
    others = [cost[1] for *cost, way in best if way not in equal]
    for at, name in enumerate(SETTING.values()):
        if (told := getattr(given, name)) is not None and count:
            if not (fit := [w for w in equal if w[at] == told]):
                raise InputError(
                    f"submission.{name} is {told}, but the run lengths of the train "
                    f"table count by {name} {equal[0][at]}",
                    "competition.yaml",
                    f"Leave submission.{name} out, or correct it",
                    code="invalid_value",
                )
            equal = fit
    assumed, why = (
        [],
        f"{crossing} of {count} runs go on from one line into the next"
        + (f", {others[0]} in the next best way" if others else ""),
    )
    if len({w[0] for w in equal}) > 1:
        order, sure = _by_pictures(kept, equal, size)
        equal = [w for w in equal if w[0] == order]
        why += "; the order by the pictures under the masks" if sure else ""
        assumed += [] if sure else ["order"]
    if len({w[2] for w in equal}) > 1:  # masks of one run each: both mean the same
        equal = [w for w in equal if not w[2]]
    if len({w[1] for w in equal}) > 1:
        assumed.append("first")
        equal = [
            w for w in equal if w[1] == (0 if w[2] else 1)
        ]  # SIIM-ACR, the one known contest of relative starts, counts from 0; the others mostly from 1
    order, first, relative = equal[0]
    if crossing > POOR * count and len(flat) > MARGIN:
        warn(f"no way of counting fits the run lengths of the train table well: {why}")
    return {
        "order": order,
        "first": first,
        "relative": relative,
        "size": list(size) if size else None,
        "several": several,
        "assumed": assumed,
        "why": why,
    }


def _size(file: Path) -> tuple[int, int] | None:
    try:
        return size_of(file)
    except Exception:
        try:
            return read_image(file).shape[:2]
        except ValueError:
            return None  # prepare names it


def _parsed(text: str, first: int, relative: bool) -> np.ndarray | None:
    try:
        return rle.parse(text, first, relative)
    except ValueError:
        return None


def _best(ways: list, runs_of: dict, sizes: list[tuple[int, int]]) -> list[tuple[int, int, tuple]]:
    """(texts that fit no mask of their image, runs that cross into the next line, way), the best first; equal ones in the order of `ways`."""
    costs = []
    for way in ways:
        bad = crossing = 0
        for runs, (height, width) in zip(runs_of[way[1:]], sizes):
            if runs is None or not len(runs):
                continue
            ends, line = runs.sum(1), height if way[0] == "column" else width
            if runs[0, 0] < 0 or ends[-1] > height * width or (runs[1:, 0] < ends[:-1]).any():
                bad += 1
            else:
                crossing += int((runs[:, 0] // line != (ends - 1) // line).sum())
        costs.append((bad, crossing, way))
    return sorted(costs, key=lambda c: c[:2])


def _by_pictures(kept: list, equal: list[tuple], size: tuple[int, int] | None) -> tuple[str, bool]:
    """The order in which masks lie on what differs from its surroundings, and whether the difference is beyond chance."""
    gains = []
    first, relative = equal[0][1:]
    for its, file, (height, width) in kept[:: max(1, len(kept) // LOOKED_AT)]:
        try:
            picture = cv2.GaussianBlur(read_image(file).astype(np.float32), (0, 0), 1.5)
        except ValueError:
            continue
        shape = size or (height, width)
        picture = cv2.resize(picture, shape[::-1]) if picture.shape != shape else picture
        slope = np.hypot(
            cv2.Sobel(picture, cv2.CV_32F, 1, 0), cv2.Sobel(picture, cv2.CV_32F, 0, 1)
        ) / (picture.std() + 1e-6)
        found = {}
        for order in ("column", "row"):
            mask = np.zeros(shape, np.uint8)
            for text in its:
                runs = _parsed(text, first, relative)
                try:
                    mask |= rle.from_runs(runs, *shape, order)
                except (ValueError, TypeError):
                    continue
            edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).astype(
                bool
            )
            around = cv2.dilate(mask, np.ones((15, 15), np.uint8)).astype(bool) & ~mask.astype(bool)
            if edge.any() and around.any():
                contrast = abs(picture[mask.astype(bool)].mean() - picture[around].mean()) / (
                    picture.std() + 1e-6
                )
                found[order] = float(slope[edge].mean()) + contrast
        if len(found) == 2:
            gains.append(found["column"] - found["row"])
    gains = np.array(gains)
    sure = len(gains) >= ENOUGH and bool(
        abs(gains.mean()) > SURE * gains.std(ddof=1) / np.sqrt(len(gains))
    )
    return ("row" if sure and gains.mean() < 0 else "column"), sure
