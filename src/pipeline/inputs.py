"""What stages read, each input under the name that records have for it, and made by which stage.

An input that two stages share is declared here, any other one where its job is (jobs.py).
"""

from __future__ import annotations

import csv
import functools
import json
import os
from collections import defaultdict
from pathlib import Path

from src.config.load import Config
from src.core.console import InputError, listing, short
from src.core.freshness import Fingerprints, Input, digest
from src.core.paths import Paths
from src.data.files import data_files
from src.submission.sample import sample_file


def data(paths: Paths) -> Input:
    files = data_files(paths.data)
    return Input("the data", paths.data, digest=folder_fingerprint(files, paths.data, paths))


def images(paths: Paths, part: str) -> Input:
    """The rows of the index. `part`: 'train' or 'test'."""
    return Input(f"the {part} images", paths.index, "prepare", rows_fingerprint(paths.index, part))


def truth(paths: Paths) -> Input:
    return Input("the truth", paths.truth, "prepare")


def folds_table(paths: Paths) -> Input:
    return Input("folds.csv", paths.folds, "split")


def sample(config: Config, paths: Paths) -> Input:
    return Input("the sample of the submission", sample_of(config, paths))


def sample_of(config: Config, paths: Paths) -> Path:
    return sample_file(config.competition, paths.data)


def has_test(paths: Paths) -> bool:
    """Are there test images, as far as is known?"""
    return bool(rows_fingerprint(paths.index, "test")) or not paths.index.is_file()


def predictions(paths: Paths, name: str) -> list[Path]:
    """The files of predict, or of an ensemble: out-of-fold, and of the test images if any."""
    return [paths.oof(name), *([paths.test(name)] if has_test(paths) else [])]


def folder_fingerprint(files: list[Path], home: Path, paths: Paths) -> str:
    """A digest of the names and contents of files below `home`; '' for none. Raises InputError
    for files that must not be read."""
    if not files:
        return ""
    known, lines, unreadable = Fingerprints.of(paths), [], []
    for file in sorted(files):
        name = os.path.relpath(file, home)
        try:
            lines.append(f"{name} {known.get(file)}")
        except PermissionError:
            unreadable.append(name)
    if unreadable:
        todo = f"Give yourself the right to read them: chmod -R u+rX {short(home)}"
        what = f"no permission to read {listing(unreadable)}"
        raise InputError(what, home, todo, code="unreadable_file")
    return digest("\n".join(lines).encode(errors="surrogateescape"))


def rows_fingerprint(index: Path, part: str) -> str:
    """A digest of the index's train or test rows, paths left out; '' where there are none."""
    return _index_rows(index).get(part, ("", []))[0]


def index_ids(index: Path, part: str) -> list[str]:
    """The ids of the index's train or test rows; none where there is no index yet."""
    return list(_index_rows(index).get(part, ("", []))[1])


def _index_rows(index: Path) -> dict[str, tuple[str, list[str]]]:
    try:
        stat = index.stat()
    except OSError:
        return {}
    return _read_index(index, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_index(index: Path, *_) -> dict[str, tuple[str, list[str]]]:
    """'train' and 'test' -> a digest of the rows, and the ids. Size and time are arguments, so
    that a changed file is read again: a plan asks dozens of times."""
    rows: dict[str, list[list]] = defaultdict(list)
    ids: dict[str, list[str]] = defaultdict(list)
    try:
        with open(index, newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                rows[row["set"]].append([v for k, v in row.items() if k != "image"])
                ids[row["set"]].append(row["id"])
    except (OSError, UnicodeDecodeError, csv.Error, KeyError):
        return {}
    return {part: (digest(json.dumps(rows[part]).encode()), ids[part]) for part in rows}
