"""The test images in the order of the sample submission."""

from __future__ import annotations

from pathlib import Path

from src.core.console import InputError, warn
from src.core.settings import Competition
from src.data.cells import names_of
from src.data.dataset import Item
from src.data.files import unread_files
from src.data.problems import Problems
from src.submission.infer_form import infer_form
from src.submission.rows import image_named
from src.submission.sample import missing_sample_error, sample_file


def sample_order(
    items: list[Item], known: set[str], data: Path, competition: Competition, problems: Problems
) -> list[Item]:
    """The `arrange` of `dataset.find`: ordered as the sample has them.

    known: the id of every test image, also of those that were left out of `items`. Images that only
    one side has are added to `problems`. Without a sample the order is kept. Raises InputError for
    a sample that is not understood: better now than after hours of training.
    """
    sample = sample_file(competition, data)
    if not sample.is_file():
        if items:
            error = missing_sample_error(competition, data)
            warn(f"{error}. Without it, everything but the submission works")
        return items
    form = infer_form(sample, competition, known)
    ids = zip(form.rows, form.sample.column(form.id))
    order = dict.fromkeys(row.image or image_named(id, form.name) for row, id in ids)
    if not known & order.keys():
        raise _no_test_images(order, data, sample, competition)
    absent = [id for id in order if id not in known]
    unread = unread_files(data, competition.data.test, absent) if absent else {}
    for id in absent:
        why = f" ({unread[id]} is not read: save it as png)" if id in unread else ""
        problems.add("sample_only", f"{id}{why}")
    for item in items:
        if item.id not in order:
            problems.add("test_only", item.image.relative_to(data))
    by_id = {item.id: item for item in items}
    return [by_id[id] for id in order if id in by_id]


def _no_test_images(
    ids: dict[str, None], data: Path, sample: Path, competition: Competition
) -> InputError:
    patterns = competition.data.test
    if unread := unread_files(data, patterns, ids):
        return InputError(
            f"the test images are of kinds that are not read: {names_of(unread.values(), 3)}",
            sample,
            "Save them as png",
            code="no_test_images",
        )
    return InputError(
        f"none of the {len(ids)} images of the sample is there: {names_of(ids, 3)}",
        sample,
        f"They were looked for by {', '.join(patterns)}: data.test says where",
        code="no_test_images",
    )
