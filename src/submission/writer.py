"""Writing answers in the form that the sample asks for. A file takes its name only when
submission/verify.py has read it back and it says what was decided."""

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
from src.data.predictions import Predictions
from src.data.rle import encode
from src.data.tables import read_index
from src.parts.postprocess import Decision, apply, connected_components, stretch
from src.submission.answer import Answer
from src.submission.form import Form
from src.submission.rows import Row
from src.submission.verify import InvalidSubmission, table_name, verify_submission

Sizes = dict[str, tuple[int, int]]  # image -> height, width


def write(
    target: Path, form: Form, predictions: Predictions, sizes: Sizes, decision: Decision
) -> dict:
    """Write `target` (a table, or a zip with masks) for all rows of the form's sample; returns
    counts.

    Rows whose image is not on disk are answered with the empty class and an empty mask. Raises
    InputError where the predictions lack an answer that the sample asks for, StageError where the
    file does not read back as it was decided (a fault of the program).
    """
    answers = decide(form, predictions, sizes, decision)
    text = io.StringIO(newline="")
    text.write(form.sample.header + "\n")
    lines = csv.writer(text, delimiter=form.sample.delimiter, lineterminator="\n")
    table = _table(form, answers)
    lines.writerows(table)
    with replacing(target) as temporary:
        if form.masks:
            _write_zip(temporary, form, text.getvalue(), answers)
        else:
            temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
        try:
            verify_submission(temporary, form, sizes, answers)
        except InvalidSubmission as error:
            raise StageError(
                f"the submission in {short(target)} does not read back as it was decided: "
                f"{error.what}. This is a fault of the program",
                code="not_as_meant",
            ) from None
    counts = {"rows": len(table), "images": len(answers)}
    if "label" in form.requested:
        labels = [answer.label for answer in answers.values()]
        counts["labels"] = {label: labels.count(label) for label in form.classes.names}
    if "mask" in form.requested:
        counts["empty_masks"] = sum(not answer.packed.any() for answer in answers.values())
    return counts


def decide(
    form: Form, predictions: Predictions, sizes: Sizes, decision: Decision
) -> dict[str, Answer]:
    """The answer for every image of the form that is on disk."""
    for answer, column in form.requested.items():
        if getattr(predictions, answer) is None:
            raise InputError(
                f"column '{column}' is asked for, but these predictions have no {answer}",
                "",
                "An ensemble with a member that has it makes both",
                code="no_such_answer",
            )
    predictions, answers = predictions.select(form.images), {}
    for at, image in enumerate(form.images):
        height, width = map(int, form.size or sizes[image])
        mask, label = apply(decision, predictions, at, (height, width), form.classes)
        answer = answers[image] = Answer(height, width)
        if label is not None:
            answer.label, answer.probs = form.classes.names[label], predictions.label[at]
        if mask is not None:
            answer.packed = np.packbits(mask)
        if form.boxes:
            answer.boxes = _boxes(form, mask, stretch(predictions.mask[at], height, width), label)
    return answers


def describe_missing_images(form: Form) -> str:
    """In words, the answers of rows whose image is not on disk, or not readable."""
    mask = "no mask in the zip, since their size is not known" if form.masks else "an empty mask"
    return (
        f"{len(form.missing_ids)} rows have no readable test image and are answered with "
        f"{_no_image(form).label} and {mask}: {listing(form.missing_ids)}"
    )


def _no_image(form: Form) -> Answer:
    height, width = form.size or (1, 1)
    label = form.classes.empty or form.classes.names[0]
    probs = np.array([float(name == label) for name in form.classes.names])
    return Answer(height, width, np.packbits(np.zeros(height * width, bool)), label, probs)


def _boxes(form: Form, mask: np.ndarray, prob: np.ndarray, label: int | None) -> str:
    """One box around every connected component, the most confident first; its confidence is the
    mean probability of lesion inside the component."""
    components, areas = connected_components(mask)
    found = []
    for k in range(1, len(areas)):
        y, x = np.nonzero(components == k)
        left, top, right, bottom = x.min(), y.min(), x.max() + 1, y.max() + 1
        words = {
            "confidence": f"{prob[y, x].mean():.4f}",
            "xmin": left,
            "ymin": top,
            "xmax": right,
            "ymax": bottom,
            "width": right - left,
            "height": bottom - top,
            "label": "" if label is None else form.labels.get(form.classes.names[label], ""),
        }
        found.append((words["confidence"], " ".join(str(words[w]) for w in form.box.split())))
    found.sort(key=lambda box: box[0], reverse=True)
    return " ".join(text for _, text in found)


def _table(form: Form, answers: dict[str, Answer]) -> list[list[str]]:
    """The cells of all lines, in the sample's order."""
    rows = form.rows
    if form.row_per_component:  # an image's components stand together, at its first row
        at = form.sample.columns.index(form.id)
        rows = {row.cells[at]: row for row in reversed(rows)}
        rows = [row for row in form.rows if rows[row.cells[at]] is row]
    missing = _no_image(form)
    return [line for row in rows for line in _lines(row, form, answers.get(row.image, missing))]


def _lines(row: Row, form: Form, answer: Answer) -> list[list[str]]:
    """The lines of one row of the sample: one, or one for every connected component."""
    cells = dict(zip(form.sample.columns, row.cells))
    if form.label:
        cells[form.label] = form.labels[answer.label]
    for label, column in form.probabilities.items():
        cells[column] = f"{answer.probs[form.classes.names.index(label)]:.6f}"
    if form.boxes:
        cells[form.boxes] = answer.boxes or form.empty
    lines = []
    for mask in _masks(row, form, answer) if form.rle else [None]:
        if mask is not None:
            cells[form.rle] = encode(
                mask, form.order, form.first_pixel, form.empty, form.relative_starts
            )
        lines.append(list(cells.values()))
    return lines


def _masks(row: Row, form: Form, answer: Answer) -> list[np.ndarray]:
    """The masks of a row's lines."""
    mask = answer.mask
    if form.keys and row.key != _mask_key(form, answer):
        return [np.zeros_like(mask)]
    if not form.row_per_component or not mask.any():
        return [mask]
    components, areas = connected_components(mask)
    return [components == k for k in range(1, len(areas))]


def _mask_key(form: Form, answer: Answer) -> str:
    """The class whose row carries the mask: the image's own; where no row is for that one, the most
    probable of those that have a row."""
    if answer.label in form.keys:
        return answer.label
    # rows of one class do not ask for a class: masks alone answer them
    if len(form.keys) == 1 or answer.probs is None:
        return next(iter(form.keys))
    return max(form.keys, key=lambda label: answer.probs[form.classes.names.index(label)])


def _write_zip(target: Path, form: Form, table: str, answers: dict[str, Answer]) -> None:
    """The table and a PNG for every image, with a fixed time, so that the same answers are the same
    bytes."""
    members = {table_name(form): table.encode()}
    for image in form.images:
        pixels = answers[image].mask.astype(np.uint8) * form.mask_value
        members[form.masks.replace("{id}", image)] = cv2.imencode(".png", pixels)[1].tobytes()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)


def read_sizes(paths: Paths) -> Sizes:
    """Of the test images."""
    index = read_index(paths, "test")
    return dict(zip(index.id, index[["height", "width"]].to_numpy().tolist()))


def recheck(form: Form, config: Config, paths: Paths) -> None:
    """Is the submission on disk still one in the sample's form, and as it was decided? Raises
    InputError that names the ids and what is wrong with them."""
    file = paths.archive(config.name) if form.masks else paths.submission(config.name)
    if not file.is_file():
        raise InputError(
            "there is no submission",
            file,
            f"Make it with {command('submit')}",
            code="no_submission",
        )
    sizes = read_sizes(paths)
    verify_submission(file, form, sizes)
    predictions = Predictions.load(paths.test(config.name), config.competition.data.classes)
    decision = Decision.load(paths.decision(config.name))
    verify_submission(file, form, sizes, decide(form, predictions, sizes, decision))
