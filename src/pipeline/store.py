"""Pixel stores: the images as the networks see them, filtered and resized once, in .npy files.

`prepare` writes those of the train and test images, `infer` those of test images alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.core.console import InputError, progress
from src.core.disk import replacing
from src.core.settings import Competition, Experiment
from src.data.dataset import Item, find_test
from src.data.images import read_image, resize
from src.data.problems import Problems
from src.parts import filters
from src.submission.order import sample_order


@dataclass
class PixelStore:
    """Images, (N,S,S) or (N,S,S,3) uint8, or masks, (N,S,S) uint8 of 0 and 1, written row by row.

    Rows are written, not mapped: a full disk is an error then, and not a crash; and no process
    grows with the data. Several processes or threads may write to one store.
    """

    file: Path  # a temporary one
    start: int  # bytes before the first row
    experiment: Experiment  # its size, resize and filter
    part: str  # 'train' or 'test'
    is_mask: bool

    def write(self, row: int, pixels: np.ndarray) -> None:
        """pixels: an image (H,W) or (H,W,3) uint8, or a mask (H,W) bool, at original size."""
        e = self.experiment
        if not self.is_mask:
            pixels = filters.apply(pixels, e.filter, e.filter_options)
        made = resize(pixels, e.image_size, e.resize, self.is_mask)
        with open(self.file, "r+b") as file:
            file.seek(self.start + row * made.nbytes)
            file.write(made.tobytes())

    def keep(self, rows: list[int]) -> None:
        """Leave out all rows but these."""
        full = np.load(self.file, mmap_mode="r")
        with replacing(self.file) as shorter, open(shorter, "wb") as file:
            _write_header(file, (len(rows), *full.shape[1:]))
            for row in rows:
                file.write(full[row].tobytes())


@contextmanager
def creating(
    path: Path,
    experiment: Experiment,
    part: str,
    rows: int,
    channels: int,
    is_mask: bool = False,
) -> Iterator[PixelStore]:
    """A store of empty rows. It takes the place of `path` at the end; after an exception nothing
    is left of it."""
    colour = (3,) if channels == 3 and not is_mask else ()
    shape = (rows, experiment.image_size, experiment.image_size, *colour)
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            start = _write_header(file, shape)
            file.truncate(start + math.prod(shape))
        yield PixelStore(temporary, start, experiment, part, is_mask)


def _write_header(file, shape: tuple[int, ...]) -> int:
    """The beginning of a .npy file of uint8; returns its length in bytes."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def find_test_images(data: Path, competition: Competition, problems: Problems) -> list[Item]:
    """In the sample's order. What is wrong is added to `problems`; raises InputError where there
    are none."""
    items = find_test(data, competition, problems, sample_order)
    if not items:
        raise InputError(
            f"no test images found by {', '.join(competition.data.test)}",
            data,
            "Name their folder with --data, and the place in it with --set data.test=folder/{id}",
            code="no_test_images",
        )
    return items


def write_test_stores(
    items: list[Item],
    stores: dict[Path, Experiment],
    data: Path,
    competition: Competition,
    problems: Problems,
) -> tuple[list[Item], list[tuple[int, int]]]:
    """Write the test images to each of these stores, as prepare does.

    Returns the images that are its rows, and their original sizes (height, width). Raises
    InputError for `problems`, unless data.on_error is skip: then the rest is left out.
    """
    channels = competition.data.channels
    sizes: dict[int, tuple[int, int]] = {}
    with ExitStack() as stack, ThreadPoolExecutor() as pool, progress(len(items), "decode") as bar:
        made = [
            stack.enter_context(creating(path, e, "test", len(items), channels))
            for path, e in stores.items()
        ]

        def decode(row: int) -> tuple[int, int] | ValueError:
            try:
                image = read_image(items[row].image, channels)
            except ValueError as error:
                return error
            for store in made:
                store.write(row, image)
            return image.shape[:2]

        for row, size in enumerate(pool.map(decode, range(len(items)))):
            bar.update()
            if isinstance(size, ValueError):
                problems.add("unreadable", f"{items[row].image.relative_to(data)} ({size})")
            else:
                sizes[row] = size
        problems.settle(competition.data.on_error == "skip", data)
        if len(sizes) < len(items):
            for store in made:
                store.keep(list(sizes))
    if not sizes:
        what, todo = "no test image is left", "Look at what was left out"
        raise InputError(what, data, todo, code="no_test_images")
    return [items[row] for row in sizes], list(sizes.values())
