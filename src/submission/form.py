"""The form of a submission: every field of `submission:` decided, by competition.yaml or by what the sample and the data show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.core.console import InputError, listing, nearest, printable, short
from src.core.settings import Competition, Data, Submission
from src.data.cells import check_written, names_of
from src.data.columns import class_of, column_role, find_id, is_runs, spell
from src.data.rle_dialect import SETTING
from src.submission.sample import Row, Sample, match_rows, read_sample

BOX = "confidence xmin ymin xmax ymax"
BOX_WORDS = {"label", "confidence", "xmin", "ymin", "xmax", "ymax", "width", "height"}
TITLES = {"key": "the class of a row", "label": "a class", "rle": "run lengths", "boxes": "boxes"}


@dataclass
class Form:
    """`submission:` with nothing left open. Columns are names in `sample.columns`; None: the sample does not ask for it."""

    sample: Sample
    rows: list[Row]
    classes: list[str]
    id: str
    name: str
    key: str | None = None
    label: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    probabilities: dict[str, str] = field(default_factory=dict)
    rle: str | None = None
    order: str = "column"
    first_pixel: int = 1
    relative_starts: bool = False
    empty: str = ""
    size: tuple[int, int] | None = None
    row_per_component: bool = False
    boxes: str | None = None
    box: str = BOX
    masks: str | None = None
    mask_value: int = 255
    passthrough: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # what was inferred, and from what

    @property
    def asks(self) -> dict[str, str]:
        """'mask' and 'label', as far as they are asked for -> what asks for them."""
        mask = self.rle or self.boxes or self.masks
        label = (
            self.label
            or next(iter(self.probabilities.values()), None)
            or (self.key if len(self.keys) > 1 else None)
            or ("label" if self.boxes and "label" in self.box.split() else None)
        )
        return {
            k: v
            for k, v in (
                ("mask", mask),
                ("label", label or (self.id if len(self.keys) > 1 else None)),
            )
            if v
        }

    @property
    def images(self) -> list[str]:
        """Those that are on disk, each once, in the order of the rows."""
        return list(dict.fromkeys(r.image for r in self.rows if r.image is not None))

    @property
    def unknown(self) -> list[str]:
        """What rows without an image on disk call it."""
        at = self.sample.columns.index(self.id)
        return [r.cells[at].strip() for r in self.rows if r.image is None]


def infer(
    file: Path, competition: Competition, known: Iterable[str], runs: dict[str, Any] | None = None
) -> Form:
    """The form of the submission that `file` is a sample of. known: ids of the test images; runs: what the train table's run lengths show (detect.py).

    Raises InputError for a sample that is damaged, a column that is not understood, and a setting that does not fit the sample.
    """
    given, data, sample = (
        competition.submission,
        competition.data,
        read_sample(file, competition.submission),
    )
    column, name, rows = match_rows(sample, given, known)
    form = Form(sample, rows, data.classes, column, name)
    told = _Told(form, given)
    told("id", column)
    told("name", name)
    _check_settings(form, given, data)
    _columns(form, told, given, data)
    _keys(form, told, given, data)
    _labels(form, told, given, data)
    if form.rle:
        _runs(form, told, given, sample.column(form.rle), runs or {})
    if form.boxes:
        _boxes(form, told, given)
    _pictures(form, told, given)
    form.size = given.size or (tuple(runs["size"]) if runs and runs.get("size") else None)
    if form.size and not given.size:
        told("size", f"{form.size[0]}x{form.size[1]}", "as the train table's")
    if not form.asks:
        todo = (
            f"Expected {column} with a class, probabilities, run lengths or boxes; "
            "name them in competition.yaml under submission"
        )
        what = f"the columns are {names_of(sample.columns)}"
        raise InputError(what, short(file), todo, code="asks_nothing")
    return form


def _written(labels: dict[str, str]) -> str:
    return ", ".join(f"{v} for {k}" for k, v in labels.items())


class _Told:
    """What was inferred rather than given, in words."""

    def __init__(self, form: Form, given: Submission):
        self.form, self.given = form, given

    def __call__(self, name: str, value: object, why: str = "") -> None:
        if getattr(self.given, name) is None:
            self.form.said.append(f"{name}: {printable(value)}" + (f" ({why})" if why else ""))

    def pick(self, name: str, given: Any, found: Any, why: str = "") -> Any:
        if given is None:
            self(
                name,
                ("no", "yes")[found]
                if isinstance(found, bool)
                else found
                if found != ""
                else "an empty cell",
                why,
            )
        return found if given is None else given


def _check_settings(form: Form, given: Submission, data: Data) -> None:
    """Raises InputError for columns and classes that there are not."""
    sample = form.sample
    if mine := next(
        (k for k in ("key", "label", "rle", "boxes") if getattr(given, k) == form.id), None
    ):
        raise InputError(
            f"column '{form.id}' holds the ids, and submission.{mine} names it too",
            short(sample.file),
            "Correct one of them in competition.yaml",
            code="odd_columns",
        )
    for setting, columns in (
        ("passthrough", given.passthrough or []),
        ("probabilities", (given.probabilities or {}).values()),
    ):
        if absent := [c for c in columns if c not in sample.columns]:
            what = f"no column {absent[0]}; there are {names_of(sample.columns)}"
            todo = f"Correct submission.{setting} in competition.yaml"
            raise InputError(what, short(sample.file), todo, code="no_column")
    for setting in ("probabilities", "labels"):
        if strange := [c for c in getattr(given, setting) or {} if c not in data.classes]:
            raise InputError(
                f"submission.{setting}: '{strange[0]}' is no class",
                short(sample.file),
                nearest(strange[0], data.classes),
                code="unknown_class",
            )
    words = (given.box or BOX).split()
    if bad := [w for w in words if w not in BOX_WORDS]:
        raise InputError(
            f"submission.box has the word '{bad[0]}'",
            short(sample.file),
            f"Known are {', '.join(sorted(BOX_WORDS))}",
            code="invalid_value",
        )
    if not (
        {"xmin", "ymin"} <= set(words)
        and {"xmax", "width"} & set(words)
        and {"ymax", "height"} & set(words)
    ):
        raise InputError(
            f"submission.box is '{given.box}'",
            short(sample.file),
            f"It needs xmin, ymin, and xmax or width, ymax or height, for example {BOX}",
            code="invalid_value",
        )


def _columns(form: Form, told: _Told, given: Submission, data: Data) -> None:
    """What every column but that of ids asks for: as given, or by what is in it."""
    sample = form.sample
    form.passthrough = list(given.passthrough or [])
    named = {v: k for k in TITLES if (v := getattr(given, k))} | dict.fromkeys(
        (given.probabilities or {}).values(), "probability"
    )
    for column in sample.columns:
        if column == form.id or column in form.passthrough:
            continue
        cells = sample.column(column)
        kind = named.get(column) or column_role(
            column, cells, data.classes, (given.labels or {}).values()
        )
        if kind == "label" and column not in named and _tells_rows_apart(form, cells, given, data):
            kind = "key"
        of_masks = (given.masks or sample.pngs) and all(c.lower().endswith(".png") for c in cells)
        if (
            of_masks
            or not kind
            and (column.lower() in ("height", "width", "") or column.startswith("Unnamed:"))
        ):  # a table's row numbers have no name
            form.passthrough.append(column)
            told("passthrough", column or "the column without a name")
        elif kind == "probability":
            of = next(
                (c for c, col in (given.probabilities or {}).items() if col == column), None
            ) or class_of(column, data.classes)
            if of in form.probabilities:
                raise InputError(
                    f"columns '{form.probabilities[of]}' and '{column}' both look "
                    f"like probabilities of {of}",
                    short(sample.file),
                    "Name them: submission.probabilities",
                    code="columns_alike",
                )
            form.probabilities[of] = column
        elif not kind:
            of = class_of(column, data.classes)
            likely = (
                f"probabilities: {{{of}: {column}, …}}"
                if of
                else f"label: {column} (a class), or rle: {column} (run lengths)"
            )
            todo = f"Say in competition.yaml under submission what it is: {likely}, or passthrough: [{column}], to hand it in as it is"
            raise InputError(
                f"column '{column}' is not known", short(sample.file), todo, code="unknown_column"
            )
        elif getattr(form, kind):
            todo = f"Name the right one: submission.{kind}, and the other one under submission.passthrough"
            raise InputError(
                f"columns '{getattr(form, kind)}' and '{column}' both look like {TITLES[kind]}",
                short(sample.file),
                todo,
                code="columns_alike",
            )
        else:
            setattr(form, kind, column)
            told(kind, column)
    if form.probabilities:
        told("probabilities", _written(form.probabilities))


def _tells_rows_apart(form: Form, cells: list[str], given: Submission, data: Data) -> bool:
    """Whether images have several rows, each with another class in this column."""
    by_image: dict[str, list[str]] = {}
    for image, cell in zip(form.sample.column(form.id), cells):
        by_image.setdefault(image, []).append(cell)
    several = len(by_image) < len(cells) and all(
        len(set(its)) == len(its) for its in by_image.values()
    )
    return several and bool(
        given.labels or spell(set(cells), data.classes, data.empty_class, whole=True)
    )


def _labels(form: Form, told: _Told, given: Submission, data: Data) -> None:
    """What is written for each class, in the column of the class and in boxes."""
    where = short(form.sample.file)
    shown = set(form.sample.column(form.label)) if form.label else set()
    for text in (given.labels or {}).values() if form.label or form.boxes else ():
        check_written(text, shown, "labels", where)
    if form.label:
        form.labels = (
            given.labels or spell(shown, data.classes, data.empty_class, whole=False) or {}
        )
        if not form.labels:
            todo = f"Say what stands for each class: submission.labels: {{{data.classes[0]}: …}}; for a column of probabilities, of which class: submission.probabilities: {{{data.classes[0]}: {form.label}}}"
            found = f"column '{form.label}' holds {names_of(sorted(shown), 3)}, which is no class"
            raise InputError(found, where, todo, code="unknown_class")
        if any(s.isdigit() for s in shown) and list(form.labels) != list(form.labels.values()):
            open_ = not shown & {"0", str(len(data.classes))}
            told(
                "labels",
                _written(form.labels),
                "assumed: in the order of data.classes" + (", and counted from 0" if open_ else ""),
            )
        elif list(form.labels) != list(form.labels.values()) or not any(shown):
            told(
                "labels",
                _written(form.labels),
                "" if any(shown) else "assumed: the sample shows none",
            )
    elif form.boxes:
        form.labels = given.labels or {c: c for c in data.classes}
    if form.labels and (lacking := [c for c in data.classes if c not in form.labels]):
        raise InputError(
            f"submission.labels has nothing for {listing(lacking)}",
            where,
            "Every class needs its own",
            code="invalid_value",
        )
    if len(set(form.labels.values())) < len(form.labels):
        raise InputError(
            f"submission.labels writes the same for two classes: {_written(form.labels)}",
            where,
            "Every class needs its own",
            code="invalid_value",
        )


def _boxes(form: Form, told: _Told, given: Submission) -> None:
    """How boxes are written, and none of them."""
    sample, form.box = form.sample, told.pick("box", given.box and " ".join(given.box.split()), BOX)
    words = form.box.split()
    if "label" in words and (spaced := [v for v in form.labels.values() if " " in v]):
        raise InputError(
            f"a box cannot hold the label '{spaced[0]}', which has a space",
            short(sample.file),
            f"Say what stands for each class: submission.labels: {{{form.classes[0]}: …}}",
            code="invalid_value",
        )
    numbers = re.compile(r"[-+.\deE ]+")
    tokens = sorted(
        {
            c
            for c in sample.column(form.boxes)
            if c
            and (len(c.split()) % len(words) or "label" not in words and not numbers.fullmatch(c))
        }
    )
    if len(tokens) > 1:
        todo = (
            f"These are no boxes of '{form.box}': correct submission.box, or say what stands "
            "for none: submission.empty"
        )
        what = f"column '{form.boxes}' holds {names_of(tokens, 4)}"
        raise InputError(what, short(sample.file), todo, code="no_boxes")
    if given.empty or given.empty is not None and tokens:  # a sample of none may be of empty cells
        check_written(given.empty, set(sample.column(form.boxes)), "empty", short(sample.file))
    form.empty = told.pick("empty", given.empty, tokens[0] if tokens else "")


def _pictures(form: Form, told: _Told, given: Submission) -> None:
    """Masks as PNG files in a zip."""
    if given.masks or form.sample.pngs:
        form.masks = told.pick("masks", given.masks, given.masks or _png_name(form, form.sample))
        form.mask_value = told.pick("mask_value", given.mask_value, form.sample.lesion or 255)
        if form.masks.count("{id}") != 1:
            raise InputError(
                f"submission.masks is '{form.masks}'",
                short(form.sample.file),
                "It needs {id} once, for example masks/{id}.png",
                code="invalid_value",
            )


def _png_name(form: Form, sample: Sample) -> str:
    found = [find_id(n.removesuffix(".png"), set(form.images)) for n in sample.pngs]
    if not any(found):
        raise InputError(
            f"the PNG files of the zip are not named for test images, for example {sample.pngs[0]}",
            short(sample.file),
            "Say how: submission.masks, for example masks/{id}.png",
            code="invalid_value",
        )
    before, _, behind = next(f for f in found if f)
    return before + "{id}" + behind + ".png"


def _keys(form: Form, told: _Told, given: Submission, data: Data) -> None:
    """The class that each row is about, where rows have one."""
    sample = form.sample
    if form.key:
        at = sample.columns.index(form.key)
        for row, cells in zip(form.rows, sample.cells):
            row.key = cells[at]
    shown = {r.key for r in form.rows if r.key is not None}
    if not shown:
        ids = sample.column(form.id)
        if len(set(ids)) < len(ids):
            if (
                not form.rle
                or given.row_per_component is False
                or given.row_per_component is None
                and len(set(map(tuple, sample.cells))) < len(ids)
            ):
                todo = "One row an image is expected" + (
                    "; where every part of a mask has one: submission.row_per_component: true"
                    if form.rle
                    else ""
                )
                twice = sorted(i for i, n in Counter(ids).items() if n > 1)
                what = f"the same id twice: {names_of(twice, 8)}"
                raise InputError(what, short(sample.file), todo, code="id_twice")
            form.row_per_component = told.pick(
                "row_per_component", given.row_per_component, True, "images have several rows"
            )
        return
    form.keys = given.labels or spell(shown, data.classes, data.empty_class, whole=True) or {}
    back = {v: k for k, v in form.keys.items()}
    if strange := sorted(shown - set(back)):
        shown_as = names_of(strange[:1])
        todo = f"Say what stands for each: submission.labels: {{{data.classes[0]}: {shown_as}}}"
        what = f"the rows' class {shown_as} is no class"
        raise InputError(what, short(sample.file), todo, code="unknown_class")
    form.keys = {c: v for c, v in form.keys.items() if v in shown}
    order = (
        "; assumed: in the order of data.classes"
        if all(v.isdigit() for v in shown) and list(form.keys) != list(form.keys.values())
        else ""
    )
    told("labels", _written(form.keys), f"a row for each{order}")
    for row in form.rows:
        row.key = back.get(row.key)


def _runs(
    form: Form, told: _Told, given: Submission, cells: list[str], found: dict[str, Any]
) -> None:
    """How masks are written: as given, as the train table's are, as the sample's are, or as Kaggle usually has it."""
    runs = {c for c in cells if is_runs(c)}
    tokens = sorted({c for c in cells if not is_runs(c)}, key=lambda t: (t == "", t))
    # '0 0' has no pixel: a way of writing nothing
    tokens += sorted(c for c in runs if not any(n.strip("0") for n in c.split()[1::2]))
    if len([t for t in tokens if t]) > 1:
        what = f"column '{form.rle}' holds {names_of(tokens, 4)}"
        todo = "Say which of them stands for an empty mask: submission.empty"
        raise InputError(what, short(form.sample.file), todo, code="many_empty_tokens")
    starts = [w.lstrip("0") for c in runs - set(tokens) for w in c.split()[::2]]
    usual = {
        "order": ("column", "assumed, as usual: the sample does not show it"),
        "first": (1, "assumed, as usual"),
        "relative": (False, ""),
    }
    if "" in starts:
        usual["first"] = (0, "the sample has a run from 0")
    for fact, (value, why) in usual.items():
        name = SETTING[fact]
        if fact in found:
            value, why = (
                found[fact],
                "assumed: the train table leaves it open"
                if fact in found.get("assumed", [])
                else "as the train table's",
            )
        if fact == "relative" and not value:  # not worth a word
            form.relative_starts = bool(given.relative_starts)
            continue
        setattr(form, name, told.pick(name, getattr(given, name), value, why))
    empty = tokens[0] if tokens else found.get("empty", "")
    why = (
        ""
        if tokens
        else "as the train table's"
        if "empty" in found
        else "assumed: the sample shows only placeholders"
    )
    if given.empty or given.empty is not None and tokens:  # as for boxes
        check_written(given.empty, set(cells), "empty", short(form.sample.file))
    form.empty = told.pick("empty", given.empty, empty, why)
    if not form.row_per_component and not form.keys:
        several = (
            bool(found.get("several"))
            if given.row_per_component is None
            else given.row_per_component
        )
        form.row_per_component = several
        if several:
            told(
                "row_per_component",
                "yes",
                "a row for each part, as the train table has it, so more rows than the sample; submission.row_per_component: false gives one an image",
            )
