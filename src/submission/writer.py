"""Writing answers in the form that the sample asks for. A file takes its name only when submission/verify.py has read it back and it says what was meant."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import cv2
import numpy as np

from src.config.load import Config
from src.core.console import InputError, StageError, command, listing, short
from src.core.disk import replacing
from src.core.paths import Paths
from src.core.settings import Classes, Data
from src.data.predictions import Predictions
from src.data.rle import encode
from src.data.tables import read_index
from src.parts.postprocess import Decision, apply, connected_components, stretch
from src.submission.answer import Answer
from src.submission.form import Form
from src.submission.sample import Row
from src.submission.verify import Fault, table_name, verify_submission


def write(
    target: Path,
    form: Form,
    predictions: Predictions,
    sizes: dict[str, tuple[int, int]],
    decision: Decision,
    classes: Classes,
) -> dict:
    """Write `target` (a table, or a zip with masks) for all rows of the form's sample; returns counts. sizes: image -> height, width.

    Rows whose image is not on disk are answered with the empty class and an empty mask. Raises InputError where the predictions lack what is asked for,
    StageError where the file does not read back as it was meant (a fault of the program).
    """
    answers = decided(form, predictions, sizes, decision, classes)
    missing = _unknown(form, classes)
    at = form.sample.columns.index(form.id)
    rows = (
        {row.cells[at]: row for row in reversed(form.rows)} if form.row_per_component else {}
    )  # an image's parts stand together, at its first row
    cells = [
        line
        for row in form.rows
        if not rows or rows[row.cells[at]] is row
        for line in _lines(row, form, answers.get(row.image, missing), classes.names)
    ]
    with replacing(target) as temporary:
        text = io.StringIO(newline="")
        text.write(form.sample.header + "\n")
        csv.writer(text, delimiter=form.sample.delimiter, lineterminator="\n").writerows(cells)
        if form.masks:
            _zip(temporary, form, text.getvalue(), answers)
        else:
            temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
        try:
            verify_submission(temporary, form, sizes, answers)
        except Fault as fault:
            raise StageError(
                f"what was written to {short(target)} does not read back as it was "
                f"meant: {fault.what}. This is a fault of the program",
                code="not_as_meant",
            ) from None
    counts = {"rows": len(cells), "images": len(answers)}
    if "label" in form.asks:
        counts["labels"] = {c: sum(a.label == c for a in answers.values()) for c in classes.names}
    if "mask" in form.asks:
        counts["empty_masks"] = sum(not a.bits.any() for a in answers.values())
    return counts


def decided(
    form: Form,
    predictions: Predictions,
    sizes: dict[str, tuple[int, int]],
    decision: Decision,
    classes: Classes,
) -> dict[str, Answer]:
    """The answer for every image of the form that is on disk."""
    for answer, column in form.asks.items():
        if getattr(predictions, answer) is None:
            raise InputError(
                f"column '{column}' is asked for, but these predictions have no {answer}",
                "",
                "An ensemble with a member that has it makes both",
                code="no_such_answer",
            )
    predictions = predictions.select(form.images)
    return {
        image: _answer(form, predictions, at, sizes[image], decision, classes)
        for at, image in enumerate(form.images)
    }


def _answer(
    form: Form,
    predictions: Predictions,
    at: int,
    size: tuple[int, int],
    decision: Decision,
    classes: Classes,
) -> Answer:
    height, width = map(int, form.size or size)
    mask, label = apply(decision, predictions, at, (height, width), classes)
    found = Answer(
        height,
        width,
        None if mask is None else np.packbits(mask),
        None if label is None else classes.names[label],
        None if predictions.label is None else predictions.label[at],
    )
    if form.boxes and mask is not None and mask.any():
        found.boxes = _boxes(form, mask, stretch(predictions.mask[at], height, width), found)
    return found


def describe_missing_images(form: Form, data: Data) -> str:
    """In words, what becomes of rows whose image is not on disk, or not readable."""
    mask = "no mask in the zip, since their size is not known" if form.masks else "an empty mask"
    return f"{len(form.unknown)} rows have no readable test image and are answered with {data.empty_class or data.classes[0]} and {mask}: {listing(form.unknown)}"


def _unknown(form: Form, classes: Classes) -> Answer:
    height, width = form.size or (1, 1)
    label = classes.empty or classes.names[0]
    return Answer(
        height,
        width,
        np.packbits(np.zeros(height * width, bool)),
        label,
        np.array([float(c == label) for c in classes.names]),
    )


def _boxes(form: Form, mask: np.ndarray, prob: np.ndarray, answer: Answer) -> str:
    """One box around every connected part, the surest first; its confidence is the mean probability of lesion inside the part."""
    parts, areas = connected_components(mask)
    found = []
    for k in range(1, len(areas)):
        y, x = np.nonzero(parts == k)
        left, top, right, bottom = int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1
        words = {
            "confidence": f"{float(prob[y, x].mean()):.4f}",
            "xmin": left,
            "ymin": top,
            "xmax": right,
            "ymax": bottom,
            "width": right - left,
            "height": bottom - top,
            "label": form.labels.get(answer.label, ""),
        }
        found.append((words["confidence"], " ".join(str(words[w]) for w in form.box.split())))
    return " ".join(text for _, text in sorted(found, key=lambda b: b[0], reverse=True))


def _lines(row: Row, form: Form, answer: Answer, classes: list[str]) -> list[list[str]]:
    """The lines of one row of the sample: one, or one for every connected part."""
    of = {
        c: row.cells[i]
        for i, c in enumerate(form.sample.columns)
        if c in (form.id, form.key, *form.passthrough)
    }
    if form.label:
        of[form.label] = form.labels[answer.label]
    for label, column in form.probabilities.items():
        of[column] = f"{float(answer.probs[classes.index(label)]):.6f}"
    if form.boxes:
        of[form.boxes] = answer.boxes or form.empty
    masks = [None]
    if form.rle:
        mask = answer.mask
        if form.keys and row.key != _carrier(form, answer, classes):
            mask = np.zeros_like(mask)
        masks = [mask]
        if form.row_per_component and mask.any():
            parts, areas = connected_components(mask)
            masks = [parts == k for k in range(1, len(areas))]
    lines = []
    for mask in masks:
        if mask is not None:
            of[form.rle] = encode(
                mask, form.order, form.first_pixel, form.empty, form.relative_starts
            )
        lines.append([of[c] for c in form.sample.columns])
    return lines


def _carrier(form: Form, answer: Answer, classes: list[str]) -> str:
    """The class whose row carries the mask: the image's own; where no row is for that one, the most probable of those that have a row."""
    if answer.label in form.keys:
        return answer.label
    # rows of one class ask for no class: masks alone answer them
    if len(form.keys) == 1 or answer.probs is None:
        return next(iter(form.keys))
    return max(form.keys, key=lambda c: answer.probs[classes.index(c)])


def _zip(target: Path, form: Form, table: str, answers: dict[str, Answer]) -> None:
    """The table and a PNG for every image, with a fixed time, so that the same answers are the same bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, data: bytes) -> None:
            archive.writestr(
                zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED
            )

        add(table_name(form), table.encode())
        for image in form.images:
            add(
                form.masks.replace("{id}", image),
                cv2.imencode(".png", answers[image].mask.astype(np.uint8) * form.mask_value)[
                    1
                ].tobytes(),
            )


def recheck(form: Form, config: Config, paths: Paths) -> None:
    """Is the submission on disk still one in the sample's form, and what was decided? Raises InputError that names the ids and what is wrong with them."""
    file = paths.archive(config.name) if form.masks else paths.submission(config.name)
    if not file.is_file():
        raise InputError(
            "there is no submission",
            short(file),
            f"Make it with {command('submit')}",
            code="no_submission",
        )
    index, data = read_index(paths, "test"), config.competition.data
    sizes = dict(zip(index.id, index[["height", "width"]].to_numpy().tolist()))
    verify_submission(file, form, sizes)
    predictions = Predictions.load(paths.test(config.name), data.classes)
    verify_submission(
        file,
        form,
        sizes,
        decided(
            form,
            predictions,
            sizes,
            Decision.load(paths.decision(config.name)),
            config.competition.classes,
        ),
    )
