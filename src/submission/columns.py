"""What each column of the sample asks for, and how classes are written in it."""

from __future__ import annotations

from collections import Counter

from src.core.console import listing, nearest, short
from src.data.cells import check_written, names_of
from src.data.columns import class_of, column_role, spell
from src.submission.form import BOX, Form
from src.submission.sample import SampleError

ROLES = {"key": "the class of a row", "label": "a class", "rle": "run lengths", "boxes": "boxes"}
BOX_WORDS = {"label", "confidence", "xmin", "ymin", "xmax", "ymax", "width", "height"}


# -------------------------------------------------------------------------------------- columns


def infer_columns(form: Form) -> None:
    """What every column but that of ids asks for: as given, or by its cells and its name."""
    _check_settings(form)
    form.passthrough = list(form.given.passthrough or [])
    for column in form.sample.columns:
        if column == form.id or column in form.passthrough:
            continue
        role = _role(form, column)
        if role == "passthrough":
            form.passthrough.append(column)
            form.note("passthrough", column or "the column without a name")
        elif role == "probability":
            _add_probability(form, column)
        elif not role:
            raise _unknown(form, column)
        elif getattr(form, role):
            raise SampleError(
                f"columns '{getattr(form, role)}' and '{column}' both look like {ROLES[role]}",
                form.sample,
                f"Name the right one: submission.{role}, and the other one under "
                "submission.passthrough",
                code="columns_alike",
            )
        else:
            setattr(form, role, column)
            form.note(role, column)
    if form.probabilities:
        form.note("probabilities", form.probabilities)


def _check_settings(form: Form) -> None:
    """Raises InputError for a setting that names the column of ids, for classes that there are not,
    and for a `box` that does not make a box."""
    given, classes = form.given, form.classes.names
    for role in ROLES:
        if getattr(given, role) == form.id:
            raise SampleError(
                f"column '{form.id}' holds the ids, and submission.{role} names it too",
                form.sample,
                "Correct one of them in competition.yaml",
                code="odd_columns",
            )
    for setting in ("probabilities", "labels"):
        for name in getattr(given, setting) or {}:
            if name not in classes:
                raise SampleError(
                    f"submission.{setting}: '{name}' is not a class",
                    form.sample,
                    nearest(name, classes),
                    code="unknown_class",
                )
    words = set((given.box or BOX).split())
    has_size = words & {"xmax", "width"} and words & {"ymax", "height"}
    if not has_size or not {"xmin", "ymin"} <= words <= BOX_WORDS:
        raise SampleError(
            f"submission.box is '{given.box}'",
            form.sample,
            "It needs xmin, ymin, and xmax or width, ymax or height, and may have label and "
            f"confidence; for example {BOX}",
            code="invalid_value",
        )


def _probabilities(form: Form) -> dict[str, str]:
    return form.given.probabilities or {}


def _role(form: Form, column: str) -> str:
    """A field of ROLES, 'probability', 'passthrough', or '' where nothing shows it."""
    given, cells = form.given, form.sample.column(column)
    named = {getattr(given, role): role for role in ROLES}
    named |= dict.fromkeys(_probabilities(form).values(), "probability")
    written = (given.labels or {}).values()
    role = named.get(column) or column_role(column, cells, form.classes.names, written)
    is_zipped = given.masks or form.sample.pngs
    if is_zipped and all(cell.lower().endswith(".png") for cell in cells):
        return "passthrough"
    # a table's row numbers have no name
    if not role and (column.lower() in ("height", "width", "") or column.startswith("Unnamed:")):
        return "passthrough"
    if role == "label" and column not in named and _distinguishes_rows(form, cells):
        return "key"
    return role


def _distinguishes_rows(form: Form, cells: list[str]) -> bool:
    """Whether images have several rows, each with another class in this column."""
    rows = Counter(zip(form.sample.column(form.id), cells))
    is_several = len({id for id, _ in rows}) < len(cells)
    if not is_several or max(rows.values()) > 1:
        return False
    return bool(form.given.labels or spell(set(cells), *form.classes, whole=True))


def _add_probability(form: Form, column: str) -> None:
    named = {name: label for label, name in _probabilities(form).items()}
    label = named.get(column) or class_of(column, form.classes.names)
    if label in form.probabilities:
        raise SampleError(
            f"columns '{form.probabilities[label]}' and '{column}' both look like "
            f"probabilities of {label}",
            form.sample,
            "Name them: submission.probabilities",
            code="columns_alike",
        )
    form.probabilities[label] = column


def _unknown(form: Form, column: str) -> SampleError:
    label = class_of(column, form.classes.names)
    likely = f"label: {column} (a class), or rle: {column} (run lengths)"
    if label:
        likely = f"probabilities: {{{label}: {column}, …}}"
    return SampleError(
        f"column '{column}' is not known",
        form.sample,
        f"Say in competition.yaml under submission what it is: {likely}, or "
        f"passthrough: [{column}], to submit it as it is",
        code="unknown_column",
    )


# -------------------------------------------------------------------------------------- classes


def infer_keys(form: Form) -> None:
    """The class that each row is about, where rows have one."""
    sample, (classes, empty) = form.sample, form.classes
    if form.key:
        for row, cell in zip(form.rows, sample.column(form.key)):
            row.key = cell
    shown = {row.key for row in form.rows} - {None}
    if not shown:
        return _check_ids(form)
    written = form.given.labels or spell(shown, classes, empty, whole=True) or {}
    by_text = {text: label for label, text in written.items()}
    if strange := sorted(shown - set(by_text)):
        text = names_of(strange[:1])
        raise SampleError(
            f"the rows' class {text} is not a class",
            sample,
            f"Say what stands for each: submission.labels: {{{classes[0]}: {text}}}",
            code="unknown_class",
        )
    form.keys = {label: text for label, text in written.items() if text in shown}
    why = "a row for each"
    if all(text.isdigit() for text in shown) and not _are_names(form.keys):
        why += "; assumed: in the order of data.classes"
    form.note("labels", form.keys, why)
    for row in form.rows:
        row.key = by_text.get(row.key)


def _check_ids(form: Form) -> None:
    """Raises InputError for an id in several rows, unless every connected component has one."""
    ids = form.sample.column(form.id)
    if len(set(ids)) == len(ids):
        return
    are_components = form.given.row_per_component
    if are_components is None:
        are_components = len(set(map(tuple, form.sample.cells))) == len(ids)
    if not form.rle or not are_components:
        todo = "One row an image is expected"
        if form.rle:
            todo += "; where every connected component has one: submission.row_per_component: true"
        twice = sorted(id for id, count in Counter(ids).items() if count > 1)
        raise SampleError(
            f"the same id twice: {names_of(twice, 8)}", form.sample, todo, code="id_twice"
        )
    form.decide("row_per_component", True, "images have several rows")


def infer_labels(form: Form) -> None:
    """What is written for each class, in the column of the class and in boxes."""
    given, classes = form.given.labels, form.classes.names
    if not form.label and not form.boxes:
        return
    shown = set(form.sample.column(form.label)) if form.label else set()
    for text in (given or {}).values():
        check_written(text, shown, "labels", short(form.sample.file))
    if form.label:
        form.labels = given or spell(shown, *form.classes, whole=False) or {}
        if not form.labels:
            raise SampleError(
                f"column '{form.label}' holds {names_of(sorted(shown), 3)}, which is not a class",
                form.sample,
                f"Say what stands for each class: submission.labels: {{{classes[0]}: …}}; for a "
                "column of probabilities, of which class: submission.probabilities: "
                f"{{{classes[0]}: {form.label}}}",
                code="unknown_class",
            )
        _note_labels(form, shown)
    else:
        form.labels = given or {label: label for label in classes}
    wrong = ""
    if lacking := [label for label in classes if label not in form.labels]:
        wrong = f"submission.labels has nothing for {listing(lacking)}"
    elif len(set(form.labels.values())) < len(form.labels):
        written = ", ".join(f"{text} for {label}" for label, text in form.labels.items())
        wrong = f"submission.labels writes the same for two classes: {written}"
    if wrong:
        raise SampleError(wrong, form.sample, "Every class needs its own", code="invalid_value")


def _note_labels(form: Form, shown: set[str]) -> None:
    are_names, why = _are_names(form.labels), ""
    if any(text.isdigit() for text in shown) and not are_names:
        why = "assumed: in the order of data.classes"
        if not shown & {"0", str(len(form.classes.names))}:
            why += ", and counted from 0"
    elif not any(shown):
        why = "assumed: the sample shows none"
    elif are_names:
        return
    form.note("labels", form.labels, why)


def _are_names(labels: dict[str, str]) -> bool:
    """Whether classes are written by their own names."""
    return list(labels) == list(labels.values())
