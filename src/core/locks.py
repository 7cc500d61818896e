"""One run at a time writes what a job writes; another one waits, and says for which."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from src.core.console import InputError, say
from src.core.disk import HOST, explaining, is_alive, make_folder, point

if TYPE_CHECKING:
    from filelock import FileLock

POLL = 0.1  # seconds between two tries


class Lock:
    """A file that one process at a time holds; within that process it is reentrant.

    The system releases it when the process ends, however it ends. The file is never removed, since
    it could then be held twice; its content says who holds it.
    """

    _known: dict[Path, Lock] = {}

    def __init__(self, path: Path, what: str):
        self.path, self.what, self.depth, self.process = path, what, 0, os.getpid()
        self._lock: FileLock | None = None

    @classmethod
    def of(cls, path: Path, what: str) -> Lock:
        """The one lock on this path. `what`: how a message names what is done under it."""
        if not cls._known:
            os.register_at_fork(after_in_child=cls._forget)
        known = cls._known.get(path)
        if known is None or known.process != os.getpid():
            known = cls._known[path] = cls(path, what)
        return known

    @classmethod
    def _forget(cls) -> None:
        """In a forked process, which inherits open files: a lock in a loader process would outlive
        its run by seconds."""
        for lock in cls._known.values():
            context = lock._lock._context if lock._lock is not None else None
            descriptor = getattr(context, "lock_file_fd", None)
            if descriptor is not None:  # filelock before version 4 leaves it open
                with suppress(OSError):
                    os.close(descriptor)
                context.lock_file_fd = None
        cls._known.clear()

    def acquire(self) -> bool:
        """False where another process holds it. Raises InputError where there can be no lock."""
        from filelock import FileLock, Timeout  # 30 ms, which `status` need not spend

        if self.depth:
            self.depth += 1
            return True
        make_folder(self.path.parent)
        if self.path.exists() and not self.path.is_file():
            what, todo = "something else is where a lock is needed", "Move it away"
            raise InputError(what, self.path, todo, code="file_or_folder")
        if self._lock is None:
            self._lock = FileLock(self.path, timeout=0)
        try:
            with explaining(self.path):
                point("lock", self.path)
                self._lock.acquire(blocking=False)
        except Timeout:
            return False
        self.depth = 1
        self._sign()
        return True

    def release(self) -> None:
        self.depth -= 1
        if self.depth == 0:
            with suppress(OSError):
                os.truncate(self.path, 0)
            self._lock.release()

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Around the work; waits as long as another run holds it. Yields whether it waited: then
        the other run may have changed what was planned."""
        waited = self.wait()
        try:
            yield waited
        finally:
            self.release()

    def wait(self) -> bool:
        """Acquire it; returns whether that took waiting for another run."""
        waited = False
        while not self.acquire():
            if not waited:
                say(f"{self.what}: waiting for {self.holder()} (Ctrl+C stops waiting)")
                waited = True
            time.sleep(POLL)
        return waited

    def holder(self) -> str:
        """Who holds it, in words."""
        note = self._note()
        if not note:
            return "another run"
        return f"process {note['process']} on {note['host']}, since {note['since']}"

    def is_busy(self) -> bool:
        """Does a living process of this host hold it, by its own account? Changes nothing."""
        note = self._note()
        return note.get("host") == HOST and is_alive(note["process"])

    def _note(self) -> dict:
        """What the holder has written of itself; {} where that cannot be read."""
        try:
            note = json.loads(self.path.read_text(encoding="utf-8"))
            return {"process": int(note["process"]), "host": note["host"], "since": note["since"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _sign(self) -> None:
        """For those who wait; without it they still wait."""
        note = {"process": os.getpid(), "host": HOST, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):
            self.path.write_text(json.dumps(note), encoding="utf-8")
