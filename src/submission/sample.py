"""sample_submission.csv as it is found: a table (or a zip of one, with PNG masks or without), which image each row is about, and what each column asks for."""

from __future__ import annotations

import io
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from src.core.console import InputError, listing, short
from src.core.settings import Competition, Data, Submission
from src.data.cells import BOM, cells_of, names_of, table_bytes, table_text
from src.data.files import IMAGE_SUFFIXES, must_be_file, printable
from src.data.limits import MOST_BYTES, check_size

RUN_NAMES = {
    "rle",
    "rlemask",
    "maskrle",
    "mask",
    "masks",
    "encodedpixels",
    "pixels",
    "encodedmask",
    "predicted",
    "segmentation",
    "annotation",
    "runlength",
    "runlengths",
    "rles",
    "predictedrle",
}
LABEL_NAMES = {
    "label",
    "labels",
    "class",
    "classname",
    "classid",
    "target",
    "diagnosis",
    "category",
    "categoryid",
    "prediction",
    "y",
    "type",
}
BOX_NAMES = {"predictionstring", "box", "boxes", "bbox", "bboxes", "detections"}
LONGEST = 200  # characters of a file's name: run lengths need not be searched for one
UNCERTAIN = {
    "predicted",
    "annotation",
    "segmentation",
    "prediction",
}  # names of runs, and of classes too
SEPARATORS = re.compile(r"[^0-9A-Za-z]+")
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


def no_sample(competition: Competition, data: Path) -> InputError:
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


def find_id(value: str, known: Iterable[str]) -> tuple[str, str, str] | None:
    """What stands before the image's id in a cell, the id, and what stands behind: the first and longest run of whole words that is one."""
    if value in known:
        return "", value, ""
    if len(value) > LONGEST:
        return None
    cuts = sorted(
        {
            0,
            len(value),
            *(at for m in SEPARATORS.finditer(value) for at in range(m.start(), m.end() + 1)),
        }
    )
    for start in cuts:
        for end in reversed(cuts):
            if end > start and value[start:end] in known:
                return value[:start], value[start:end], value[end:]
    return None


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
        (c for c in sample.columns if _plain(c) in ("id", "imageid", "image", "filename", "name")),
        sample.columns[0],
    )
    return max(hits, key=hits.get) if max(hits.values()) else named


def class_in_name(parts: list, shapes: Counter) -> tuple[str, dict[tuple[str, str], str]] | None:
    """(name, what stands around the id -> the class in it) where every image has one row of each."""
    by_image: dict[str, list] = {}
    for p in parts:
        if p:
            by_image.setdefault(p[1], []).append((p[0], p[2]))
    complete = [set(its) == set(shapes) and len(its) == len(shapes) for its in by_image.values()]
    if sum(complete) < 0.5 * len(complete):
        return None
    befores, behinds = {s[0] for s in shapes}, {s[1] for s in shapes}
    if len(befores) > 1 and len(behinds) > 1:
        return None
    texts = sorted(befores if len(befores) > 1 else behinds)
    head = os.path.commonprefix(texts)
    head = head[: max((m.end() for m in SEPARATORS.finditer(head)), default=0)]
    tail = os.path.commonprefix([t[len(head) :][::-1] for t in texts])[::-1]
    tail = tail[min((m.start() for m in SEPARATORS.finditer(tail)), default=len(tail)) :]
    inner = {t: t[len(head) : len(t) - len(tail)] for t in texts}
    before, behind = next(iter(shapes))
    if len(befores) > 1:
        return head + "{class}" + tail + "{id}" + behind, {s: inner[s[0]] for s in shapes}
    return before + "{id}" + head + "{class}" + tail, {s: inner[s[1]] for s in shapes}


# ---------------------------------------------------------------------------------------------------------------------------- columns


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_runs(cell: str) -> bool:
    words = cell.split()
    return bool(words) and not len(words) % 2 and all(w.isascii() and w.isdigit() for w in words)


def role(column: str, cells: list[str], classes: list[str], written: Iterable[str] = ()) -> str:
    """'rle', 'boxes', 'label', 'probability' or '' of a column, by its cells and, where they leave it open, by its name. written: what stands for the
    classes where that is given."""
    plain, texts = _plain(column), {c for c in cells if c}
    folded = {c.casefold() for c in (*classes, *written)}
    numbers = [c.split() for c in texts]
    if (
        texts and {t.casefold() for t in texts} <= folded and plain not in RUN_NAMES - UNCERTAIN
    ):  # a class may be called none
        return "label"
    if (
        plain in BOX_NAMES
        and not (texts and all(map(is_runs, texts)))
        or numbers
        and all(len(n) >= 5 and len(n) % 5 == 0 and _is_number(*n) for n in numbers)
    ):
        return "boxes"
    if plain in UNCERTAIN and texts and all(re.fullmatch(r"\d", t) for t in texts):
        return ""  # a class or an empty mask: one wrong guess would cost a submission
    if plain in RUN_NAMES:
        return "rle"
    if (
        texts
        and all(is_runs(t) or t in ("-1", "-") for t in texts)
        and (plain not in LABEL_NAMES or any(map(is_runs, texts)))
    ):
        return "rle"
    if texts and class_of(column, classes) and all(len(n) == 1 and _is_number(*n) for n in numbers):
        return "probability"
    return "label" if plain in LABEL_NAMES else ""


def _is_number(*words: str) -> bool:
    return all(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", w) for w in words)


def class_of(column: str, classes: list[str]) -> str | None:
    """The class that a column is named for: benign, p_benign, Benign_prob."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)
    plain = re.sub(
        r"(^| )(p|prob|probability|proba|score|pred|predicted|conf|confidence|is|class|target)(?= |$)",
        " ",
        SEPARATORS.sub(" ", words).lower(),
    ).strip()
    return next((c for c in classes if plain == SEPARATORS.sub(" ", c).lower().strip()), None)


def spell(
    shown: set[str], classes: list[str], empty_class: str | None, whole: bool
) -> dict[str, str] | None:
    """class -> how it is written, from what the sample shows of it; None where that fits no class. whole: everything that there is, is shown."""
    shown = {s for s in shown if s}
    folded = {c.casefold(): c for c in classes}
    if all(s.casefold() in folded for s in shown):
        if whole:
            return {
                folded[s.casefold()]: s
                for s in sorted(shown, key=lambda s: classes.index(folded[s.casefold()]))
            }
        style = next(
            (
                f
                for f in (str, str.title, str.upper, str.capitalize, str.lower)
                if all(f(folded[s.casefold()]) == s for s in shown)
            ),
            str,
        )
        return {c: style(c) for c in classes} | {folded[s.casefold()]: s for s in shown}
    if all(re.fullmatch(r"[0-9]{1,9}", s) for s in shown):
        numbers = sorted(map(int, shown))
        if whole:
            pool = (
                classes
                if len(numbers) == len(classes)
                else [c for c in classes if c != empty_class]
            )
            return {c: str(n) for c, n in zip(pool, numbers)} if len(numbers) == len(pool) else None
        first = int(numbers[-1] == len(classes) and numbers[0] > 0)
        return (
            {c: str(i + first) for i, c in enumerate(classes)}
            if numbers[-1] < len(classes) + first
            else None
        )
    return None
