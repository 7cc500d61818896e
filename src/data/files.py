"""The files of the data folder, whatever lies in it: only what can be read is opened.

A named pipe that is called x.png would be waited for without end, a link to a folder above it
would be walked through for ever, and a small file may unpack to a giant.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from src.core.console import InputError, printable, short
from src.core.disk import BROKEN, what_is

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm", ".dicom"}
WANTED = IMAGE_SUFFIXES | {".csv"}
MOST_TIMES = 8  # one folder may be reached by so many links; more would be a maze
MOST_PIXELS = 2**27  # decoding so many takes about 1.5 GB
MOST_BYTES = 2**30


# ------------------------------------------------------------------------------- one file


def read_bytes(path: Path) -> bytes:
    """Raises ValueError with a short reason for what is not a file, or is empty or too large."""
    try:
        size = os.stat(path).st_size
        if what_is(path):
            raise ValueError("not a file")
        if size > MOST_BYTES:
            raise ValueError(f"the file has {size:,} bytes, more than {MOST_BYTES:,}")
        data = path.read_bytes()  # not cv2.imread: it cannot open non-ASCII names on Windows
    except OSError as error:
        raise ValueError(error.strerror or "cannot be opened") from None
    if not data:
        raise ValueError("the file is empty")
    return data


def check_size(width: int, height: int) -> None:
    """Raises ValueError for more pixels than are decoded."""
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width}x{height} pixels, more than {MOST_PIXELS:,}: make it smaller")


# ------------------------------------------------------------------------------ all of them


def data_files(data: Path) -> list[Path]:
    """Every image and table below the data folder, hidden ones left out. Raises like `walk`."""
    return walk(data)[0]


def unread_files(data: Path, patterns: list[str], ids: Iterable[str]) -> dict[str, str]:
    """Those of the ids that have a file beside the test images, of a kind that is not read -> its
    name."""
    found, ids = {}, set(ids)
    for folder in {(data / pattern).parent for pattern in patterns}:
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.stem in ids and file.suffix.lower() not in WANTED and file.is_file():
                found.setdefault(file.stem, file.name)
    return found


def walk(data: Path) -> tuple[list[Path], dict[Path, str]]:
    """(every image and table below the data folder, a folder's own before those of its folders;
    what is called like one and cannot be read -> why).

    Hidden files and folders are left out. Raises InputError for a folder that cannot be read, for
    links that lead in a circle, and for links that lead nowhere and are not called like an image
    or a table: they may have been folders of images.
    """
    files: list[Path] = []
    odd: dict[Path, str] = {}
    times: Counter = Counter()
    waiting: list[tuple[Path, tuple, str]] = [(data, (), "")]
    while waiting:  # not by recursion: folders may be nested deeper than Python's stack
        folder, above, unfit = waiting.pop()
        entries, identity = _entries(folder, data)
        times[identity] += 1
        what = "a link leads back to a folder above it" if identity in above else ""
        if times[identity] > MOST_TIMES:
            what = what or f"links lead to this folder in more than {MOST_TIMES} ways"
        if what:
            raise InputError(what, printable(short(folder)), "Remove the link", code="link_loop")
        folders = []
        for path, is_file, is_folder in entries:
            if path.suffix.lower() not in WANTED:
                if is_folder:
                    folders.append(path)
                elif not is_file:
                    _check_link(path)
            elif why := unfit or _unfit(path.name) or _has_spaces(path.stem):
                odd[path] = f"its name {why}: rename it"
            elif not is_file:
                odd[path] = f"{what_is(path) or 'nothing'}, not a file"
            else:
                files.append(path)
        for path in reversed(folders):
            waiting.append((path, (*above, identity), unfit or _unfit(path.name)))
    return files, odd


def _entries(folder: Path, top: Path) -> tuple[list[tuple[Path, bool, bool]], tuple]:
    """(path, is it a file, is it a folder) of what is in it and not hidden, sorted; and which
    folder on which disk it is. A `top` that is not there has nothing in it."""
    try:
        at = os.stat(folder)
        with os.scandir(folder) as entries:
            seen = [(e.name, _is(e.is_file), _is(e.is_dir)) for e in entries if e.name[0] != "."]
    except OSError as error:
        if folder == top and isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return [], ()
        what = f"this folder cannot be read: {error.strerror or error}"
        todo = "Give yourself the right to read it (chmod -R u+rX), or take it away"
        where = printable(short(folder))
        raise InputError(what, where, todo, code="unreadable_folder") from None
    return [(folder / name, *kinds) for name, *kinds in sorted(seen)], (at.st_dev, at.st_ino)


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself
        return False


def _check_link(path: Path) -> None:
    if (kind := what_is(path)) in BROKEN:
        what = f"this is {kind}, and what it led to may be needed"
        todo = "Bring back what it leads to, or remove the link"
        raise InputError(what, printable(short(path)), todo, code="broken_link")


def _unfit(name: str) -> str:
    """Why a name cannot stand in a table and be read back; ''."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    return "" if name == printable(name) else "holds control characters"


def _has_spaces(stem: str) -> str:
    return "" if stem == stem.strip() else "begins or ends with white space"
