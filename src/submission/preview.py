"""The form of the submission for a plan of the jobs, which asks for it several times: cached."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from src.core.console import InputError
from src.core.settings import Competition
from src.submission.form import Form
from src.submission.infer_form import infer_form


def preview_form(file: Path, competition: Competition, known: Iterable[str]) -> Form | None:
    """The form before prepare has seen the train table; None where the sample is missing or not
    understood (submit says why)."""
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
