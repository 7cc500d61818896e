"""What every later stage goes by: index.csv, folds.csv and the pixel stores."""

from __future__ import annotations

import csv
import re
from collections import Counter
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
    """index.csv, one row an image: id, set, label, image (str), masks, height, width, group (int),
    area (float, in pixels; NaN for test images).

    part: 'train' or 'test' for these rows alone, numbered from 0: row i is row i of the pixel
    store. Raises InputError for a missing or damaged file.
    """
    import pandas as pd  # half a second, which `status` need not spend

    file = short(paths.index)
    try:
        # every column as text first: an id such as 001 or NA must survive
        table = pd.read_csv(paths.index, dtype=str, keep_default_na=False)
        table = table[COLUMNS].astype({"masks": int, "height": int, "width": int, "group": int})
        table["area"] = table["area"].replace("", "nan").astype(float)
        _check_index(table)
    except FileNotFoundError:
        what, todo = "there is no index of the images yet", f"Make it with {command('prepare')}"
        raise InputError(what, file, todo, code="no_index") from None
    except (KeyError, ValueError, OverflowError, OSError) as error:
        what = f"not readable as the index of the images: {error}"
        raise InputError(what, file, _prepare_again(), code="index_damaged") from None
    return table if part is None else table[table["set"] == part].reset_index(drop=True)


def _prepare_again() -> str:
    return f"Make it again with {command('prepare', '--force')}"


def _check_index(table: pd.DataFrame) -> None:
    """Raises ValueError for what prepare never writes: later stages rely on it."""
    train, pixels = table["set"] == "train", table["height"] * table["width"]
    if not table["set"].isin(["train", "test"]).all():
        raise ValueError("a row is neither of train nor of test")
    if table.duplicated(["set", "id"]).any() or (table["id"] == "").any():
        raise ValueError("an id is missing, or there twice")
    sides = table[["height", "width"]]
    if ((sides < 1) | (sides > LARGEST)).any(axis=None) or (table["group"] < 0).any():
        raise ValueError("a size or a group is out of its range")
    if not table["area"][train].between(0, pixels[train]).all():
        raise ValueError("a lesion is larger than its image, or its area is missing")


def read_labels(paths: Paths, index: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """The number of the class of each row, (N) int. Raises InputError for classes not named."""
    if unknown := sorted(set(index["label"]) - set(classes)):
        todo = f"The classes are {', '.join(classes)}"
        raise InputError(
            f"unknown class {listing(unknown)}", paths.index, todo, code="unknown_class"
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

    try:
        store = np.load(file, mmap_mode="r")
    except FileNotFoundError:
        todo = f"Make it with {command('prepare')}"
        raise InputError("there are no pixels yet", file, todo, code="no_pixels") from None
    except Exception as error:  # numpy's reading of a damaged header ends in errors of many kinds
        what = f"not readable as pixels ({type(error).__name__})"
        raise InputError(what, file, _prepare_again(), code="pixels_damaged") from None
    grey = rows, size, size
    found = f"{store.dtype} {store.shape}" if isinstance(store, np.ndarray) else "an archive"
    if found not in (f"uint8 {grey}", f"uint8 {(*grey, 3)}"):
        what = f"the pixels are {found}, not uint8 {grey}"
        raise InputError(what, file, _prepare_again(), code="pixels_damaged")
    return store


def read_folds(paths: Paths, ids: Iterable[str]) -> np.ndarray:
    """The fold of each of these ids, (N) int; -1: trained on in every fold. Numbers may have gaps:
    0, 2 and 7 are three folds.

    folds.csv is there to be edited, so everything in it is checked; raises InputError for ids that
    are unknown, missing or doubled, and for folds that are not whole numbers from -1 to MOST_FOLDS.
    """
    import numpy as np

    rows = _fold_rows(paths)
    ids, fold_of = list(map(str, ids)), dict(rows)
    if wrong := [f"{id} ({fold[:20] or 'nothing'})" for id, fold in rows if not is_fold(fold)]:
        what = counted(len(wrong), "fold is not a whole number", "folds are not whole numbers")
        raise _wrong_folds(paths, f"{what} from -1 to {MOST_FOLDS}: {listing(wrong)}")
    if doubled := [id for id, times in Counter(id for id, _ in rows).items() if times > 1]:
        raise _wrong_folds(paths, f"the same id twice: {listing(doubled)}", "folds_id_twice")
    known = set(ids)
    if unknown := [id for id in fold_of if id not in known]:
        what = counted(len(unknown), "id is not a train image", "ids are not train images")
        raise _wrong_folds(paths, f"{what}: {listing(unknown)}", "folds_id_unknown")
    if missing := [id for id in ids if id not in fold_of]:
        what = counted(len(missing), "train image has no fold", "train images have no fold")
        raise _wrong_folds(paths, f"{what}: {listing(missing)}", "folds_id_missing")
    folds = np.array([int(fold_of[id]) for id in ids], dtype=int)
    if folds.max(initial=-1) < 0 or len(np.unique(folds)) < 2:
        what = "all images are in the same fold: nothing is left to train on or to validate with"
        raise _wrong_folds(paths, what, "one_fold")
    return folds


def _fold_rows(paths: Paths) -> list[tuple[str, str]]:
    """(id, fold) as they stand in folds.csv."""
    try:
        # a spreadsheet may have added a byte order mark
        with open(paths.folds, newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            columns = list(reader.fieldnames or ())
            if columns.count("id") != 1 or columns.count("fold") != 1:
                what = f"the columns are {', '.join(columns or ['none'])}, not id,fold"
                raise _wrong_folds(paths, what)
            return [((row["id"] or "").strip(), (row["fold"] or "").strip()) for row in reader]
    except FileNotFoundError:
        todo = f"Make them with {command('split')}"
        raise InputError("there are no folds yet", paths.folds, todo, code="no_folds") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _wrong_folds(paths, f"not readable as a table: {error}") from None


def _wrong_folds(paths: Paths, what: str, code: str = "folds_damaged") -> InputError:
    return InputError(what, paths.folds, how_to_mend_folds(), code=code)


def how_to_mend_folds() -> str:
    """What to do about a wrong folds.csv."""
    return f"Correct it, or make it again with {command('split', '--force')}"


def is_fold(text: str) -> bool:
    """Whether this may stand under `fold` in folds.csv."""
    return bool(re.fullmatch(r"-1|0*[0-9]{1,4}", text))
