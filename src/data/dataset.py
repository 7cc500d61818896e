"""Finding what is in the data folder, whichever of the known layouts it has, and checking it. The patterns are those of competition.yaml.

(a) train/<class>/x.png with x_mask*.png beside it, test/*.png, sample_submission.csv    (b) BUSI as downloaded, without a test set
(c) a table of id and label, with a folder of images, and masks in a folder or as run lengths in a column of the table
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.core.console import InputError, listing, nearest, printable, short, warn
from src.core.disk import must_be_file
from src.core.settings import Competition
from src.data import rle
from src.data.cells import names_of
from src.data.files import IMAGE_SUFFIXES, data_files, odd_images
from src.data.formulas import is_formula
from src.data.images import read_image, read_mask, scaled
from src.data.problems import Problems
from src.data.train_table import read_rows


@dataclass
class Item:
    """One image as found: `masks` are files, `runs` run lengths as text; a test image has the label ''."""

    id: str
    part: str
    label: str
    image: Path
    masks: list[Path] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


# test images, the ids of all of them, data folder, competition, problems -> the same in order
Arrange = Callable[[list[Item], set[str], Path, Competition, Problems], list[Item]]


def find(
    data: Path, competition: Competition, problems: Problems, arrange: Arrange | None = None
) -> list[Item]:
    """The images of a data folder: train in natural order of their ids, then test, as `arrange`
    orders them (submission/order.py; natural order by default).

    What is wrong is added to `problems`; the items returned are those that are left without it. Raises InputError where there is nothing at all.
    """
    cfg, remedy = (
        competition.data,
        "Put the data there as input/README.md says, name its folder with --data DIR, or try it on generated images: ./run.sh demo",
    )
    if not data.is_dir():
        raise InputError(
            "the data folder does not exist", short(data), remedy, code="no_such_folder"
        )
    files = _image_files(data)
    for file, why in odd_images(data).items():
        problems.add("unreadable", f"{file.relative_to(data)} ({why})")
    if not files and problems:
        raise InputError(problems.lines()[0], short(data), remedy, code="no_images")
    if not files:
        raise InputError("no images in the data folder", short(data), remedy, code="no_images")
    test = _test_files(files, cfg.test)
    train_files = {f: name for f, name in files.items() if f not in test}
    matches = [
        [
            (f, m["label"], m["id"])
            for f, name in train_files.items()
            if (m := _regex(pattern).fullmatch(name))
        ]
        for pattern in cfg.train
    ]
    known = next((m for m in matches if any(label in cfg.classes for _, label, _ in m)), None)
    if known is None:
        must_be_file(data / cfg.table, "the table of the train images")
    if known is None and (data / cfg.table).is_file():
        train = _from_table(data, train_files, competition, problems)
    elif known or any(matches):
        train = _from_folders(data, known or next(m for m in matches if m), competition, problems)
    else:
        raise InputError(
            f"no train images found by {', '.join(cfg.train)}, and no table {cfg.table}",
            short(data),
            remedy,
            code="no_train_images",
        )
    items = _once(train, data, problems) + _test_items(data, test, competition, problems, arrange)
    _warn_of_formulas(items)
    return items


def _warn_of_formulas(items: list[Item]) -> None:
    """Tables hold ids exactly as they are, since they are read back: a spreadsheet may take one for
    a formula, and whoever made the data for someone who opens it."""
    names = dict.fromkeys(text for item in items for text in (item.id, item.label))
    if found := [printable(name, 60) for name in names if is_formula(name)]:
        few = "1 id or class begins" if len(found) == 1 else f"{len(found)} ids or classes begin"
        warn(
            f"{few} as a formula does in a spreadsheet: {listing(found)}. "
            "Import index.csv, folds.csv and per_image.csv there as text"
        )


def find_test(
    data: Path, competition: Competition, problems: Problems, arrange: Arrange | None = None
) -> list[Item]:
    """The test images alone, ordered as by `find`."""
    test = _test_files(_image_files(data), competition.data.test)
    odd = {
        f: (f.relative_to(data).with_suffix("").as_posix(), why)
        for f, why in odd_images(data).items()
    }
    theirs = [_regex(pattern) for pattern in competition.data.test]
    for file, (name, why) in odd.items():
        if any(its.fullmatch(name) for its in theirs):
            problems.add("unreadable", f"{file.relative_to(data)} ({why})")
    return _test_items(data, test, competition, problems, arrange)


def _image_files(data: Path) -> dict[Path, str]:
    """Every image below the data folder -> its path from there without the suffix."""
    return {
        f: f.relative_to(data).with_suffix("").as_posix()
        for f in data_files(data)
        if f.suffix.lower() in IMAGE_SUFFIXES
    }


def _test_files(files: dict[Path, str], patterns: list[str]) -> dict[Path, str]:
    """Files -> ids, by the first pattern that finds any."""
    found = (
        {f: m["id"] for f, name in files.items() if (m := _regex(pattern).fullmatch(name))}
        for pattern in patterns
    )
    return next((its for its in found if its), {})


def natural(text: str) -> list:
    """A sort key by which x2 comes before x10."""
    words = re.split(r"([0-9]+)", text)
    return [(len(n), n) if i % 2 else w for i, w in enumerate(words) for n in [w.lstrip("0")]]


def _regex(pattern: str) -> re.Pattern:
    """'train/{label}/{id}' -> a regular expression for the path below the data folder, without its suffix."""
    words = re.split(r"(\{label\}|\{id\})", pattern.strip("/"))
    return re.compile(
        "".join(
            {"{label}": "(?P<label>[^/]+)", "{id}": "(?P<id>[^/]+)"}.get(w, re.escape(w))
            for w in words
        )
    )


def _from_folders(
    data: Path, found: list[tuple[Path, str, str]], competition: Competition, problems: Problems
) -> list[Item]:
    cfg = competition.data
    items: dict[tuple[str, str], Item] = {}
    twice, masks, unknown = [], [], {}
    for file, label, stem in found:
        owner, is_mask, _ = stem.rpartition(cfg.mask_suffix)
        if label not in cfg.classes:
            unknown.setdefault(label, []).append(file)
        elif is_mask and owner:
            masks.append((file, label, owner))
        elif (label, stem) in items:
            twice.append(Item(stem, "train", label, file))
        else:
            items[label, stem] = Item(stem, "train", label, file)
    for file, label, owner in masks:
        if (label, owner) in items:
            items[label, owner].masks.append(file)
        else:
            problems.add("orphan", file.relative_to(data))
    for label, its in sorted(unknown.items()):
        known = nearest(label[:60], cfg.classes).rstrip("?.")
        problems.add("class", f"{its[0].parent.relative_to(data)} ({len(its)} files; {known})")
    lonely = [
        key for key, item in items.items() if not item.masks and item.label != cfg.empty_class
    ]
    for key in lonely:
        problems.add("no_mask", items.pop(key).image.relative_to(data))
    return sorted([*items.values(), *twice], key=lambda i: natural(i.id))


def _from_table(
    data: Path, files: dict[Path, str], competition: Competition, problems: Problems
) -> list[Item]:
    cfg = competition.data
    images = _by_id(files, cfg.table_images)
    rows, has_runs = read_rows(data / cfg.table, images, competition)
    masks: dict[str, list[Path]] = {}
    for stem, its in _by_id(files, cfg.table_masks).items():
        owner, is_mask, _ = stem.rpartition(cfg.mask_suffix)
        masks.setdefault(owner if is_mask and owner else stem, []).extend(its)
    items: dict[str, Item] = {}
    twice, in_table = [], set()
    for id, label, run in rows:
        in_table.add(id)
        if id in items:
            if has_runs and run and items[id].label == label:
                items[id].runs.append(run)  # one row a lesion
            else:
                twice.append(Item(id, "train", label, images.get(id, [data / id])[0]))
        elif label not in cfg.classes:
            known = nearest(label[:60], cfg.classes).rstrip("?.")
            problems.add("class", f"{label} of {id} ({known})")
        elif id not in images:
            problems.add("no_image", id)
        else:
            items[id] = Item(
                id,
                "train",
                label,
                images[id][0],
                [] if has_runs else sorted(masks.get(id, [])),
                [run] if run else [],
            )
            twice += [Item(id, "train", label, other) for other in images[id][1:]]
    if not has_runs:
        for id in sorted(masks.keys() - in_table, key=natural):
            for file in masks[id]:
                problems.add("orphan", file.relative_to(data))
    for id in [
        i.id for i in items.values() if not i.masks and not i.runs and i.label != cfg.empty_class
    ]:
        problems.add("empty" if has_runs else "no_mask", items.pop(id).image.relative_to(data))
    if extra := sorted(images.keys() - in_table, key=natural):
        warn(f"{len(extra)} images are not in {cfg.table} and stay unused: {names_of(extra, 8)}")
    return sorted([*items.values(), *twice], key=lambda i: natural(i.id))


def _by_id(files: dict[Path, str], patterns: list[str]) -> dict[str, list[Path]]:
    """id -> files, by the first pattern that finds any."""
    for pattern in patterns:
        found: dict[str, list[Path]] = {}
        for file, name in files.items():
            if match := _regex(pattern).fullmatch(name):
                found.setdefault(match["id"], []).append(file)
        if found:
            return found
    return {}


def _once(items: list[Item], data: Path, problems: Problems) -> list[Item]:
    """The items whose id is theirs alone; the others are a problem."""
    by_id: dict[str, list[Item]] = {}
    for item in items:
        by_id.setdefault(item.id, []).append(item)
    for id, its in by_id.items():
        if len(its) > 1:
            problems.add(
                "twice",
                f"{id} ({', '.join(sorted({str(i.image.relative_to(data)) for i in its}))})",
            )
    return [i for i in items if len(by_id[i.id]) == 1]


def _test_items(
    data: Path,
    files: dict[Path, str],
    competition: Competition,
    problems: Problems,
    arrange: Arrange | None,
) -> list[Item]:
    suffix, known = competition.data.mask_suffix, set(files.values())
    # masks beside test images are not for us
    items = [
        Item(id, "test", "", f) for f, id in files.items() if id.rpartition(suffix)[0] not in known
    ]
    items = sorted(_once(items, data, problems), key=lambda i: natural(i.id))
    return arrange(items, known, data, competition, problems) if arrange else items


Loaded = tuple[np.ndarray | None, np.ndarray | None, list[tuple[str, str]]]


def load(
    item: Item,
    data: Path,
    channels: int,
    empty_class: str | None,
    runs: dict[str, Any] | None = None,
) -> Loaded:
    """(image, mask (H,W) bool, problems as (kind, file)); image and mask are None where there is a problem, the mask of a test image is all False.
    runs: how run lengths of the train table count, as detect.py found it."""
    wrong: list[tuple[str, str]] = []
    image, name = None, str(item.image.relative_to(data))
    try:
        image = read_image(item.image, channels)
    except ValueError as error:
        wrong.append(("unreadable", f"{name} ({error})"))
    union = None if image is None else np.zeros(image.shape[:2], bool)
    for file in item.masks:
        mask_name = str(file.relative_to(data))
        try:
            mask, two_valued = read_mask(file)
        except ValueError as error:
            wrong.append(("unreadable", f"{mask_name} ({error})"))
            continue
        if not two_valued:
            wrong.append(("values", mask_name))
        elif union is not None and mask.shape != union.shape:
            wrong.append(
                (
                    "size",
                    f"{mask_name} ({mask.shape[1]}x{mask.shape[0]}, the image {union.shape[1]}x{union.shape[0]})",
                )
            )
        elif union is not None:
            union |= mask
    for text in item.runs if union is not None else []:
        try:
            drawn = rle.decode(
                text,
                *(runs["size"] or union.shape),
                runs["order"],
                runs["first"],
                relative=runs["relative"],
            )
            union |= (
                drawn
                if drawn.shape == union.shape
                else scaled(drawn.astype(np.float32), *union.shape) > 0.5
            )
        except ValueError as error:
            wrong.append(("runs", f"{item.id} ({error})"))
    if not wrong and item.part == "train":
        if item.label == empty_class and union.any():
            wrong.append(("not_empty", name))
        elif item.label != empty_class and not union.any():
            wrong.append(("empty", name))
    return (None, None, wrong) if wrong else (image, union, [])
