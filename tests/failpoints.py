"""What can go wrong with a disk, at each place where the project touches one.

src/core/disk.py calls its hook before every write, sync, rename, removal, lock and start of a
process. `arm` puts one of these there, in the process that is to suffer:

    count    nothing goes wrong; every call is noted in a file
    kill     SIGKILL at the n-th call
    power    the machine dies at the n-th call: what was not synced by then is lost
    full     the disk is full from the n-th call on: half of what is written arrives
    fail     the n-th call fails as a broken disk does (EIO)
    refused  the n-th call is not permitted (EACCES)
"""

from __future__ import annotations

import errno
import os
import signal
import stat
from pathlib import Path

KINDS = ("kill", "power", "full", "fail", "refused")
TAKE_SPACE = ("make", "write", "sync")  # what a full disk refuses; renames and removals go on


class Failpoint:
    """`at`: the call, from 1, at which `kind` happens. `note`: where `count` writes its calls."""

    def __init__(self, kind: str, at: int, note: Path | None = None, home: Path | None = None):
        self.kind, self.at, self.note, self.calls = kind, at, note, 0
        self.process = os.getpid()  # a worker process inherits the hook, and has its own calls
        self.disk = Disk(home) if kind == "power" else None

    def __call__(self, what: str, path: Path) -> None:
        if os.getpid() != self.process:
            return
        self.calls += 1
        if self.kind == "count":
            with open(self.note, "a", encoding="utf-8") as file:
                file.write(f"{what} {path.name}\n")
        elif self.kind == "full" and self.calls >= self.at and what in TAKE_SPACE:
            if what == "write":
                os.truncate(path, path.stat().st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        elif self.calls == self.at:
            self.happen(path)

    def happen(self, path: Path) -> None:
        if self.disk is not None:
            self.disk.lose_what_is_not_synced()
        if self.kind in ("kill", "power"):
            os.kill(os.getpid(), signal.SIGKILL)
        number = {"fail": errno.EIO, "refused": errno.EACCES}.get(self.kind)
        if number is not None:
            raise OSError(number, os.strerror(number), str(path))


class Disk:
    """What would be left below `home` if the machine lost power: a file whose content was not
    synced since it was last written is empty, a rename whose folder was not synced has not been."""

    def __init__(self, home: Path):
        self.home, self.synced = home, {}
        self.renames: list[tuple[Path, Path, bytes | None]] = []
        self.before = {f: self._mark(f) for f in self._files()}
        self._fsync, self._replace, self._rename = os.fsync, os.replace, os.rename
        os.fsync, os.replace, os.rename = self.fsync, self.replace, self.rename

    def _files(self) -> list[Path]:
        found = []
        for folder, _, names in os.walk(self.home):
            found += [Path(folder, name) for name in names]
        return [f for f in found if not f.is_symlink() and f.suffix != ".lock"]

    @staticmethod
    def _mark(file: Path) -> tuple[int, int, int]:
        found = file.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            folders = [(r, os.stat(r[1].parent).st_ino) for r in self.renames]
            self.renames = [r for r, inode in folders if inode != found.st_ino]
        else:
            self.synced[found.st_ino] = (found.st_ino, found.st_size, found.st_mtime_ns)

    def replace(self, source, target, **_) -> None:
        target = Path(target)
        if target.is_file() or not target.exists():
            old = target.read_bytes() if target.is_file() else None
            self.renames.append((Path(source), target, old))
        self._replace(source, target)

    def rename(self, source, target, **_) -> None:
        self.replace(source, target)

    def lose_what_is_not_synced(self) -> None:
        for file in self._files():
            mark = self._mark(file)
            is_new = mark not in self.before.values()  # else an old file, maybe under a new name
            if is_new and self.synced.get(mark[0]) != mark:
                os.truncate(file, 0)
        for source, target, old in reversed(self.renames):
            if not target.exists():
                continue
            if target.is_dir() or source.parent.is_dir():
                self._replace(target, source)
            if old is not None:
                target.write_bytes(old)


def without_rehearsal() -> None:
    """Let `bundle` not try its own copy in a process of its own, which takes ten seconds."""
    from src.core.disk import point
    from src.tools import bundle

    def tried(folder: Path, *_) -> dict[str, str]:
        point("start", folder)
        return {"torch": "2.0"}

    bundle.tried = tried


def arm(kind: str, at: int, note: str | None = None, home: str | None = None) -> None:
    from src.core import disk

    without_rehearsal()
    disk.hook = Failpoint(kind, at, Path(note) if note else None, Path(home) if home else None)
