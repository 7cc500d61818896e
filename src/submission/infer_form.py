"""The form of the submission, by competition.yaml or by what the sample and the data show."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src.core.console import InputError
from src.core.settings import Competition
from src.data.cells import names_of
from src.submission.columns import infer_columns, infer_keys, infer_labels
from src.submission.form import Form
from src.submission.mask_format import infer_boxes, infer_pngs, infer_runs
from src.submission.rows import match_rows
from src.submission.sample import SampleError, read_sample


def infer_form(
    file: Path, competition: Competition, known: Iterable[str], runs: dict[str, Any] | None = None
) -> Form:
    """The form of the submission that `file` is a sample of.

    known: ids of the test images; runs: what the train table's run lengths show
    (data/rle_dialect.py). Raises InputError for a sample that is damaged, a column that is not
    understood, and a setting that does not fit the sample.
    """
    given, runs = competition.submission, runs or {}
    sample = read_sample(file, given)
    id, name, rows = match_rows(sample, given, known)
    form = Form(sample, rows, competition.classes, given, id, name)
    form.note("id", id)
    form.note("name", name)
    infer_columns(form)
    infer_keys(form)
    infer_labels(form)
    if form.rle:
        infer_runs(form, runs)
    if form.boxes:
        infer_boxes(form)
    if given.masks or sample.pngs:
        infer_pngs(form)
    form.size = given.size
    if runs.get("size") and not given.size:
        form.size = tuple(runs["size"])
        form.note("size", f"{form.size[0]}x{form.size[1]}", "as the train table's")
    if not form.requested:
        raise SampleError(
            f"the columns are {names_of(sample.columns)}",
            sample,
            f"Expected {id} with a class, probabilities, run lengths or boxes; "
            "name them in competition.yaml under submission",
            code="asks_nothing",
        )
    return form


def preview_form(file: Path, competition: Competition, known: Iterable[str]) -> Form | None:
    """The form before prepare has seen the train table; None where the sample is missing or not
    understood (submit says why). Cached: a plan of the jobs asks for it several times."""
    if not file.is_file():
        return None
    stat = file.stat()
    settings = competition.model_dump_json(include={"data", "submission"})
    return _preview(file, (stat.st_size, stat.st_mtime_ns), settings, tuple(known))


@functools.lru_cache(maxsize=8)
def _preview(
    file: Path, version: tuple[int, int], settings: str, known: tuple[str, ...]
) -> Form | None:
    try:
        return infer_form(file, Competition.model_validate_json(settings), known)
    except InputError:
        return None
