"""sample_submission.csv as it is found: a table (or a zip of one, with PNG masks or without), which image each row is about, and what each column asks for."""

from __future__ import annotations

import io
import lzma
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from src.core.console import InputError, listing, printable, short
from src.core.disk import must_be_file
from src.core.settings import Competition, Data, Submission
from src.data.cells import BOM, cells_of, names_of, table_bytes, table_text
from src.data.columns import LONGEST, class_in_name, find_id, plain_name
from src.data.files import IMAGE_SUFFIXES, MOST_BYTES, check_size

DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)


@dataclass
class Sample:
    """A table as found. `header`: its first line, character for character; `cells` without the spaces around them."""

    file: Path
    name: str  # of the table, inside of a zip
    header: str
    delimiter: str
    columns: list[str]
    raw: list[list[str]]
    cells: list[list[str]]
    pngs: list[str] = field(default_factory=list)  # other members of the zip
    lesion: int = 0  # the brightest value of these

    def column(self, name: str) -> list[str]:
        at = self.columns.index(name)
        return [row[at] for row in self.cells]


@dataclass
class Row:
    """One row of the sample: its cells, the image that it is about (None: not on disk) and, where rows have one, the class."""

    cells: list[str]
    image: str | None
    key: str | None = None


# ------------------------------------------------------------------------------------------------------------------------ reading the sample


def sample_file(competition: Competition, data: Path) -> Path:
    """The sample of the submission: the one named, else the only file of the data folder that is called something like it."""
    named, alike = data / competition.data.sample_submission, alike_samples(data)
    must_be_file(named, "the sample of the submission")
    return (
        named
        if named.is_file()
        or competition.data.sample_submission != Data().sample_submission
        or len(alike) != 1
        else alike[0]
    )


def alike_samples(data: Path) -> list[Path]:
    """Files that are called something like sample_submission."""
    here = sorted(data.iterdir()) if data.is_dir() else []
    return [
        f
        for f in here
        if f.is_file()
        and "samplesub" in re.sub(r"[^a-z]", "", f.name.lower())
        and f.suffix.lower() in (".csv", ".tsv", ".txt", ".zip")
    ]


def missing_sample_error(competition: Competition, data: Path) -> InputError:
    """For a sample that is not there."""
    if alike := alike_samples(data):
        return InputError(
            f"{len(alike)} files look like the sample of the submission: "
            f"{listing(f.name for f in alike)}",
            short(data),
            "Name one with data.sample_submission",
            code="several_samples",
        )
    return InputError(
        "there is no sample of the submission",
        short(sample_file(competition, data)),
        "Download it from the contest's page, or name another with data.sample_submission",
        code="no_sample",
    )


def read_sample(file: Path, submission: Submission) -> Sample:
    """Raises InputError for a sample that is missing or damaged, empty, or has rows of different lengths."""
    todo, pngs, lesion = "Download it again", [], 0
    must_be_file(file, "the sample of the submission")
    try:
        name, data = file.name, table_bytes(file)
        if file.suffix.lower() == ".zip" or zipfile.is_zipfile(file):
            name, data, pngs, lesion = _of_zip(file)
    except FileNotFoundError:
        raise InputError(
            "there is no sample of the submission",
            short(file),
            "Download it from the contest's page, or name another with data.sample_submission",
            code="no_sample",
        ) from None
    except (OSError, *DAMAGED) as error:
        what = f"not readable as a table: {printable(error, 200)}"
        raise InputError(what, short(file), todo, code="not_a_table") from None
    text = table_text(data, file)
    delimiter = {"tab": "\t"}.get(submission.delimiter, submission.delimiter)
    raw, head, delimiter = cells_of(text, file, delimiter)
    if not raw:
        what = "the sample of the submission is empty"
        raise InputError(what, short(file), todo, code="empty_table")
    if re.search(r"[\r\n]", head):
        what = "the name of a column has a line break in it"
        raise InputError(what, short(file), todo, code="odd_columns")
    columns, raw = [c.strip().strip('"').strip() for c in raw[0]], raw[1:]
    if len(columns) < 2 and not pngs and not submission.masks or len(set(columns)) < len(columns):
        what = f"the columns are {names_of(columns)}"
        expected = "Expected one of ids and others of answers, each once"
        raise InputError(what, short(file), expected, code="odd_columns")
    if not raw:
        what = "the sample of the submission has no rows"
        raise InputError(what, short(file), todo, code="empty_table")
    header = ("\ufeff" if data.startswith(BOM) else "") + head
    cells = [[c.strip() for c in row] for row in raw]
    return Sample(file, name, header, delimiter, columns, raw, cells, pngs, lesion)


def _of_zip(file: Path) -> tuple[str, bytes, list[str], int]:
    with zipfile.ZipFile(file) as archive:
        names = [
            n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX")
        ]
        tables, pngs = (
            [n for n in names if n.lower().endswith((".csv", ".tsv", ".txt"))],
            [n for n in names if n.lower().endswith(".png")],
        )
        if len(tables) != 1:
            raise InputError(
                f"{len(tables)} tables in the zip",
                short(file),
                "Expected one, with a row for each image",
                code="several_samples",
            )
        if max(archive.getinfo(n).file_size for n in (tables[0], *pngs[:20])) > MOST_BYTES:
            raise ValueError(f"a file in it unpacks to more than {MOST_BYTES:,} bytes")
        lesion = max((_brightest(archive.read(n)) for n in pngs[:20]), default=0)
        return tables[0], archive.read(tables[0]), pngs, lesion


def _brightest(png: bytes) -> int:
    """The highest value of a PNG mask. Raises OSError or ValueError for what is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            check_size(*image.size)
            return image.convert("L").getextrema()[1]
    except (SyntaxError, struct.error, zlib.error) as error:
        raise ValueError(f"a damaged PNG: {error}") from None


# --------------------------------------------------------------------------------------------------------------- rows and their images


def _pattern(name: str) -> re.Pattern:
    words = re.split(r"(\{id\}|\{class\})", name)
    return re.compile(
        "".join(
            {"{id}": "(?P<id>.+)", "{class}": "(?P<key>.+?)"}.get(w, re.escape(w)) for w in words
        )
    )


def match_rows(
    sample: Sample, submission: Submission, known: Iterable[str]
) -> tuple[str, str, list[Row]]:
    """(column of ids, how they are made, rows with their images). Raises InputError where a setting names what is not there."""
    known = set(known)
    for what in ("id", "key", "label", "rle", "boxes"):
        if (asked := getattr(submission, what)) and asked not in sample.columns:
            todo = f"Correct submission.{what} in competition.yaml"
            found = f"no column {asked}; there are {names_of(sample.columns)}"
            raise InputError(found, short(sample.file), todo, code="no_column")
    column = submission.id or _id_column(sample, known)
    values = sample.column(column)
    if submission.name:
        if submission.name.count("{id}") != 1:
            raise InputError(
                f"submission.name is '{submission.name}'",
                short(sample.file),
                "It needs {id} once, for example {id}.png or {id}_{class}",
                code="invalid_value",
            )
        shape = _pattern(submission.name)
        found = [shape.fullmatch(v) for v in values]
        if (
            submission.name.endswith("}") and "{class}" in submission.name
        ):  # ids may hold the separator themselves: the last one counts
            found = [
                max(
                    (m for m in _splits(shape, v) if m["id"] in known),
                    key=lambda m: len(m["id"]),
                    default=f,
                )
                for v, f in zip(values, found)
            ]
        rows = [
            Row(
                raw,
                m["id"] if m and m["id"] in known else None,
                m.groupdict().get("key") if m else None,
            )
            for raw, m in zip(sample.raw, found)
        ]
        return column, submission.name, rows
    parts = [find_id(v, known) for v in values]
    shapes = Counter((p[0], p[2]) for p in parts if p)
    if not shapes:
        return column, "{id}", [Row(raw, None) for raw in sample.raw]
    if len(shapes) > 1 and (made := class_in_name(parts, shapes)):
        name, keys = made
        return (
            column,
            name,
            [
                Row(raw, p and p[1], p and keys.get((p[0], p[2])))
                for raw, p in zip(sample.raw, parts)
            ],
        )
    before, behind = shapes.most_common(1)[0][0]
    usual = {(before, behind)} | {
        s for s in shapes if not s[0] and (not s[1] or s[1].lower() in IMAGE_SUFFIXES)
    }  # x and x.png may stand side by side
    rows = [
        Row(raw, p[1] if p and (p[0], p[2]) in usual else None) for raw, p in zip(sample.raw, parts)
    ]
    return column, before + "{id}" + behind, rows


def image_of(row: Row, sample: Sample, column: str, name: str) -> str:
    """The image that a row is about, or would be about if it were on disk."""
    text = row.cells[sample.columns.index(column)].strip()
    found = _pattern(name).fullmatch(text)
    named = found["id"] if found else text
    return row.image or (
        named[: -len(Path(named).suffix)] if Path(named).suffix.lower() in IMAGE_SUFFIXES else named
    )


def _splits(shape: re.Pattern, value: str) -> list[re.Match]:
    if len(value) > LONGEST:
        return []
    return [
        m
        for m in (
            re.compile(shape.pattern.replace("(?P<id>.+)", f"(?P<id>.{{{n}}})")).fullmatch(value)
            for n in range(1, len(value))
        )
        if m
    ]


def _id_column(sample: Sample, known: set[str]) -> str:
    hits = {
        c: sum(v in known or find_id(v, known) is not None for v in sample.column(c)[:500])
        for c in sample.columns
    }
    named = next(
        (
            c
            for c in sample.columns
            if plain_name(c) in ("id", "imageid", "image", "filename", "name")
        ),
        sample.columns[0],
    )
    return max(hits, key=hits.get) if max(hits.values()) else named


# ---------------------------------------------------------------------------------------------------------------------------- columns
