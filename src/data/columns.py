"""What the columns of a table hold: ids, classes, run lengths, boxes or probabilities.

The table of the train images and the sample of the submission are read by the same rules.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable

RUN_NAMES = {
    "rle",
    "rlemask",
    "maskrle",
    "mask",
    "masks",
    "encodedpixels",
    "pixels",
    "encodedmask",
    "predicted",
    "segmentation",
    "annotation",
    "runlength",
    "runlengths",
    "rles",
    "predictedrle",
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


LONGEST = 200  # characters of a file's name: run lengths need not be searched for one


UNCERTAIN = {
    "predicted",
    "annotation",
    "segmentation",
    "prediction",
}  # names of runs, and of classes too


SEPARATORS = re.compile(r"[^0-9A-Za-z]+")


def find_id(value: str, known: Iterable[str]) -> tuple[str, str, str] | None:
    """What stands before the image's id in a cell, the id, and what stands behind: the first and longest run of whole words that is one."""
    if value in known:
        return "", value, ""
    if len(value) > LONGEST:
        return None
    cuts = sorted(
        {
            0,
            len(value),
            *(at for m in SEPARATORS.finditer(value) for at in range(m.start(), m.end() + 1)),
        }
    )
    for start in cuts:
        for end in reversed(cuts):
            if end > start and value[start:end] in known:
                return value[:start], value[start:end], value[end:]
    return None


def class_in_name(parts: list, shapes: Counter) -> tuple[str, dict[tuple[str, str], str]] | None:
    """(name, what stands around the id -> the class in it) where every image has one row of each."""
    by_image: dict[str, list] = {}
    for p in parts:
        if p:
            by_image.setdefault(p[1], []).append((p[0], p[2]))
    complete = [set(its) == set(shapes) and len(its) == len(shapes) for its in by_image.values()]
    if sum(complete) < 0.5 * len(complete):
        return None
    befores, behinds = {s[0] for s in shapes}, {s[1] for s in shapes}
    if len(befores) > 1 and len(behinds) > 1:
        return None
    texts = sorted(befores if len(befores) > 1 else behinds)
    head = os.path.commonprefix(texts)
    head = head[: max((m.end() for m in SEPARATORS.finditer(head)), default=0)]
    tail = os.path.commonprefix([t[len(head) :][::-1] for t in texts])[::-1]
    tail = tail[min((m.start() for m in SEPARATORS.finditer(tail)), default=len(tail)) :]
    inner = {t: t[len(head) : len(t) - len(tail)] for t in texts}
    before, behind = next(iter(shapes))
    if len(befores) > 1:
        return head + "{class}" + tail + "{id}" + behind, {s: inner[s[0]] for s in shapes}
    return before + "{id}" + head + "{class}" + tail, {s: inner[s[1]] for s in shapes}


def plain_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_runs(cell: str) -> bool:
    words = cell.split()
    return bool(words) and not len(words) % 2 and all(w.isascii() and w.isdigit() for w in words)


def role(column: str, cells: list[str], classes: list[str], written: Iterable[str] = ()) -> str:
    """'rle', 'boxes', 'label', 'probability' or '' of a column, by its cells and, where they leave it open, by its name. written: what stands for the
    classes where that is given."""
    plain, texts = plain_name(column), {c for c in cells if c}
    folded = {c.casefold() for c in (*classes, *written)}
    numbers = [c.split() for c in texts]
    if (
        texts and {t.casefold() for t in texts} <= folded and plain not in RUN_NAMES - UNCERTAIN
    ):  # a class may be called none
        return "label"
    if (
        plain in BOX_NAMES
        and not (texts and all(map(is_runs, texts)))
        or numbers
        and all(len(n) >= 5 and len(n) % 5 == 0 and _is_number(*n) for n in numbers)
    ):
        return "boxes"
    if plain in UNCERTAIN and texts and all(re.fullmatch(r"\d", t) for t in texts):
        return ""  # a class or an empty mask: one wrong guess would cost a submission
    if plain in RUN_NAMES:
        return "rle"
    if (
        texts
        and all(is_runs(t) or t in ("-1", "-") for t in texts)
        and (plain not in LABEL_NAMES or any(map(is_runs, texts)))
    ):
        return "rle"
    if texts and class_of(column, classes) and all(len(n) == 1 and _is_number(*n) for n in numbers):
        return "probability"
    return "label" if plain in LABEL_NAMES else ""


def _is_number(*words: str) -> bool:
    return all(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", w) for w in words)


def class_of(column: str, classes: list[str]) -> str | None:
    """The class that a column is named for: benign, p_benign, Benign_prob."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)
    plain = re.sub(
        r"(^| )(p|prob|probability|proba|score|pred|predicted|conf|confidence|is|class|target)(?= |$)",
        " ",
        SEPARATORS.sub(" ", words).lower(),
    ).strip()
    return next((c for c in classes if plain == SEPARATORS.sub(" ", c).lower().strip()), None)


def spell(
    shown: set[str], classes: list[str], empty_class: str | None, whole: bool
) -> dict[str, str] | None:
    """class -> how it is written, from what the sample shows of it; None where that fits no class. whole: everything that there is, is shown."""
    shown = {s for s in shown if s}
    folded = {c.casefold(): c for c in classes}
    if all(s.casefold() in folded for s in shown):
        if whole:
            return {
                folded[s.casefold()]: s
                for s in sorted(shown, key=lambda s: classes.index(folded[s.casefold()]))
            }
        style = next(
            (
                f
                for f in (str, str.title, str.upper, str.capitalize, str.lower)
                if all(f(folded[s.casefold()]) == s for s in shown)
            ),
            str,
        )
        return {c: style(c) for c in classes} | {folded[s.casefold()]: s for s in shown}
    if all(re.fullmatch(r"[0-9]{1,9}", s) for s in shown):
        numbers = sorted(map(int, shown))
        if whole:
            pool = (
                classes
                if len(numbers) == len(classes)
                else [c for c in classes if c != empty_class]
            )
            return {c: str(n) for c, n in zip(pool, numbers)} if len(numbers) == len(pool) else None
        first = int(numbers[-1] == len(classes) and numbers[0] > 0)
        return (
            {c: str(i + first) for i, c in enumerate(classes)}
            if numbers[-1] < len(classes) + first
            else None
        )
    return None
