"""The rows of the sample: which image, and which class, each of them is about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from src.core.settings import Submission
from src.data.cells import names_of
from src.data.columns import LONGEST, class_in_name, find_id, plain_name
from src.data.files import IMAGE_SUFFIXES
from src.submission.sample import Sample, SampleError

ID_NAMES = ("id", "imageid", "image", "filename", "name")


@dataclass
class Row:
    """One row of the sample: its cells, the image that it is about (None: not on disk) and, where
    rows have one, the class."""

    cells: list[str]
    image: str | None = None
    key: str | None = None


def match_rows(
    sample: Sample, submission: Submission, known: Iterable[str]
) -> tuple[str, str, list[Row]]:
    """(the column of ids, how they are made of the images' ids, the rows with their images).

    known: ids of the test images. Raises InputError where a setting names a column that the sample
    does not have, and for a `name` without {id}.
    """
    known = set(known)
    _check_columns(sample, submission)
    column, name = submission.id or _id_column(sample, known), submission.name
    values = sample.column(column)
    if not name:
        name, found = _infer_name(values, known)
    elif name.count("{id}") == 1:
        found = [_split(value, name, known) for value in values]
    else:
        raise SampleError(
            f"submission.name is '{name}'",
            sample,
            "It needs {id} once, for example {id}.png or {id}_{class}",
            code="invalid_value",
        )
    return column, name, [Row(cells, *match) for cells, match in zip(sample.raw, found)]


def _check_columns(sample: Sample, submission: Submission) -> None:
    named = {s: [getattr(submission, s)] for s in ("id", "key", "label", "rle", "boxes")}
    named["passthrough"] = submission.passthrough or []
    named["probabilities"] = (submission.probabilities or {}).values()
    for setting, columns in named.items():
        for column in columns:
            if column and column not in sample.columns:
                raise SampleError(
                    f"no column {column}; there are {names_of(sample.columns)}",
                    sample,
                    f"Correct submission.{setting} in competition.yaml",
                    code="no_column",
                )


def _id_column(sample: Sample, known: set[str]) -> str:
    """The column with the most ids among its first cells; without any, one that is called so."""
    hits = {
        c: sum(find_id(v, known) is not None for v in sample.column(c)[:500])
        for c in sample.columns
    }
    named = [c for c in sample.columns if plain_name(c) in ID_NAMES]
    return max(hits, key=hits.get) if any(hits.values()) else [*named, *sample.columns][0]


def _infer_name(values: list[str], known: set[str]) -> tuple[str, list[tuple]]:
    """(how ids are made of the images' ids, what is known of each row: image and class, the image
    alone, or nothing)."""
    parts = [find_id(value, known) for value in values]
    shapes = Counter((part[0], part[2]) for part in parts if part)
    if not shapes:
        return "{id}", [() for _ in parts]
    made = class_in_name(parts, shapes) if len(shapes) > 1 else None
    if made:
        name, keys = made
        return name, [(p[1], keys.get((p[0], p[2]))) if p else () for p in parts]
    usual = shapes.most_common(1)[0][0]
    # x and x.png may stand side by side
    good = {s for s in shapes if not s[0] and s[1].lower() in ("", *IMAGE_SUFFIXES)} | {usual}
    found = [(p[1],) if p and (p[0], p[2]) in good else () for p in parts]
    return usual[0] + "{id}" + usual[1], found


def _pattern(name: str, id: str = ".+") -> re.Pattern:
    groups = {"{id}": f"(?P<id>{id})", "{class}": "(?P<key>.+?)"}
    words = re.split(r"(\{id\}|\{class\})", name)
    return re.compile("".join(groups.get(word, re.escape(word)) for word in words))


def _split(value: str, name: str, known: set[str]) -> tuple[str | None, str | None]:
    """(image, class) in a cell. An id may hold what separates it from the class: the longest known
    one counts."""
    found = _pattern(name).fullmatch(value)
    if found and found["id"] not in known and "{class}" in name and len(value) <= LONGEST:
        lengths = range(len(found["id"]) - 1, 0, -1)
        shorter = (_pattern(name, f".{{{n}}}").fullmatch(value) for n in lengths)
        found = next((m for m in shorter if m and m["id"] in known), found)
    if not found:
        return None, None
    image = found["id"] if found["id"] in known else None
    return image, found.groupdict().get("key")


def image_named(text: str, name: str) -> str:
    """The image that a row's id names, whether it is on disk or not."""
    found = _pattern(name).fullmatch(text.strip())
    id = found["id"] if found else text.strip()
    suffix = Path(id).suffix
    return id[: -len(suffix)] if suffix.lower() in IMAGE_SUFFIXES else id
