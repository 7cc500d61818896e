"""Reading the two tables that every later stage goes by: index.csv and folds.csv."""
from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Iterable

import numpy as np

from src.core.console import InputError, command, listing, short
from src.core.paths import Paths

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["id", "set", "label", "image", "masks", "height", "width", "area", "group"]


def read_index(paths: Paths, part: str | None = None) -> "pd.DataFrame":
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
    except FileNotFoundError:
        raise InputError("there is no index of the images yet", short(paths.index), remedy) from None
    except (KeyError, ValueError, OSError) as error:
        raise InputError(f"not readable as the index of the images: {error}", short(paths.index), f"Make it again with {command('prepare', '--force')}") from None
    return table if part is None else table[table["set"] == part].reset_index(drop=True)


def read_folds(paths: Paths, ids: Iterable[str]) -> np.ndarray:
    """The fold of each of these ids, (N) int; -1: trained on in every fold. folds.csv is there to be edited, so everything in it is checked;
    raises InputError for ids that are unknown, missing or doubled, and folds that are no whole numbers from -1."""
    file, remedy = short(paths.folds), f"Correct it, or make it anew with {command('split', '--force')}"
    try:
        with open(paths.folds, newline="", encoding="utf-8-sig") as lines:  # a spreadsheet may have added a byte order mark
            reader = csv.DictReader(lines)
            if not {"id", "fold"} <= set(reader.fieldnames or ()):
                raise InputError(f"the columns are {', '.join(reader.fieldnames or ['none'])}, not id,fold", file, remedy)
            rows = [((row["id"] or "").strip(), (row["fold"] or "").strip()) for row in reader]
    except FileNotFoundError:
        raise InputError("there are no folds yet", file, f"Make them with {command('split')}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"not readable as a table: {error}", file, remedy) from None
    if wrong := [f"{id} ({fold or 'nothing'})" for id, fold in rows if not re.fullmatch(r"-1|\d+", fold)]:
        raise InputError(f"{len(wrong)} folds are not whole numbers from -1 on: {listing(wrong)}", file, remedy)
    fold_of = dict(rows)
    ids = [str(i) for i in ids]
    if len(fold_of) < len(rows):
        seen: set[str] = set()
        doubled = [id for id, _ in rows if id in seen or seen.add(id)]
        raise InputError(f"the same id twice: {listing(doubled)}", file, remedy)
    known = set(ids)
    if unknown := [id for id in fold_of if id not in known]:
        raise InputError(f"{len(unknown)} ids are no train images: {listing(unknown)}", file, remedy)
    if missing := [id for id in ids if id not in fold_of]:
        raise InputError(f"{len(missing)} train images have no fold: {listing(missing)}", file, remedy)
    folds = np.array([int(fold_of[id]) for id in ids], dtype=int)
    if folds.max(initial=-1) < 0 or len(np.unique(folds)) < 2:
        raise InputError("all images are in the same fold: nothing is left to train on or to validate with", file, remedy)
    return folds
