"""Pages in one file: text, tables and pictures embedded, readable on a phone, in light and dark,
without any script. What a page says is in the templates beside this file (*.html.j2)."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.core.disk import replacing
from src.report.figures import png

SHOWN = ["score", "dice", "iou", "accuracy", "macro_f1", "auc"]  # by fold, and on the console
# the lecture's numbers: their names on the page, and the metric that answers the same question
LECTURE = {
    "lecture_iou": ("IoU of pixels", "iou"),
    "lecture_f1": ("F1 of pixels", "dice"),
    "lecture_dice": ("Dice of pixels", "dice"),
    "lecture_precision": ("precision of pixels", "precision"),
    "lecture_recall": ("recall of pixels", "recall"),
    "lecture_accuracy": ("accuracy of labels", "accuracy"),
    "lecture_macro_f1": ("macro F1 of labels", "macro_f1"),
}


def render(template: str, **about) -> str:
    """The page. Every text is escaped; a picture is an array (h,w,3) RGB uint8 or a PNG file."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["data_url"] = data_url
    pages.globals |= {"pick": pick, "spread_text": spread_text, "present": present}
    pages.globals |= {"SHOWN": SHOWN, "LECTURE": LECTURE}
    return pages.get_template(template).render(about)


def save(path: Path, template: str, **about) -> None:
    with replacing(path) as temporary:
        temporary.write_text(render(template, **about), encoding="utf-8")


def data_url(picture: np.ndarray | Path) -> str:
    data = picture.read_bytes() if isinstance(picture, Path) else png(picture)
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def pick(result: dict, name: str) -> float:
    """The score, or a metric, of one part of metrics.json."""
    return result["score"] if name == "score" else result["metrics"][name]


def present(names: Iterable[str], results: Iterable[dict]) -> list[str]:
    """The names that at least one of the results has."""
    return [name for name in names if any(name in result for result in results)]


def spread_text(result: dict) -> str:
    if result["spread"] is None:
        return ""
    scores = [f["score"] for f in result["by_fold"].values()]
    return (
        f"; folds {min(scores):.3f} to {max(scores):.3f}, standard deviation {result['spread']:.3f}"
    )
