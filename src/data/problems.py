"""Everything that can be wrong with the data, collected, so that one run names all of it."""

from __future__ import annotations

import sys
from pathlib import Path

from src.core.console import InputError, listing, printable, warn

SHOWN = 50  # file names in one line

# one, several
KINDS = {
    "unreadable": ("unreadable file", "unreadable files"),
    "orphan": ("mask without image", "masks without image"),
    "no_mask": ("lesion image without mask", "lesion images without mask"),
    "size": ("mask of another size than its image", "masks of another size than their image"),
    "empty": ("lesion image with an empty mask", "lesion images with an empty mask"),
    "not_empty": (
        "image of the class without lesions with a mask that is not empty",
        "images of the class without lesions with a mask that is not empty",
    ),
    "values": ("mask that is not two-valued", "masks that are not two-valued"),
    "runs": (
        "run length that fits no mask of this image",
        "run lengths that fit no mask of their image",
    ),
    "class": ("unknown class", "unknown classes"),
    "twice": ("id that occurs twice", "ids that occur twice"),
    "no_image": ("row of the table without image", "rows of the table without image"),
    "sample_only": (
        "id of the sample submission without test image",
        "ids of the sample submission without test image",
    ),
    "test_only": (
        "test image that is not in the sample submission",
        "test images that are not in the sample submission",
    ),
}


class Problems:
    """File names and ids by what is wrong with them, one of KINDS."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, name: object) -> None:
        self.found.setdefault(kind, []).append(printable(name, 300))

    def __bool__(self) -> bool:
        return bool(self.found)

    def lines(self) -> list[str]:
        """One for each kind: how many, and their names."""
        by_kind = [
            (titles, self.found[kind]) for kind, titles in KINDS.items() if kind in self.found
        ]
        return [
            f"{len(names)} {titles[len(names) > 1]}: {listing(names, SHOWN)}"
            for titles, names in by_kind
        ]

    @property
    def code(self) -> str:
        """Of the error: the only kind, or 'data_several'."""
        return f"data_{next(iter(self.found))}" if len(self.found) == 1 else "data_several"

    def settle(self, skip: bool, data: Path) -> None:
        """Where there are any: warn of what is left out or, without `skip`, raise InputError.
        Either way all of them are named."""
        lines = self.lines()
        if skip:
            for line in lines:
                warn(f"left out: {line}")
        elif lines:
            what = lines[0]
            if len(lines) > 1:
                print(*(f"  {line}" for line in lines), sep="\n", file=sys.stderr, flush=True)
                count = sum(map(len, self.found.values()))
                what = f"{count} problems of {len(lines)} kinds in the data, listed above"
            todo = "Correct them, or go on without them: --set data.on_error=skip"
            raise InputError(what, data, todo, code=self.code)
