"""A download that goes on where it was stopped: what has arrived, its transfer and its checks."""

from __future__ import annotations

import base64
import hashlib
import sys
import time
from pathlib import Path

from pydantic import BaseModel

from src.core.console import StageError, duration, progress, say
from src.core.disk import make_folder, remove, remove_folder, write_json
from src.kaggle_io.client import Download, Kaggle, Mark
from src.kaggle_io.errors import ConnectionLost, pause
from src.kaggle_io.unzip import create

BREAKS = 5  # of the connection, one after another without a new byte in between
PAUSE = 2.0  # seconds after the first of them, doubled after each further one
QUIET = 10.0  # seconds between two lines of progress, where there is no terminal
UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3}


class Note(BaseModel):
    """What a partial download is of."""

    of: str
    mark: Mark


class PartialDownload:
    """What has arrived of a download (.fetch/ in the folder), and the `mark` of the file at Kaggle
    that it belongs to; None where nothing has, or what has cannot be trusted."""

    def __init__(self, folder: Path, of: str) -> None:
        self.of, self.home = of, folder / ".fetch"
        self.file, self.note = self.home / "archive.part", self.home / "mark.json"
        self.mark = self._known_mark()

    def _known_mark(self) -> Mark | None:
        linked = any(path.is_symlink() for path in (self.home, self.file, self.note))
        try:
            note = Note.model_validate_json(self.note.read_bytes())
        except (OSError, ValueError):
            return None
        return note.mark if note.of == self.of and self.file.is_file() and not linked else None

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.mark else 0

    @property
    def is_complete(self) -> bool:
        return self.mark is not None and self.mark.bytes == self.size

    def begin(self, mark: Mark) -> None:
        self.drop()
        make_folder(self.home)
        with create(self.file):
            pass
        write_json(self.note, Note(of=self.of, mark=mark).model_dump())
        self.mark = mark

    def drop(self) -> None:
        self.mark = None
        if self.home.is_symlink() or self.home.is_file():
            remove(self.home)
        else:
            remove_folder(self.home)

    def discard(self, why: str) -> StageError:
        """Drop what has arrived; the error that says so."""
        self.drop()
        return StageError(
            f"the download is damaged: {why}. It was thrown away: run the same command again",
            code="download_damaged",
        )


def transfer(kaggle: Kaggle, part: PartialDownload, download: Download) -> None:
    """Write what arrives to `part`, and ask for the rest where the connection breaks. Raises
    StageError where it breaks again and again."""
    total, breaks, most = download.mark.bytes, 0, part.size
    with Meter("download", total, download.start) as meter:
        while True:
            if not download.start:
                part.begin(download.mark)
            meter.done = part.size
            try:
                return _receive(download, part, meter)
            except ConnectionLost as error:
                lost = error
            breaks = breaks + 1 if part.size <= most else 0
            most = max(most, part.size)
            where = f" at {size(part.size)} of {size(total)}"
            if breaks == BREAKS:
                raise StageError(
                    f"{lost.what}{where}, {BREAKS} times in a row. What has arrived is kept: "
                    "run the same command again to go on",
                    code=lost.code,
                )
            pause(lost, PAUSE * 2**breaks, where)
            download = kaggle.download(part.of, part.size, part.mark)


def _receive(download: Download, part: PartialDownload, meter: Meter) -> None:
    """Raises ConnectionLost where the connection breaks before all has arrived."""
    try:
        with open(part.file, "ab") as file:
            for piece in download:
                file.write(piece)
                meter.add(len(piece))
    except ConnectionLost:
        if not part.is_complete:
            raise
    # older versions of urllib3 take a break for the end
    if part.mark.bytes is not None and not part.is_complete:
        raise ConnectionLost("the connection to Kaggle broke", code="connection_lost")


def verify_download(part: PartialDownload, md5: str) -> None:
    """Raises StageError, and drops what has arrived, unless it has Kaggle's size and MD5 (base64;
    '': not known)."""
    if part.mark.bytes is not None and not part.is_complete:
        raise part.discard(f"{part.size} bytes arrived, and Kaggle's file has {part.mark.bytes}")
    if md5:
        digest = hashlib.md5(usedforsecurity=False)
        with open(part.file, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        if base64.b64encode(digest.digest()).decode() != md5:
            raise part.discard("its MD5 is not that of Kaggle's file")


class Meter:
    """Bytes as they come, as a context manager: a bar on a terminal, elsewhere a line now and
    then."""

    def __init__(self, label: str, total: int | None, done: int = 0) -> None:
        self.label, self.total, self.done, self.start = label, total, done, done
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> Meter:
        self.bar = progress((self.total or 0) // UNITS["MB"], f"{self.label}, MB")
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def add(self, count: int) -> None:
        self.done += count
        self.bar.update(self.done // UNITS["MB"] - self.bar.n)
        now = time.monotonic()
        if now - self.printed < QUIET or sys.stderr.isatty():
            return
        self.printed, speed = now, (self.done - self.start) / (now - self.began)
        line = f"  {self.label}: {size(self.done)}"
        if self.total:
            line += f" of {size(self.total)} ({100 * self.done // self.total} %)"
        if self.total and speed:
            line += f", about {duration((self.total - self.done) / speed)} left"
        say(line)


def size(count: int | None) -> str:
    """12.3 MB; of an unknown size too."""
    if count is None:
        return "an unknown size"
    for unit, bytes_of in UNITS.items():
        if count >= bytes_of:
            return f"{count / bytes_of:.1f} {unit}"
    return f"{count} bytes"
