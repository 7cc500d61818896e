"""What the columns of a table hold: ids, classes, run lengths, boxes or probabilities.

The table of the train images and the sample submission are read by the same rules.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable

# names of columns, as `plain_name` writes them
RUN_NAMES = {
    "rle",
    "rles",
    "rlemask",
    "maskrle",
    "runlength",
    "runlengths",
    "mask",
    "masks",
    "pixels",
    "encodedpixels",
    "encodedmask",
    "predicted",
    "predictedrle",
    "segmentation",
    "annotation",
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
UNCERTAIN = {"predicted", "annotation", "segmentation", "prediction"}  # runs, and classes too

# what report.json knows of the run lengths -> the setting of `submission:` that decides it
RUN_SETTINGS = {"order": "order", "first": "first_pixel", "relative": "relative_starts"}

LONGEST = 200  # characters of a file's name: run lengths need not be searched for one
SEPARATORS = re.compile(r"[^0-9A-Za-z]+")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
AROUND_CLASS = re.compile(
    r"(^| )(p|prob|probability|proba|score|pred|predicted|conf|confidence|is|class|target)(?= |$)"
)


# ---------------------------------------------------------------------------------------- ids


def find_id(value: str, known: Iterable[str]) -> tuple[str, str, str] | None:
    """(what stands before an image's id in a cell, the id, what stands behind it).

    The id is the first and longest run of whole words that is among `known`; None: there is none.
    """
    if value in known:
        return "", value, ""
    if len(value) > LONGEST:
        return None
    cuts = {0, len(value)}
    for match in SEPARATORS.finditer(value):
        cuts.update(range(match.start(), match.end() + 1))
    for start in sorted(cuts):
        for end in sorted(cuts, reverse=True):
            if end > start and value[start:end] in known:
                return value[:start], value[start:end], value[end:]
    return None


def class_in_name(
    parts: list[tuple[str, str, str] | None], shapes: Counter
) -> tuple[str, dict[tuple[str, str], str]] | None:
    """Where every image has a row for each class, and the class stands beside its id: x.jpg_1,
    x.jpg_2, …

    parts: of each row, as `find_id` has it; shapes: how often each (before, behind) occurs in
    them. Returns (name, such as '{id}.jpg_{class}'; (before, behind) -> the class in it), or None
    where less than half of the images have all of these rows.
    """
    rows = Counter(p[1] for p in parts if p)
    different = Counter(p[1] for p in set(parts) if p)
    complete = [rows[id] == different[id] == len(shapes) for id in rows]
    befores, behinds = {before for before, _ in shapes}, {behind for _, behind in shapes}
    if sum(complete) < 0.5 * len(complete) or min(len(befores), len(behinds)) > 1:
        return None
    side = 0 if len(befores) > 1 else 1  # of the id on which the class stands
    texts = sorted({shape[side] for shape in shapes})
    head = os.path.commonprefix(texts)
    head = head[: max((m.end() for m in SEPARATORS.finditer(head)), default=0)]
    tail = os.path.commonprefix([text[len(head) :][::-1] for text in texts])[::-1]
    tail = tail[min((m.start() for m in SEPARATORS.finditer(tail)), default=len(tail)) :]
    classes = {shape: shape[side][len(head) : len(shape[side]) - len(tail)] for shape in shapes}
    before, behind = next(iter(shapes))
    varying = head + "{class}" + tail
    name = varying + "{id}" + behind if side == 0 else before + "{id}" + varying
    return name, classes


# ------------------------------------------------------------------------------------ columns


def column_role(
    column: str, cells: list[str], classes: list[str], written: Iterable[str] = ()
) -> str:
    """'rle', 'boxes', 'label', 'probability' or '', by a column's cells and, where they leave it
    open, by its name. written: how the classes are written, where that is given."""
    name, texts = plain_name(column), set(cells) - {""}

    def all_are(test: Callable[[str], object]) -> bool:
        return bool(texts) and all(map(test, texts))

    folded = {c.casefold() for c in (*classes, *written)}
    if all_are(lambda t: t.casefold() in folded) and name not in RUN_NAMES - UNCERTAIN:
        return "label"  # a class may be called none
    if all_are(is_boxes) or name in BOX_NAMES and not all_are(is_runs):
        return "boxes"
    if name in UNCERTAIN and all_are(re.compile(r"\d").fullmatch):
        return ""  # a class or an empty mask: one wrong guess would cost a submission
    if name in RUN_NAMES:
        return "rle"
    maybe_runs = name not in LABEL_NAMES or any(map(is_runs, texts))
    if maybe_runs and all_are(lambda t: is_runs(t) or t in ("-1", "-")):
        return "rle"
    if all_are(lambda t: _count_numbers(t) == 1) and class_of(column, classes):
        return "probability"
    return "label" if name in LABEL_NAMES else ""


def plain_name(name: str) -> str:
    """Its letters and digits alone, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_runs(cell: str) -> bool:
    """Whether it holds pairs of whole numbers."""
    words = cell.split()
    return bool(words) and not len(words) % 2 and all(w.isascii() and w.isdigit() for w in words)


def is_boxes(cell: str) -> bool:
    """Whether it holds numbers by fives: a confidence or class, and four edges."""
    count = _count_numbers(cell)
    return count > 0 and count % 5 == 0


def _count_numbers(cell: str) -> int:
    """0 where not all of its words are numbers."""
    words = cell.split()
    return len(words) if all(map(NUMBER.fullmatch, words)) else 0


# ------------------------------------------------------------------------------------ classes


def class_of(column: str, classes: list[str]) -> str | None:
    """The class that a column is named for: benign, p_benign, Benign_prob."""
    words = SEPARATORS.sub(" ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)).lower()
    plain = AROUND_CLASS.sub(" ", words).strip()
    return next((c for c in classes if SEPARATORS.sub(" ", c).lower().strip() == plain), None)


def spell(
    shown: Iterable[str], classes: list[str], empty_class: str | None, whole: bool
) -> dict[str, str] | None:
    """class -> how it is written, from the texts that a table shows; None where they fit no class.

    By name in any case, or numbered in the order of `classes` from 0 or 1. whole: the texts are
    all that there are; the class without lesions may be left out of them.
    """
    shown = sorted(set(shown) - {""})
    by_name = {c.casefold(): c for c in classes}
    if all(s.casefold() in by_name for s in shown):
        spelled = {by_name[s.casefold()]: s for s in shown}
        if whole:
            return {c: spelled[c] for c in classes if c in spelled}
        styles = (str, str.title, str.upper, str.capitalize, str.lower)
        fitting = (f for f in styles if all(f(by_name[s.casefold()]) == s for s in shown))
        style = next(fitting, str)
        return {c: style(c) for c in classes} | spelled
    if not all(re.fullmatch(r"[0-9]{1,9}", s) for s in shown):
        return None
    numbers = sorted(map(int, shown))
    if whole:
        numbered = classes
        if len(numbers) != len(classes):
            numbered = [c for c in classes if c != empty_class]
        return dict(zip(numbered, map(str, numbers))) if len(numbers) == len(numbered) else None
    first = int(numbers[-1] == len(classes) and numbers[0] > 0)
    if numbers[-1] >= len(classes) + first:
        return None
    return {c: str(number) for number, c in enumerate(classes, first)}
