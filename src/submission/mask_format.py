"""How masks are written: as run lengths, as boxes around them, or as PNG files."""

from __future__ import annotations

import re
from typing import Any

from src.core.console import short
from src.data.cells import check_written, names_of
from src.data.columns import RUN_SETTINGS, find_id, is_runs
from src.submission.form import BOX, Form
from src.submission.sample import SampleError

FROM_TABLE = "as the train table's"
NUMBERS = re.compile(r"[-+.\deE ]+")


def infer_runs(form: Form, found: dict[str, Any]) -> None:
    """As given, as the train table's run lengths are, as the sample's are, or as Kaggle usually has
    it. found: what the train table shows."""
    cells = set(form.sample.column(form.rle))
    runs = {cell for cell in cells if is_runs(cell)}
    # '0 0' has no pixel: one way to write nothing
    without_pixels = {c for c in runs if not any(n.strip("0") for n in c.split()[1::2])}
    tokens = sorted(cells - runs, key=lambda t: (t == "", t)) + sorted(without_pixels)
    if len([t for t in tokens if t]) > 1:
        raise SampleError(
            f"column '{form.rle}' holds {names_of(tokens, 4)}",
            form.sample,
            "Say which of them stands for an empty mask: submission.empty",
            code="many_empty_tokens",
        )
    starts = {start.lstrip("0") for c in runs - without_pixels for start in c.split()[::2]}
    usual = {
        "order": ("column", "assumed, as usual: the sample does not show it"),
        "first": (1, "assumed, as usual"),
        "relative": (False, ""),
    }
    if "" in starts:
        usual["first"] = (0, "the sample has a run from 0")
    for fact, setting in RUN_SETTINGS.items():
        value, why = usual[fact]
        if fact in found:
            value, why = found[fact], FROM_TABLE
        if fact in found.get("assumed", []):
            why = "assumed: the train table leaves it open"
        form.decide(setting, value, why)
    why = FROM_TABLE if "empty" in found else "assumed: the sample shows only placeholders"
    _decide_empty(form, form.rle, tokens, found.get("empty", ""), why)
    if not form.row_per_component and not form.keys:
        form.decide(
            "row_per_component",
            bool(found.get("several")),
            "a row for each component, as the train table has it, so more rows than the sample; "
            "submission.row_per_component: false gives one an image",
        )


def infer_boxes(form: Form) -> None:
    """How boxes are written, and the absence of them."""
    form.decide("box", BOX)
    words = form.box.split()
    form.box = " ".join(words)
    has_label = "label" in words
    if has_label and (spaced := [text for text in form.labels.values() if " " in text]):
        raise SampleError(
            f"a box cannot hold the label '{spaced[0]}', which has a space",
            form.sample,
            f"Say what stands for each class: submission.labels: {{{form.classes.names[0]}: …}}",
            code="invalid_value",
        )

    def is_token(cell: str) -> bool:
        return len(cell.split()) % len(words) > 0 or not has_label and not NUMBERS.fullmatch(cell)

    tokens = sorted(filter(is_token, set(form.sample.column(form.boxes)) - {""}))
    if len(tokens) > 1:
        raise SampleError(
            f"column '{form.boxes}' holds {names_of(tokens, 4)}",
            form.sample,
            f"These are not boxes of '{form.box}': correct submission.box, or say what stands for "
            "none: submission.empty",
            code="no_boxes",
        )
    _decide_empty(form, form.boxes, tokens, "", "")


def _decide_empty(form: Form, column: str, tokens: list[str], default: str, why: str) -> None:
    """tokens: what the sample's column has for nothing."""
    given = form.given.empty
    if given or given is not None and tokens:  # a sample of nothing may be of empty cells
        check_written(given, set(form.sample.column(column)), "empty", short(form.sample.file))
    if tokens:
        default, why = tokens[0], ""
    form.decide("empty", default, why)


def infer_pngs(form: Form) -> None:
    """Masks as PNG files in a zip."""
    form.decide("masks", form.given.masks or _png_name(form))
    form.decide("mask_value", form.sample.mask_value or 255)
    if form.masks.count("{id}") != 1:
        raise SampleError(
            f"submission.masks is '{form.masks}'",
            form.sample,
            "It needs {id} once, for example masks/{id}.png",
            code="invalid_value",
        )


def _png_name(form: Form) -> str:
    known = set(form.images)
    for png in form.sample.pngs:
        if found := find_id(png.removesuffix(".png"), known):
            return found[0] + "{id}" + found[2] + ".png"
    raise SampleError(
        "the PNG files of the zip are not named for test images, for example "
        f"{form.sample.pngs[0]}",
        form.sample,
        "Say how: submission.masks, for example masks/{id}.png",
        code="invalid_value",
    )
