"""Is a file a submission in the form that the sample asks for? Shares no code with what writes it (submission/writer.py), so that it cannot share its faults."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.core.console import InputError, command, counted, listing, short
from src.submission.form import Form
from src.submission.sample import DAMAGED, Row

if TYPE_CHECKING:
    from src.submission.answer import Answer


class Fault(InputError):
    """What is wrong with a submission; `what`: without the advice."""

    def __init__(self, what: str, file: Path, *, code: str):
        todo = f"Write it anew with {command('submit', '--force')}"
        super().__init__(what, short(file), todo, code=code)
        self.what = what


NOTHING = {"", "nan", "none", "null", "na"}
Found = Callable[..., Fault]
Cells = list[
    tuple[str, str, Row]
]  # what stands there, the row's id, and the row of the sample that it answers


def table_name(form: Form) -> str:
    """Of the table inside of a zip."""
    return (
        form.sample.name
        if form.sample.name.lower().endswith((".csv", ".tsv", ".txt"))
        else "submission.csv"
    )


def verify_submission(
    file: Path,
    form: Form,
    sizes: dict[str, tuple[int, int]],
    meant: dict[str, Answer] | None = None,
) -> None:
    """Raises Fault unless the file has the sample's header, ids, count and order, no empty cells, known labels, probabilities that add up to 1, and
    runs (boxes, PNG files) that are sorted, apart from each other and inside of their image; and, where given, says what is meant."""

    def fault(what: str, ids: list[str] = (), *, code: str) -> Fault:
        return Fault(what + (f": {listing(ids)}" if ids else ""), file, code=code)

    pngs = None
    try:
        pngs = zipfile.ZipFile(file) if form.masks else None
        text = (pngs.read(table_name(form)) if pngs else file.read_bytes()).decode("utf-8")
    except (OSError, KeyError, UnicodeDecodeError, *DAMAGED) as error:
        raise fault(f"not readable: {error}", code="not_a_table") from None
    head, _, body = text.partition("\n")
    if head.rstrip("\r") != form.sample.header:
        raise fault(
            f"the header is '{head.strip()}', not the sample's '{form.sample.header}'",
            code="wrong_header",
        )
    columns = form.sample.columns
    lines = [
        cells
        for cells in csv.reader(io.StringIO(body, newline=""), delimiter=form.sample.delimiter)
        if cells
    ]
    if ragged := [c[0] for c in lines if len(c) != len(columns)]:
        raise fault(
            f"{len(ragged)} rows do not have {len(columns)} cells", ragged, code="ragged_table"
        )
    rows = _in_order(form, lines, fault)
    names, table = (
        [line[columns.index(form.id)] for line in lines],
        [dict(zip(columns, line)) for line in lines],
    )
    for column in columns:
        allowed = (
            {form.empty}
            if column in (form.rle, form.boxes)
            else set(form.labels.values())
            if column == form.label
            else set()
        )
        if column not in (form.id, form.key, *form.passthrough) and (
            null := [
                n
                for n, cells in zip(names, table)
                if cells[column].strip().lower() in NOTHING and cells[column] not in allowed
            ]
        ):
            raise fault(
                counted(
                    len(null),
                    f"cell of column {column} holds nothing",
                    f"cells of column {column} hold nothing",
                ),
                null,
                code="empty_cells",
            )
    if form.label and (
        strange := [
            n for n, cells in zip(names, table) if cells[form.label] not in form.labels.values()
        ]
    ):
        raise fault(
            f"{len(strange)} labels are none of {', '.join(form.labels.values())}",
            strange,
            code="unknown_class",
        )
    if form.probabilities:
        _check_probabilities(form, table, names, fault)
        if meant and (
            other := [
                n
                for n, cells, row in zip(names, table, rows)
                if row.image in meant
                and any(
                    abs(float(cells[c]) - float(meant[row.image].probs[form.classes.index(label)]))
                    > 1e-5
                    for label, c in form.probabilities.items()
                )
            ]
        ):
            raise fault(
                "probabilities are not those that were predicted", other, code="not_as_decided"
            )
    if form.rle:
        _check_runs(
            form,
            [(cells[form.rle], n, row) for cells, n, row in zip(table, names, rows)],
            sizes,
            meant,
            fault,
        )
    if form.boxes:
        _check_boxes(
            form,
            [(cells[form.boxes], n, row) for cells, n, row in zip(table, names, rows)],
            sizes,
            fault,
        )
        if meant and (
            other := [
                n
                for n, cells, row in zip(names, table, rows)
                if row.image in meant
                and cells[form.boxes] != (meant[row.image].boxes or form.empty)
            ]
        ):
            raise fault(
                "boxes are not those of the masks that were decided", other, code="not_as_decided"
            )
    if pngs:
        _check_pngs(form, pngs, sizes, meant, fault)
    if (
        meant
        and form.label
        and (
            other := [
                n
                for n, cells, row in zip(names, table, rows)
                if row.image in meant and cells[form.label] != form.labels[meant[row.image].label]
            ]
        )
    ):
        raise fault("labels are not those that were decided", other, code="not_as_decided")


def _in_order(form: Form, lines: list[list[str]], fault: Found) -> list[Row]:
    """The row of the sample that each line answers: all of them, each once (or, where parts have a line each, one or more lines together), in its order."""
    where = [form.sample.columns.index(c) for c in (form.id, form.key) if c]
    rows = {tuple(row.cells[i] for i in where): row for row in form.rows}
    wanted = (
        list(rows)
        if form.row_per_component
        else [tuple(row.cells[i] for i in where) for row in form.rows]
    )
    there = keys = [tuple(cells[i] for i in where) for cells in lines]
    if form.row_per_component:
        there = [k for n, k in enumerate(keys) if n == 0 or keys[n - 1] != k]

    def said(found) -> list[str]:
        return [" ".join(k) for k in found]

    times: dict[tuple, int] = {}
    for k in there:
        times[k] = times.get(k, 0) + 1
    if missing := [k for k in wanted if k not in times]:
        raise fault(
            counted(
                len(missing), "of the sample's ids is missing", "of the sample's ids are missing"
            ),
            said(missing),
            code="ids_missing",
        )
    if foreign := [k for k in times if k not in rows]:
        raise fault(
            counted(len(foreign), "id is not in the sample", "ids are not in the sample"),
            said(foreign),
            code="ids_unknown",
        )
    if doubled := [k for k, n in times.items() if n > 1]:
        raise fault(
            counted(len(doubled), "id occurs more than once", "ids occur more than once"),
            said(doubled),
            code="id_twice",
        )
    if moved := [a for a, b in zip(there, wanted) if a != b]:
        raise fault(
            counted(
                len(moved), "row is not in the sample's order", "rows are not in the sample's order"
            ),
            said(moved),
            code="wrong_order",
        )
    return [rows[k] for k in keys]


def _check_probabilities(
    form: Form, table: list[dict[str, str]], names: list[str], fault: Found
) -> None:
    wrong = []
    for name, cells in zip(names, table):
        try:
            values = [float(cells[c]) for c in form.probabilities.values()]
        except ValueError:
            values = [2.0]
        whole = len(values) == len(form.classes)  # of two classes, only one may be asked for
        wrong += (
            []
            if all(0 <= v <= 1 for v in values)
            and sum(values) <= 1.001
            and (not whole or sum(values) >= 0.999)
            else [name]
        )
    if wrong:
        raise fault(
            f"{len(wrong)} rows hold no probabilities, or some that do not add up to 1",
            wrong,
            code="bad_probabilities",
        )


def _check_runs(
    form: Form,
    cells: Cells,
    sizes: dict[str, tuple[int, int]],
    meant: dict[str, Answer] | None,
    fault: Found,
) -> None:
    together: dict[tuple, list[tuple[str, str]]] = {}  # the lines of one mask
    for text, name, row in cells:
        together.setdefault((row.image or name, row.key), []).append((text, name))
    wrong: dict[str, list[str]] = {}
    other, shown = [], set()
    for (image, _), lines in together.items():
        height, width = form.size or sizes.get(image, (1, 1))
        flat = np.zeros(
            height * width, bool
        )  # one at a time: thousands of large masks do not fit into memory
        for text, name in lines:
            if kind := _draw(text, flat, form):
                wrong.setdefault(kind, []).append(name)
        answer = meant.get(image) if meant else None
        if answer is not None and (
            flat.any() or not form.keys
        ):  # of one image's classes only one carries the mask
            mask = (
                flat.reshape(width, height).T
                if form.order == "column"
                else flat.reshape(height, width)
            )
            other += [] if np.array_equal(np.packbits(mask), answer.bits) else [lines[0][1]]
            shown.add(image)
    for kind, ids in wrong.items():
        raise fault(f"run lengths of {len(ids)} rows {kind}", ids, code="bad_runs")
    if other:
        raise fault(
            f"run lengths of {len(other)} rows do not decode to the mask that was meant",
            other,
            code="not_as_decided",
        )
    if lost := [
        image for image, answer in (meant or {}).items() if answer.bits.any() and image not in shown
    ]:
        raise fault(f"the masks of {len(lost)} images are in no row", lost, code="not_as_decided")


def _draw(text: str, flat: np.ndarray, form: Form) -> str:
    """Run lengths onto the pixels (H·W) of one mask, in their order; what is wrong with them, or ''."""
    words, end = [] if text == form.empty else text.split(" "), 0
    if len(words) % 2 or not all(w.isdigit() for w in words):
        return "are no pairs of whole numbers"
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


def _check_boxes(form: Form, cells: Cells, sizes: dict[str, tuple[int, int]], fault: Found) -> None:
    words, wrong = form.box.split(), []
    for text, name, row in cells:
        found = [] if text == form.empty else text.split(" ")
        height, width = form.size or sizes.get(row.image, (1, 1))
        good = len(found) % len(words) == 0
        for i in range(0, len(found), len(words)) if good else []:
            box = dict(zip(words, found[i : i + len(words)]))
            try:
                left, top = float(box["xmin"]), float(box["ymin"])
                right = float(box["xmax"]) if "xmax" in box else left + float(box["width"])
                bottom = float(box["ymax"]) if "ymax" in box else top + float(box["height"])
                good &= (
                    0 <= left < right <= width
                    and 0 <= top < bottom <= height
                    and 0 <= float(box.get("confidence", 0)) <= 1
                )
            except ValueError:
                good = False
        wrong += [] if good else [name]
    if wrong:
        raise fault(
            f"boxes of {len(wrong)} rows are not '{form.box}', or lie outside of their image",
            wrong,
            code="bad_boxes",
        )


def _check_pngs(
    form: Form,
    pngs: zipfile.ZipFile,
    sizes: dict[str, tuple[int, int]],
    meant: dict[str, Answer] | None,
    fault: Found,
) -> None:
    from PIL import Image

    names, wanted = (
        set(pngs.namelist()) - {table_name(form)},
        {form.masks.replace("{id}", i): i for i in form.images},
    )
    if missing := sorted(set(wanted) - names):
        raise fault(
            counted(len(missing), "mask is missing", "masks are missing"),
            missing,
            code="ids_missing",
        )
    if foreign := sorted(names - set(wanted)):
        raise fault(
            counted(
                len(foreign),
                "file is of no image of the sample",
                "files are of no image of the sample",
            ),
            foreign,
            code="ids_unknown",
        )
    wrong = []
    for name, image in wanted.items():
        try:
            pixels = np.asarray(Image.open(io.BytesIO(pngs.read(name))))
            good = pixels.shape == tuple(form.size or sizes[image]) and set(
                np.unique(pixels).tolist()
            ) <= {0, form.mask_value}
            wrong += (
                []
                if good and (meant is None or np.array_equal(pixels > 0, meant[image].mask))
                else [name]
            )
        except (OSError, *DAMAGED):
            wrong.append(name)
    if wrong:
        raise fault(
            f"{len(wrong)} masks are not readable, or have another size or other values "
            "than they should",
            wrong,
            code="bad_masks",
        )
