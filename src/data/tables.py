"""Reading the two tables that every later stage goes by: index.csv and folds.csv."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from src.core.console import InputError, command, counted, listing, short
from src.core.disk import replacing
from src.core.paths import Paths

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

COLUMNS = ["id", "set", "label", "image", "masks", "height", "width", "area", "group"]
LARGEST = 2**16  # pixels of a side
MOST_FOLDS = 9999


def read_index(paths: Paths, part: str | None = None) -> pd.DataFrame:
    """index.csv, one row an image: id, set, label, image (str), masks, height, width, group (int), area (float, in pixels; NaN for test images).

    `part`: 'train' or 'test' for only these rows, numbered from 0: row i is row i of the pixel store. Raises InputError for a missing or damaged file.
    """
    import pandas as pd  # half a second, which `status` need not spend

    remedy = f"Make it with {command('prepare')}"
    try:
        # every column as text first: an id such as 001 or NA must survive
        table = pd.read_csv(paths.index, dtype=str, keep_default_na=False)
        table = table[COLUMNS].astype({"masks": int, "height": int, "width": int, "group": int})
        table["area"] = table["area"].replace("", "nan").astype(float)
        _check_index(table)
    except FileNotFoundError:
        raise InputError(
            "there is no index of the images yet", short(paths.index), remedy, code="no_index"
        ) from None
    except (KeyError, ValueError, OverflowError, OSError) as error:
        why, remedy = (
            f"not readable as the index of the images: {error}",
            f"Make it again with {command('prepare', '--force')}",
        )
        raise InputError(why, short(paths.index), remedy, code="index_damaged") from None
    return table if part is None else table[table["set"] == part].reset_index(drop=True)


def _check_index(table: pd.DataFrame) -> None:
    """Raises ValueError for what prepare never writes: later stages rely on it."""
    train, pixels = table["set"] == "train", table["height"] * table["width"]
    if not table["set"].isin(["train", "test"]).all():
        raise ValueError("a row is neither of train nor of test")
    if table.duplicated(["set", "id"]).any() or (table["id"] == "").any():
        raise ValueError("an id is missing, or there twice")
    sides = table[["height", "width"]]
    if ((sides < 1) | (sides > LARGEST)).any(axis=None) or (table["group"] < 0).any():
        raise ValueError("a size or a group is no such number")
    if not table["area"][train].between(0, pixels[train]).all():
        raise ValueError("a lesion is larger than its image, or its area is missing")


def read_labels(paths: Paths, index: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """The number of the class of each row, (N) int. Raises InputError for classes not named."""
    if unknown := sorted(set(index["label"]) - set(classes)):
        todo = f"The classes are {', '.join(classes)}"
        raise InputError(
            f"unknown class {listing(unknown)}", short(paths.index), todo, code="unknown_class"
        )
    return index["label"].map({c: i for i, c in enumerate(classes)}).to_numpy("int64")


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable]) -> None:
    """A CSV file, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def open_store(file: Path, rows: int, size: int) -> np.ndarray:
    """A pixel store of prepare, mapped: (rows,size,size) or (rows,size,size,3) uint8. Raises
    InputError for a file that is missing, damaged or of another shape."""
    import numpy as np  # which `status` need not import

    remedy = f"Make it again with {command('prepare', '--force')}"
    try:
        store = np.load(file, mmap_mode="r")
    except FileNotFoundError:
        todo = f"Make it with {command('prepare')}"
        raise InputError("there are no pixels yet", short(file), todo, code="no_pixels") from None
    except Exception as error:  # numpy's reading of a damaged header ends in errors of many kinds
        why = f"not readable as pixels ({type(error).__name__})"
        raise InputError(why, short(file), remedy, code="pixels_damaged") from None
    if (
        not isinstance(store, np.ndarray)
        or store.dtype != np.uint8
        or store.shape not in ((rows, size, size), (rows, size, size, 3))
    ):
        found = f"{store.dtype} {store.shape}" if isinstance(store, np.ndarray) else "an archive"
        what = f"the pixels are {found}, not uint8 {(rows, size, size)}"
        raise InputError(what, short(file), remedy, code="pixels_damaged")
    return store


def how_to_mend_folds() -> str:
    """What to do about a wrong folds.csv."""
    return f"Correct it, or make it anew with {command('split', '--force')}"


def read_folds(paths: Paths, ids: Iterable[str]) -> np.ndarray:
    """The fold of each of these ids, (N) int; -1: trained on in every fold. Numbers may have gaps: 0, 2 and 7 are three folds.

    folds.csv is there to be edited, so everything in it is checked; raises InputError for ids that are unknown, missing or doubled, and folds that
    are no whole numbers from -1 to MOST_FOLDS."""
    import numpy as np

    file, remedy = short(paths.folds), how_to_mend_folds()
    try:
        with open(
            paths.folds, newline="", encoding="utf-8-sig"
        ) as lines:  # a spreadsheet may have added a byte order mark
            reader = csv.DictReader(lines)
            if [c for c in ("id", "fold") if list(reader.fieldnames or ()).count(c) != 1]:
                raise InputError(
                    f"the columns are {', '.join(reader.fieldnames or ['none'])}, not id,fold",
                    file,
                    remedy,
                    code="folds_damaged",
                )
            rows = [((row["id"] or "").strip(), (row["fold"] or "").strip()) for row in reader]
    except FileNotFoundError:
        raise InputError(
            "there are no folds yet", file, f"Make them with {command('split')}", code="no_folds"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"not readable as a table: {error}", file, remedy, code="folds_damaged"
        ) from None
    if wrong := [f"{id} ({fold[:20] or 'nothing'})" for id, fold in rows if not is_fold(fold)]:
        what = counted(len(wrong), "fold is no whole number", "folds are no whole numbers")
        raise InputError(
            f"{what} from -1 to {MOST_FOLDS}: {listing(wrong)}", file, remedy, code="folds_damaged"
        )
    fold_of = dict(rows)
    ids = [str(i) for i in ids]
    if len(fold_of) < len(rows):
        seen: set[str] = set()
        doubled = [id for id, _ in rows if id in seen or seen.add(id)]
        raise InputError(
            f"the same id twice: {listing(doubled)}", file, remedy, code="folds_id_twice"
        )
    known = set(ids)
    if unknown := [id for id in fold_of if id not in known]:
        what = counted(len(unknown), "id is no train image", "ids are no train images")
        raise InputError(f"{what}: {listing(unknown)}", file, remedy, code="folds_id_unknown")
    if missing := [id for id in ids if id not in fold_of]:
        what = counted(len(missing), "train image has no fold", "train images have no fold")
        raise InputError(f"{what}: {listing(missing)}", file, remedy, code="folds_id_missing")
    folds = np.array([int(fold_of[id]) for id in ids], dtype=int)
    if folds.max(initial=-1) < 0 or len(np.unique(folds)) < 2:
        what = "all images are in the same fold: nothing is left to train on or to validate with"
        raise InputError(what, file, remedy, code="one_fold")
    return folds


def is_fold(text: str) -> bool:
    """Whether this may stand under `fold` in folds.csv."""
    return bool(re.fullmatch(r"-1|0*[0-9]{1,4}", text))
