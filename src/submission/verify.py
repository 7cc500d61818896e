"""Is a file a submission in the form that the sample asks for?

Shares no code with what writes it (submission/writer.py), so that it cannot share its faults.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from src.core.console import InputError, command, listing
from src.submission.answer import Answer
from src.submission.form import Form
from src.submission.rows import Row
from src.submission.sample import DAMAGED, TABLES

NULL = {"", "nan", "none", "null", "na"}
Size = tuple[int, int]  # height, width


class InvalidSubmission(InputError):
    """`what`: the message without the advice."""

    def __init__(self, what: str, file: Path, ids: list[str] = (), *, code: str):
        what = f"{what}: {listing(ids)}" if ids else what
        todo = f"Write it again with {command('submit', '--force')}"
        super().__init__(what, file, todo, code=code)
        self.what = what


@dataclass
class Line:
    """A line of the table, the row of the sample that it answers, and the answer that was decided
    for its image, where that is known."""

    id: str
    cells: dict[str, str]
    row: Row
    answer: Answer | None


@dataclass
class Submitted:
    """A submission as it is read back."""

    file: Path
    form: Form
    sizes: dict[str, Size]
    answers: dict[str, Answer]
    archive: zipfile.ZipFile | None
    lines: list[Line]

    def size(self, image: str | None) -> Size:
        return self.form.size or self.sizes.get(image, (1, 1))


def verify_submission(
    file: Path, form: Form, sizes: dict[str, Size], answers: dict[str, Answer] | None = None
) -> None:
    """Raises InvalidSubmission unless the file has the sample's header, ids, count and order, no
    empty cells, known labels, probabilities that add up to 1, and runs (boxes, PNG files) that are
    sorted, apart from each other and inside their image; and, where answers are given, unless it
    says the same as these."""
    archive = None
    try:
        if form.masks:
            archive = zipfile.ZipFile(file)
        data = archive.read(table_name(form)) if archive else file.read_bytes()
        text = data.decode("utf-8")
    except (OSError, KeyError, UnicodeDecodeError, *DAMAGED) as error:
        raise InvalidSubmission(f"not readable: {error}", file, code="not_a_table") from None
    submitted = Submitted(file, form, sizes, answers or {}, archive, [])
    submitted.lines = _lines(text, submitted)
    for check in CHECKS:
        check(submitted)


def table_name(form: Form) -> str:
    """Of the table inside a zip."""
    name = form.sample.name
    return name if name.lower().endswith(TABLES) else "submission.csv"


def _refuse(submitted: Submitted, what: str, ids: list[str], *, code: str) -> None:
    """Raises InvalidSubmission where there are such ids."""
    if ids:
        raise InvalidSubmission(what, submitted.file, ids, code=code)


def _lines(text: str, submitted: Submitted) -> list[Line]:
    """The lines of the table, with the sample's header, and all its ids in its order."""
    form, columns = submitted.form, submitted.form.sample.columns
    head, _, body = text.partition("\n")
    if head.rstrip("\r") != form.sample.header:
        raise InvalidSubmission(
            f"the header is '{head.strip()}', not the sample's '{form.sample.header}'",
            submitted.file,
            code="wrong_header",
        )
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=form.sample.delimiter)
    table = list(filter(None, reader))
    ragged = [cells[0] for cells in table if len(cells) != len(columns)]
    _refuse(submitted, f"rows without {len(columns)} cells", ragged, code="ragged_table")
    lines = []
    for cells, row in zip(table, _matched_rows(table, submitted)):
        named = dict(zip(columns, cells))
        lines.append(Line(named[form.id], named, row, submitted.answers.get(row.image)))
    return lines


def _matched_rows(table: list[list[str]], submitted: Submitted) -> list[Row]:
    """The row of the sample that each line answers: all of them, each once (or, where components
    have a line each, one or more lines together), in its order."""
    form = submitted.form
    at = [form.sample.columns.index(column) for column in (form.id, form.key) if column]

    def key(cells: list[str]) -> tuple[str, ...]:
        return tuple(cells[i] for i in at)

    expected, keys = [key(row.cells) for row in form.rows], [key(cells) for cells in table]
    rows, found = dict(zip(expected, form.rows)), keys
    if form.row_per_component:
        expected, found = list(rows), [same for same, _ in groupby(keys)]
    times = Counter(found)
    missing = [" ".join(k) for k in expected if k not in times]
    _refuse(submitted, "ids of the sample are missing", missing, code="ids_missing")
    unknown = [" ".join(k) for k in times if k not in rows]
    _refuse(submitted, "ids are not in the sample", unknown, code="ids_unknown")
    twice = [" ".join(k) for k in times if times[k] > 1]
    _refuse(submitted, "ids occur more than once", twice, code="id_twice")
    moved = [" ".join(a) for a, b in zip(found, expected) if a != b]
    _refuse(submitted, "rows are not in the sample's order", moved, code="wrong_order")
    return [rows[k] for k in keys]


# --------------------------------------------------------------------------------------- checks


def check_empty_cells(submitted: Submitted) -> None:
    form = submitted.form
    allowed = {form.rle: [form.empty], form.boxes: [form.empty], form.label: form.labels.values()}
    for column in form.sample.columns:
        if column in (form.id, form.key, *form.passthrough):
            continue
        null = [
            line.id
            for line in submitted.lines
            if line.cells[column].strip().lower() in NULL
            and line.cells[column] not in allowed.get(column, ())
        ]
        _refuse(submitted, f"cells of column {column} hold nothing", null, code="empty_cells")


def check_labels(submitted: Submitted) -> None:
    form, lines = submitted.form, submitted.lines
    if not form.label:
        return
    known = form.labels.values()
    strange = [line.id for line in lines if line.cells[form.label] not in known]
    _refuse(submitted, f"labels are none of {', '.join(known)}", strange, code="unknown_class")
    other = [
        line.id
        for line in lines
        if line.answer and line.cells[form.label] != form.labels[line.answer.label]
    ]
    _refuse(submitted, "labels are not those that were decided", other, code="not_as_decided")


def check_probabilities(submitted: Submitted) -> None:
    form, wrong, other = submitted.form, [], []
    # of two classes, only one may be asked for
    is_complete = len(form.probabilities) == len(form.classes.names)
    at = [form.classes.names.index(label) for label in form.probabilities]
    for line in submitted.lines if form.probabilities else ():
        try:
            values = np.array([float(line.cells[c]) for c in form.probabilities.values()])
        except ValueError:
            values = np.array([np.nan])
        in_range = ((values >= 0) & (values <= 1)).all() and values.sum() <= 1.001
        if not in_range or is_complete and values.sum() < 0.999:
            wrong.append(line.id)
        elif line.answer and np.abs(values - line.answer.probs[at]).max() > 1e-5:
            other.append(line.id)
    _refuse(
        submitted,
        "probabilities are not numbers from 0 to 1, or do not add up to 1",
        wrong,
        code="bad_probabilities",
    )
    _refuse(
        submitted, "probabilities are not those that were predicted", other, code="not_as_decided"
    )


def check_runs(submitted: Submitted) -> None:
    form = submitted.form
    if not form.rle:
        return
    masks: dict[tuple, list[Line]] = {}
    for line in submitted.lines:
        masks.setdefault((line.row.image or line.id, line.row.key), []).append(line)
    wrong: dict[str, list[str]] = {}
    other, shown = [], set()
    for (image, _), lines in masks.items():
        height, width = submitted.size(image)
        # one at a time: thousands of large masks do not fit into memory
        flat = np.zeros(height * width, bool)
        for line in lines:
            if fault := _draw(line.cells[form.rle], flat, form):
                wrong.setdefault(fault, []).append(line.id)
        # of one image's classes only one carries the mask
        if lines[0].answer and (flat.any() or not form.keys):
            shown.add(image)
            mask = flat.reshape((height, width), order="F" if form.order == "column" else "C")
            if not np.array_equal(mask, lines[0].answer.mask):
                other.append(lines[0].id)
    for fault, ids in wrong.items():
        _refuse(submitted, f"run lengths {fault}", ids, code="bad_runs")
    _refuse(
        submitted,
        "run lengths do not decode to the mask that was decided",
        other,
        code="not_as_decided",
    )
    answers = submitted.answers.items()
    lost = [image for image, answer in answers if answer.packed.any() and image not in shown]
    _refuse(submitted, "masks of these images are in no row", lost, code="not_as_decided")


def _draw(text: str, flat: np.ndarray, form: Form) -> str:
    """Run lengths onto the pixels (H·W) of one mask, in their order; what is wrong with them, or
    ''."""
    words, end = [] if text == form.empty else text.split(" "), 0
    if len(words) % 2 or not all(w.isdigit() for w in words):
        return "are not pairs of whole numbers"
    for number, (start, length) in enumerate(zip(map(int, words[::2]), map(int, words[1::2]))):
        start = start + end if form.relative_starts and number else start - form.first_pixel
        if start < 0 or length < 1 or start + length > len(flat):
            return "lie outside of their image"
        if start < end:
            return "overlap or are not sorted"
        end = start + length
        if flat[start:end].any():
            return "overlap another row of the same image"
        flat[start:end] = True
    return ""


def check_boxes(submitted: Submitted) -> None:
    form, wrong, other = submitted.form, [], []
    for line in submitted.lines if form.boxes else ():
        text = line.cells[form.boxes]
        if text != form.empty and not _are_boxes(text, form, submitted.size(line.row.image)):
            wrong.append(line.id)
        elif line.answer and text != (line.answer.boxes or form.empty):
            other.append(line.id)
    _refuse(
        submitted,
        f"boxes are not '{form.box}', or lie outside of their image",
        wrong,
        code="bad_boxes",
    )
    _refuse(
        submitted,
        "boxes are not those of the masks that were decided",
        other,
        code="not_as_decided",
    )


def _are_boxes(text: str, form: Form, size: Size) -> bool:
    names, words = form.box.split(), text.split(" ")
    for at in range(0, len(words), len(names)):
        box = dict(zip(names, words[at:]))
        try:
            left, top = float(box["xmin"]), float(box["ymin"])
            right = float(box["xmax"]) if "xmax" in box else left + float(box["width"])
            bottom = float(box["ymax"]) if "ymax" in box else top + float(box["height"])
            confidence = float(box.get("confidence", 0))
        except (ValueError, KeyError):  # not a number, or fewer words than a box has
            return False
        inside = 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]
        if not inside or not 0 <= confidence <= 1:
            return False
    return len(words) % len(names) == 0


def check_pngs(submitted: Submitted) -> None:
    form, archive = submitted.form, submitted.archive
    if archive is None:
        return
    names = set(archive.namelist()) - {table_name(form)}
    expected = {form.masks.replace("{id}", image): image for image in form.images}
    missing, unknown = sorted(expected.keys() - names), sorted(names - expected.keys())
    _refuse(submitted, "masks are missing", missing, code="ids_missing")
    _refuse(submitted, "files are of no image of the sample", unknown, code="ids_unknown")
    wrong = [name for name, image in expected.items() if not _is_mask(name, image, submitted)]
    _refuse(
        submitted,
        "masks are not readable, or have another size or other values than they should",
        wrong,
        code="bad_masks",
    )


def _is_mask(name: str, image: str, submitted: Submitted) -> bool:
    from PIL import Image

    try:
        pixels = np.asarray(Image.open(io.BytesIO(submitted.archive.read(name))))
    except (OSError, *DAMAGED):
        return False
    if pixels.shape != tuple(submitted.size(image)):
        return False
    values, answer = set(np.unique(pixels).tolist()), submitted.answers.get(image)
    is_decided = answer is None or np.array_equal(pixels > 0, answer.mask)
    return values <= {0, submitted.form.mask_value} and is_decided


CHECKS = (
    check_empty_cells,
    check_labels,
    check_probabilities,
    check_runs,
    check_boxes,
    check_pngs,
)
