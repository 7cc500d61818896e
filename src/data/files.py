"""Walking through the data folder, whatever lies in it: only what can be read is opened.

A named pipe that is called x.png would be waited for without end, and a link to a folder above it
would be walked through for ever.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from src.core.console import InputError, printable, short
from src.core.disk import BROKEN, what_is

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm", ".dicom"}
WANTED = IMAGE_SUFFIXES | {".csv"}
MOST_TIMES = 8  # one folder may be reached by so many links; more would be a maze


def data_files(data: Path) -> list[Path]:
    """Every image and table below the data folder, hidden folders left out.

    Raises InputError for a folder that cannot be read, for links that lead in a circle, and for
    those that lead nowhere: what is called like an image is left to `odd_images`, and any other
    may have been a folder of images.
    """
    return _walk(data)[0]


def odd_images(data: Path) -> dict[Path, str]:
    """What is called like an image below the data folder, and cannot be read -> what it is."""
    return {f: why for f, why in _walk(data)[1].items() if f.suffix.lower() in IMAGE_SUFFIXES}


def unread_files(data: Path, patterns: list[str], ids: Iterable[str]) -> dict[str, str]:
    """Those of the ids that a file beside the test images is named for, of a kind that is not
    read -> its name."""
    found, ids = {}, set(ids)
    for folder in {(data / pattern).parent for pattern in patterns}:
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.stem in ids and file.suffix.lower() not in WANTED and file.is_file():
                found.setdefault(file.stem, file.name)
    return found


def _walk(data: Path) -> tuple[list[Path], dict[Path, str]]:
    """The files, a folder's own before those of its folders; and what is no file."""
    found: list[Path] = []
    odd: dict[Path, str] = {}
    times: Counter = Counter()
    waiting: list[tuple[Path, tuple, str]] = [(data, (), "")]
    while waiting:  # not by recursion: folders may be nested deeper than Python's stack
        folder, above, unfit = waiting.pop()
        entries, identity = _entries(folder, data)
        times[identity] += 1
        if identity in above or times[identity] > MOST_TIMES:
            what = (
                "a link leads back to a folder above it"
                if identity in above
                else (f"links lead to this folder in more than {MOST_TIMES} ways")
            )
            raise InputError(what, printable(short(folder)), "Remove the link", code="link_loop")
        folders = []
        for name, is_file, is_folder in entries:
            path = folder / name
            if os.path.splitext(name)[1].lower() not in WANTED:
                folders += [path] if is_folder else []
                if not is_file and not is_folder and what_is(path) in BROKEN:
                    raise InputError(
                        f"this is {what_is(path)}, and what it led to may be needed",
                        printable(short(path)),
                        "Bring back what it leads to, or remove the link",
                        code="broken_link",
                    )
            elif why := unfit or _unfit(name) or _has_spaces(name):
                odd[path] = f"its name {why}: rename it"
            elif not is_file:
                odd[path] = f"{what_is(path) or 'no file'}, not a file"
            else:
                found.append(path)
        for path in reversed(folders):
            waiting.append((path, (*above, identity), unfit or _unfit(path.name)))
    return found, odd


def _entries(folder: Path, top: Path) -> tuple[list[tuple[str, bool, bool]], tuple]:
    """(name, is it a file, is it a folder) of what is in it and not hidden, sorted; and which
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
    return sorted(seen), (at.st_dev, at.st_ino)


def _is(question) -> bool:
    try:
        return question()
    except OSError:  # a link to itself
        return False


def _unfit(name: str) -> str:
    """Why a name cannot stand in a table and be read back; ''."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    return "" if name.isprintable() or name == printable(name) else "holds control characters"


def _has_spaces(name: str) -> str:
    stem = os.path.splitext(name)[0]
    return "" if stem == stem.strip() else "begins or ends with white space"
