"""Run lengths: a mask as (start, length) pairs.

In memory 0-based and column-major (top to bottom, then left to right); as text in a contest's
dialect.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.core.console import InputError, command
from src.core.disk import replacing
from src.data.files import MOST_PIXELS

ARRAYS = ("ids", "sizes", "offsets", "runs")  # of truth.npz
DIGITS = 9  # of a pixel's number: as many as any image has, and no sum of them overflows


def to_runs(mask: np.ndarray, order: str = "column") -> np.ndarray:
    """mask (H,W) of two values -> runs (n,2) int64: 0-based start and length; order: 'column' or
    'row'."""
    flat = np.asarray(mask, dtype=bool).ravel("F" if order == "column" else "C")
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flat, [False])).astype(np.int8)))
    return np.stack([edges[::2], edges[1::2] - edges[::2]], axis=1)


def from_runs(runs: np.ndarray, height: int, width: int, order: str = "column") -> np.ndarray:
    """runs (n,2) -> mask (H,W) bool. Raises ValueError for runs that are unsorted, overlapping or
    outside the image."""
    runs = np.asarray(runs, dtype=np.int64).reshape(-1, 2)
    starts, ends = runs[:, 0], runs.sum(1)
    if height * width > MOST_PIXELS:
        raise ValueError(f"a mask of {height}x{width} pixels is larger than any image may be")
    if len(runs) and (starts[0] < 0 or ends[-1] > height * width or (runs[:, 1] < 1).any()):
        raise ValueError(f"a run lies outside the image of {height}x{width} pixels")
    if (starts[1:] < ends[:-1]).any():
        raise ValueError("runs overlap or are not sorted")
    edges = np.zeros(height * width + 1, dtype=np.int8)
    np.add.at(edges, starts, 1)
    np.add.at(edges, ends, -1)
    flat = np.cumsum(edges[:-1], dtype=np.int8).astype(bool)
    return flat.reshape((height, width), order="F" if order == "column" else "C")


def encode(
    mask: np.ndarray,
    order: str = "column",
    first: int = 1,
    empty: str = "-1",
    relative: bool = False,
) -> str:
    """mask (H,W) -> 'start length start length …', the first pixel being number `first`; `empty`
    for a mask without lesion. relative: every start but the first is counted from the end of the
    run before."""
    runs = to_runs(mask, order)
    if not len(runs):
        return empty
    if relative:
        runs[1:, 0] -= runs.sum(1)[:-1]
    runs[0 if relative else slice(None), 0] += first
    return " ".join(map(str, runs.ravel().tolist()))


def parse(text: str, first: int = 1, relative: bool = False) -> np.ndarray:
    """Text -> runs (n,2), 0-based and absolute. Raises ValueError for text that is not pairs of
    whole numbers."""
    words = text.split()
    if len(words) % 2 or not all(w.isascii() and w.isdigit() for w in words):
        raise ValueError("expected pairs of whole numbers, start and length")
    if any(len(w) > DIGITS and len(w.lstrip("0")) > DIGITS for w in words):
        raise ValueError(f"a number of more than {DIGITS} digits lies outside of every image")
    runs = np.array(words, dtype=np.int64).reshape(-1, 2)
    if relative:
        runs[:1, 0] -= first
        runs[:, 0] = np.cumsum(runs.sum(1)) - runs[:, 1]
    else:
        runs[:, 0] -= first
    return runs


def decode(
    text: str,
    height: int,
    width: int,
    order: str = "column",
    first: int = 1,
    empty: str = "-1",
    relative: bool = False,
) -> np.ndarray:
    """The inverse of `encode`: mask (H,W) bool. Raises ValueError for text that is not run lengths
    of such an image."""
    text = str(text).strip()
    if text in (empty, ""):
        return np.zeros((height, width), dtype=bool)
    return from_runs(parse(text, first, relative), height, width, order)


@dataclass
class Truth:
    """The train masks at original size, held as runs: a few MB where the pixels would be
    gigabytes."""

    ids: np.ndarray  # (N) str
    sizes: np.ndarray  # (N,2) height, width
    offsets: np.ndarray  # (N+1): runs[offsets[i]:offsets[i+1]] are image i's
    runs: np.ndarray  # (M,2)

    def __post_init__(self):
        self.row = {str(k): i for i, k in enumerate(self.ids)}

    @classmethod
    def build(
        cls, ids: Iterable[str], sizes: Iterable[tuple[int, int]], runs: list[np.ndarray]
    ) -> Truth:
        """runs: (n,2) of each image."""
        return cls(
            np.asarray(list(ids), dtype=str),
            np.asarray(list(sizes), dtype=np.int64).reshape(-1, 2),
            np.cumsum([0, *map(len, runs)]),
            np.concatenate([np.zeros((0, 2), np.int64), *runs]).astype(np.int32),
        )

    def save(self, path: Path) -> None:
        arrays = {name: getattr(self, name) for name in ARRAYS}
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Raises InputError for a file that is damaged."""
        try:
            with np.load(path) as file:
                self = cls(*(file[name] for name in ARRAYS))
            self._check()
            return self
        except Exception as error:  # zipfile, numpy and zlib each raise their own
            what = f"not readable as the true masks: {error}"
            todo = f"Make it again with {command('prepare', '--force')}"
            raise InputError(what, path, todo, code="truth_damaged") from None

    def _check(self) -> None:
        """Raises ValueError, TypeError or IndexError for arrays that do not belong together."""
        n, ends = len(self.ids), self.offsets
        shapes = [a.shape for a in (self.ids, self.sizes, ends, self.runs)]
        if shapes != [(n,), (n, 2), (n + 1,), (len(self.runs), 2)]:
            raise ValueError("its arrays do not fit each other")
        if [a.dtype.kind for a in (self.ids, self.sizes, ends, self.runs)] != list("Uiii"):
            raise ValueError("its arrays are of another kind")
        no_sizes = (self.sizes < 1).any() or (self.sizes > 2**16).any()
        if ends[0] != 0 or ends[-1] != len(self.runs) or (np.diff(ends) < 0).any() or no_sizes:
            raise ValueError("its numbers contradict each other")
        starts, lengths = self.runs.astype(np.int64).T
        stops, image = starts + lengths, np.repeat(np.arange(n), np.diff(ends))
        outside = (starts < 0) | (lengths < 1) | (stops > self.sizes.prod(1)[image])
        overlap = (starts[1:] < stops[:-1]) & (image[1:] == image[:-1])
        if outside.any() or overlap.any():
            raise ValueError("a run lies outside of its image, or overlaps another")

    def mask(self, id: str) -> np.ndarray:
        """The mask of one image, (H,W) bool, at original size."""
        i = self.row[id]
        return from_runs(self.runs[self.offsets[i] : self.offsets[i + 1]], *self.sizes[i])

    def subset(self, ids: Iterable[str]) -> list[np.ndarray]:
        return [self.mask(str(i)) for i in ids]
