"""Test images alone, found, decoded, filtered and resized as prepare does it, without any train images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from src.core.console import InputError, progress, short, warn
from src.core.disk import replacing
from src.core.settings import Competition, Experiment
from src.data.dataset import Item, Problems, find_test
from src.data.images import read_image, resize
from src.parts import filters
from src.submission.order import sample_order

AT_ONCE = 64  # images whose pixels wait in memory


def find(data: Path, competition: Competition, problems: Problems) -> list[Item]:
    """In the sample's order. What is wrong is added to `problems`; raises InputError where there are none."""
    items = find_test(data, competition, problems, sample_order)
    if not items:
        raise InputError(
            f"no test images found by {', '.join(competition.data.test)}",
            short(data),
            "Name the folder that they lie in with --data, and where in it with "
            "--set data.test=folder/{id}",
            code="no_test_images",
        )
    return items


def decode(
    items: list[Item],
    stores: dict[Path, Experiment],
    data: Path,
    competition: Competition,
    problems: Problems,
) -> tuple[list[Item], list[tuple[int, int]]]:
    """Write each store, (N,S,S) or (N,S,S,3) uint8, by what its experiment says of size, resize and filter; returns the readable images, which are its first
    rows, and their sizes (height, width). Raises InputError for `problems`, unless data.on_error is skip."""
    colour = (3,) if competition.data.channels == 3 else ()

    def one(item: Item) -> tuple[tuple[int, int], list[np.ndarray]] | ValueError:
        try:
            image = read_image(item.image, competition.data.channels)
        except ValueError as error:
            return error
        return image.shape[:2], [
            resize(filters.apply(image, e.filter, e.filter_options), e.image_size, e.resize)
            for e in stores.values()
        ]

    good, sizes = [], []
    with ExitStack() as stack, ThreadPoolExecutor() as pool, progress(len(items), "decode") as bar:
        files = []
        for path, e in stores.items():
            files.append(
                stack.enter_context(open(stack.enter_context(replacing(path)), "wb"))
            )  # written, not mapped: a full disk is an error then, and not a crash
            np.lib.format.write_array_header_1_0(
                files[-1],
                {
                    "descr": "|u1",
                    "fortran_order": False,
                    "shape": (len(items), e.image_size, e.image_size, *colour),
                },
            )
        for start in range(0, len(items), AT_ONCE):
            for item, found in zip(
                items[start : start + AT_ONCE], pool.map(one, items[start : start + AT_ONCE])
            ):
                bar.update()
                if isinstance(found, ValueError):
                    problems.add("unreadable", f"{item.image.relative_to(data)} ({found})")
                    continue
                for file, pixels in zip(files, found[1]):
                    file.write(pixels.tobytes())
                good.append(item)
                sizes.append(found[0])
        for file, e in zip(
            files, stores.values()
        ):  # the rows of unreadable images are there, at the end, and empty
            file.truncate(
                file.tell() + (len(items) - len(good)) * e.image_size**2 * (3 if colour else 1)
            )
    if problems:
        lines = "; ".join(problems.lines())
        if competition.data.on_error != "skip":
            raise InputError(
                lines,
                short(data),
                "Correct them, or go on without them: --set data.on_error=skip",
                code=problems.code,
            )
        warn(f"left out: {lines}")
    if not good:
        raise InputError(
            "no test image is left", short(data), "Look at what was left out", code="no_test_images"
        )
    return good, sizes
