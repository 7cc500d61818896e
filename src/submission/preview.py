"""The form of the submission at a glance: asked for by every plan, so kept."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from src.core.console import InputError
from src.core.settings import Competition
from src.submission.form import Form, infer


def preview_form(file: Path, competition: Competition, known: Iterable[str]) -> Form | None:
    """The form before prepare has seen the train table; None where the sample is not there or not understood (submit says why)."""
    if not file.is_file():
        return None
    stat = file.stat()
    return _preview(
        file,
        stat.st_size,
        stat.st_mtime_ns,
        competition.model_dump_json(include={"data", "submission"}),
        tuple(known),
    )


@functools.lru_cache(maxsize=8)
def _preview(
    file: Path, size: int, changed: int, settings: str, known: tuple[str, ...]
) -> Form | None:
    try:
        return infer(file, Competition.model_validate_json(settings), known)
    except InputError:
        return None
