"""What is in the data folder, whichever of the known layouts it has, found and checked.

(a) train/<class>/x.png with x_mask*.png beside it, test/*.png, sample_submission.csv
(b) BUSI as downloaded, without a test set
(c) a table of id and label, with a folder of images, and masks in a folder or as run lengths in a
    column of the table

The patterns are those of competition.yaml.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.core.console import InputError, listing, nearest, printable, warn
from src.core.disk import must_be_file
from src.core.settings import Competition, Data
from src.data import rle
from src.data.cells import is_formula, names_of
from src.data.files import IMAGE_SUFFIXES, walk
from src.data.images import read_image, read_mask, scaled
from src.data.problems import Problems
from src.data.train_table import read_rows

REMEDY = (
    "Put the data there as input/README.md says, name its folder with --data DIR, "
    "or try it on generated images: ./run.sh demo"
)


@dataclass
class Item:
    """One image as found: `masks` are files, `runs` run lengths as text; of a test image, `label`
    is ''."""

    id: str
    part: str  # 'train' or 'test'
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

    What is wrong is added to `problems`; the items returned are those without it. Raises InputError
    where there is nothing at all.
    """
    cfg = competition.data
    if not data.is_dir():
        what = "the data folder does not exist"
        raise InputError(what, data, REMEDY, code="no_such_folder")
    names, odd = _image_files(data)
    for file, why in odd.items():
        problems.add("unreadable", f"{file.relative_to(data)} ({why})")
    if not names:
        what = problems.lines()[0] if problems else "no images in the data folder"
        raise InputError(what, data, REMEDY, code="no_images")
    test = {file: match["id"] for file, match in _by_first(names, cfg.test)}
    others = {file: name for file, name in names.items() if file not in test}
    items = _without_doubles(_train_items(data, others, competition, problems), data, problems)
    items += _test_items(data, test, competition, problems, arrange)
    _warn_of_formulas(items)
    return items


def find_test(
    data: Path, competition: Competition, problems: Problems, arrange: Arrange | None = None
) -> list[Item]:
    """The test images alone, ordered as by `find`."""
    names, odd = _image_files(data)
    odd_names = {file: _name(file, data) for file in odd}
    for pattern in competition.data.test:
        for file, _ in _matches(odd_names, pattern):
            problems.add("unreadable", f"{file.relative_to(data)} ({odd[file]})")
    test = {file: match["id"] for file, match in _by_first(names, competition.data.test)}
    return _test_items(data, test, competition, problems, arrange)


# ------------------------------------------------------------------------------ files by pattern


def _image_files(data: Path) -> tuple[dict[Path, str], dict[Path, str]]:
    """(every image below the data folder -> its name as patterns have it; what is called like an
    image and cannot be read -> why)."""
    files, odd = walk(data)
    return (
        {f: _name(f, data) for f in files if f.suffix.lower() in IMAGE_SUFFIXES},
        {f: why for f, why in odd.items() if f.suffix.lower() in IMAGE_SUFFIXES},
    )


def _name(file: Path, data: Path) -> str:
    return file.relative_to(data).with_suffix("").as_posix()


def _matches(names: dict[Path, str], pattern: str) -> list[tuple[Path, re.Match]]:
    """The files whose name is of a pattern such as 'train/{label}/{id}'."""
    words = re.split(r"(\{label\}|\{id\})", pattern.strip("/"))
    words[::2] = map(re.escape, words[::2])
    words[1::2] = [f"(?P<{word[1:-1]}>[^/]+)" for word in words[1::2]]
    regex = re.compile("".join(words))
    found = ((file, regex.fullmatch(name)) for file, name in names.items())
    return [(file, match) for file, match in found if match]


def _by_first(names: dict[Path, str], patterns: list[str]) -> list[tuple[Path, re.Match]]:
    """The same by the first pattern that any file matches."""
    return next(filter(None, (_matches(names, pattern) for pattern in patterns)), [])


def _by_id(names: dict[Path, str], patterns: list[str]) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for file, match in _by_first(names, patterns):
        found[match["id"]].append(file)
    return dict(found)


def natural(item: Item | str) -> list:
    """A sort key, of an id or by an item's id, by which x2 comes before x10."""
    words = re.split(r"([0-9]+)", item if isinstance(item, str) else item.id)
    # longer numbers are larger: int() refuses those of thousands of digits
    numbers = [word.lstrip("0") for word in words[1::2]]
    words[1::2] = [(len(n), n) for n in numbers]
    return words


# ------------------------------------------------------------------------------------------ items


def _train_items(
    data: Path, names: dict[Path, str], competition: Competition, problems: Problems
) -> list[Item]:
    """Of the first folders that have a known class, or of the table, or of any folders."""
    cfg = competition.data
    table = data / cfg.table
    matches = list(filter(None, (_matches(names, pattern) for pattern in cfg.train)))
    for found in matches:
        if any(match["label"] in cfg.classes for _, match in found):
            return _from_folders(data, found, cfg, problems)
    must_be_file(table, "the table of the train images")
    if table.is_file():
        return _from_table(data, names, competition, problems)
    if matches:
        return _from_folders(data, matches[0], cfg, problems)
    what = f"no train images found by {', '.join(cfg.train)}, and no table {cfg.table}"
    raise InputError(what, data, REMEDY, code="no_train_images")


def _from_folders(
    data: Path, found: list[tuple[Path, re.Match]], cfg: Data, problems: Problems
) -> list[Item]:
    items: dict[tuple[str, str], Item] = {}
    doubles, masks, unknown = [], [], defaultdict(list)
    for file, match in found:
        label, stem = match["label"], match["id"]
        owner = stem.rpartition(cfg.mask_suffix)[0]
        if label not in cfg.classes:
            unknown[label].append(file)
        elif owner:
            masks.append((file, (label, owner)))
        elif (label, stem) in items:
            doubles.append(Item(stem, "train", label, file))
        else:
            items[label, stem] = Item(stem, "train", label, file)
    for file, key in masks:
        if key in items:
            items[key].masks.append(file)
        else:
            problems.add("orphan", file.relative_to(data))
    for label, files in sorted(unknown.items()):
        folder = files[0].parent.relative_to(data)
        problems.add("class", f"{folder} ({len(files)} files; {_nearest(label, cfg)})")
    return _with_masks(items.values(), "no_mask", data, cfg, problems) + doubles


def _from_table(
    data: Path, names: dict[Path, str], competition: Competition, problems: Problems
) -> list[Item]:
    cfg = competition.data
    images = _by_id(names, cfg.table_images)
    rows, has_runs = read_rows(data / cfg.table, images, competition)
    masks = defaultdict(list)
    if not has_runs:
        for stem, files in _by_id(names, cfg.table_masks).items():
            masks[stem.rpartition(cfg.mask_suffix)[0] or stem] += files
    items: dict[str, Item] = {}
    doubles = []
    for id, label, run in rows:
        if id in items:
            if run and items[id].label == label:
                items[id].runs.append(run)  # one row a lesion
            else:
                doubles.append(Item(id, "train", label, images[id][0]))
        elif label not in cfg.classes:
            problems.add("class", f"{label} of {id} ({_nearest(label, cfg)})")
        elif id not in images:
            problems.add("no_image", id)
        else:
            first, *others = images[id]
            items[id] = Item(id, "train", label, first, sorted(masks[id]), [run] if run else [])
            doubles += [Item(id, "train", label, other) for other in others]
    in_table = {id for id, _, _ in rows}
    for id in sorted(masks.keys() - in_table, key=natural):
        for file in masks[id]:
            problems.add("orphan", file.relative_to(data))
    if extra := sorted(images.keys() - in_table, key=natural):
        warn(f"{len(extra)} images are not in {cfg.table} and are not used: {names_of(extra, 8)}")
    return (
        _with_masks(items.values(), "empty" if has_runs else "no_mask", data, cfg, problems)
        + doubles
    )


def _nearest(label: str, cfg: Data) -> str:
    return nearest(label[:60], cfg.classes).rstrip("?.")


def _with_masks(
    items: Iterable[Item], kind: str, data: Path, cfg: Data, problems: Problems
) -> list[Item]:
    """Those that have a mask, or need none; the others are problems of this kind."""
    kept = []
    for item in items:
        if item.masks or item.runs or item.label == cfg.empty_class:
            kept.append(item)
        else:
            problems.add(kind, item.image.relative_to(data))
    return kept


def _without_doubles(items: list[Item], data: Path, problems: Problems) -> list[Item]:
    """Those whose id is theirs alone, in natural order; the others are problems."""
    by_id = defaultdict(list)
    for item in sorted(items, key=natural):
        by_id[item.id].append(item)
    for id, its in by_id.items():
        if len(its) > 1:
            files = {str(item.image.relative_to(data)) for item in its}
            problems.add("twice", f"{id} ({', '.join(sorted(files))})")
    return [its[0] for its in by_id.values() if len(its) == 1]


def _test_items(
    data: Path,
    ids: dict[Path, str],
    competition: Competition,
    problems: Problems,
    arrange: Arrange | None,
) -> list[Item]:
    known = set(ids.values())
    suffix = competition.data.mask_suffix
    # masks beside test images are not for us
    items = [
        Item(id, "test", "", f) for f, id in ids.items() if id.rpartition(suffix)[0] not in known
    ]
    items = _without_doubles(items, data, problems)
    return arrange(items, known, data, competition, problems) if arrange else items


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


# -------------------------------------------------------------------------------------- one image


def load(
    item: Item, data: Path, cfg: Data, runs: dict[str, Any] | None = None
) -> tuple[np.ndarray | None, np.ndarray | None, list[tuple[str, str]]]:
    """(image, the union of its masks (H,W) bool, problems as (kind, file)).

    Image and mask are None where there is a problem; the mask of a test image is all False. runs:
    the dialect of the train table's run lengths (rle_dialect.py).
    """
    problems: list[tuple[str, str]] = []
    masks, image, name = [], None, str(item.image.relative_to(data))
    try:
        image = read_image(item.image, cfg.channels)
    except ValueError as error:
        problems.append(("unreadable", f"{name} ({error})"))
    for file in item.masks:
        mask_name = str(file.relative_to(data))
        try:
            mask, two_valued = read_mask(file)
        except ValueError as error:
            problems.append(("unreadable", f"{mask_name} ({error})"))
            continue
        masks.append(mask)
        if not two_valued:
            problems.append(("values", mask_name))
        elif image is not None and mask.shape != image.shape[:2]:
            sizes = f"{_size(mask)}, the image {_size(image)}"
            problems.append(("size", f"{mask_name} ({sizes})"))
    for text in item.runs if image is not None else []:
        try:
            masks.append(_drawn(text, runs, *image.shape[:2]))
        except ValueError as error:
            problems.append(("runs", f"{item.id} ({error})"))
    if problems:
        return None, None, problems
    union = np.logical_or.reduce([np.zeros(image.shape[:2], bool), *masks])
    if item.part == "train" and union.any() == (item.label == cfg.empty_class):
        return None, None, [("not_empty" if union.any() else "empty", name)]
    return image, union, []


def _drawn(text: str, runs: dict[str, Any], height: int, width: int) -> np.ndarray:
    """The mask (H,W) of run lengths, which may count the pixels of another size."""
    size = runs["size"] or (height, width)
    mask = rle.decode(text, *size, runs["order"], runs["first"], relative=runs["relative"])
    if mask.shape == (height, width):
        return mask
    return scaled(mask.astype(np.float32), height, width) > 0.5


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
