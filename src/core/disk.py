"""What the project writes: all of it or nothing, and on the disk before anything says that it is
there.

Every write, rename, removal, lock and start of a process passes `point`, so that tests can make
each of them fail in turn (tests/failpoints.py), as SQLite and etcd do.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from src.core.console import InputError, StageError, again, short
from src.core.shortage import shortage

FULL = {errno.ENOSPC, errno.EDQUOT}
IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
OF_THE_SYSTEM = {"disk_full", "file_too_large", "no_permission", "system_error"}  # see `explained`
HOST = socket.gethostname().split(".")[0].replace("-", "_") or "host"
FOREIGN = 24 * 3600  # seconds after which another host's temporary file counts as abandoned

hook: Callable[[str, Path], None] | None = None  # set by the tests


def point(what: str, path: Path) -> None:
    """A place where something may go wrong. `what`: make, write, sync, rename, synced, remove,
    lock or start; `path`: what it is done to."""
    if hook is not None:
        hook(what, path)


# --------------------------------------------------------------------------------------- writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path given; it takes the place of `path` at the end, so that a half-written
    file is never taken for finished.

    The temporary name is a new one, made here and never a link. What a killed run left behind is
    removed first. The content is on the disk before it gets its name, and the name is on the disk
    before this returns. Raises InputError or StageError, as `explained` words them.
    """
    owner = f"{HOST[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f"{_start(path)}{owner}.part")
    try:
        make_folder(path.parent)
        remove_leftovers(path)
        with explaining(path):
            point("make", temporary)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
            os.close(os.open(temporary, flags, 0o666))
        with explaining(path):
            yield temporary
            point("write", temporary)
            point("sync", temporary)
            _sync(temporary)
            point("rename", path)
            os.replace(temporary, path)
            point("synced", path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Fill the folder given; it takes the place of `target` at the end. Until then, `target` is
    not touched. To be called under a lock: what a killed run left behind is removed first."""
    temporary = target.with_name(f".{target.name[:120]}.part")
    old = target.with_name(f".{target.name[:120]}.old")
    try:
        for leftover in (temporary, old):
            if leftover.is_symlink() or leftover.is_file():
                remove(leftover)  # the link, not where it leads
            remove_folder(leftover)
        make_folder(temporary)
        with explaining(target):
            yield temporary
            for file in temporary.rglob("*"):
                if not file.is_dir():
                    _sync(file)
        if target.exists():
            move(target, old)
        try:
            move(temporary, target)
        except BaseException:
            if old.exists() and not target.exists():
                os.rename(old, target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """All of it or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """A JSON object that a stage (or a user) wrote; raises InputError where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        what = f"not readable as JSON: {error}"
        raise InputError(what, path, code="damaged_json") from None
    if not isinstance(content, dict):
        what = f"this holds a {type(content).__name__}, not named values in braces"
        raise InputError(what, path, code="damaged_json")
    return content


def make_folder(path: Path) -> None:
    """The folder and those above it; none of them need exist. Raises like `replacing`."""
    if path.is_dir():
        return
    try:
        point("make", path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL | IN_THE_WAY | {errno.EIO}:
            raise explained(error, path) from error
        what = f"this folder cannot be made: {error.strerror}"
        todo = "Name another with --work or --data"
        raise InputError(what, path, todo, code="not_writable") from error


def remove(path: Path) -> None:
    """A file, where it exists. Raises like `replacing`."""
    with explaining(path):
        point("remove", path)
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """A folder and all in it, where it exists. Raises like `replacing`."""
    if path.is_dir():
        with explaining(path):
            point("remove", path)
            shutil.rmtree(path)


def copy(path: Path, target: Path) -> None:
    """The content and the permissions, to a name whose folder is made. Raises like `replacing`."""
    make_folder(target.parent)
    with explaining(target):
        point("make", target)
        shutil.copy(path, target)
        point("write", target)


def move(path: Path, target: Path) -> None:
    """To another place, whose folder is made. Raises like `replacing`."""
    make_folder(target.parent)
    with explaining(path):
        point("rename", target)
        shutil.move(path, target)
        point("synced", target)
        _sync_folder(target.parent)


def new_folder(parent: Path, name: str) -> Path:
    """parent/name, or name-2, name-3, … where that is taken: two runs never share one."""
    make_folder(parent)
    for number in range(1, 100_000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError), explaining(folder):
            point("make", folder)
            folder.mkdir()
            return folder
    raise StageError(f"no free name like {short(parent / name)}", code="no_free_name")


def remove_leftovers(path: Path) -> None:
    """Temporary files of `path` whose process is gone: a killed run leaves one."""
    start, end = _start(path), ".part"
    with suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            if entry.name.startswith(start) and entry.name.endswith(end):
                owner = entry.name[len(start) : -len(end)]
                with suppress(OSError):
                    if _is_abandoned(owner, entry):
                        os.unlink(entry)


def _start(path: Path) -> str:
    """How the names of its temporary files begin; a long name leaves room for the rest."""
    return f".{path.name[:120]}."


def _is_abandoned(owner: str, temporary: os.DirEntry) -> bool:
    host, _, rest = owner.partition("-")
    process = rest.partition("-")[0]
    if host == HOST[:40] and process.isdigit():
        return not is_alive(int(process))
    return time.time() - temporary.stat(follow_symlinks=False).st_mtime > FOREIGN


def is_alive(process: int) -> bool:
    """Is there such a process on this host?"""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # someone else's
        pass
    return True


def _sync(path: Path) -> None:
    """Its content onto the disk, whichever process wrote it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """The names in it. Some network folders cannot be synced, and need not be."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM):
            raise


# ---------------------------------------------------------------------------------------- errors


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """What the system refuses to do with `path` becomes one line, as `explained` words it.

    Libraries hide it: torch raises a RuntimeError where the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = system_error(error)
        if cause is None or isinstance(cause, (FileExistsError, FileNotFoundError)):
            raise
        raise explained(cause, path) from error


def explained(error: OSError, path: Path | None = None) -> InputError | StageError:
    """An error of the operating system in one line: what, where, what to do."""
    named = error.filename if isinstance(error.filename, (str, Path)) else None
    if named and not str(named).endswith(".part"):  # else it is on its way to be `path`
        path = Path(named)
    where = short(path) if path is not None else ""
    then = f"then {again()}"
    if error.errno in FULL:
        todo = f"Free some space or point --work elsewhere, {then}"
        return InputError("the disk is full", where, todo, code="disk_full")
    if error.errno == errno.EFBIG:
        what, todo = "the file is larger than allowed here", f"Raise `ulimit -f`, {then}"
        return InputError(what, where, todo, code="file_too_large")
    if error.errno in REFUSED:
        todo = "Give yourself the right to it, or name another folder with --work or --data"
        return InputError("no permission to write or read", where, todo, code="no_permission")
    if error.errno == errno.ENOENT:
        todo = f"Was it moved or removed just now? Then {again()}"
        return InputError("no such file or folder", where, todo, code="gone")
    if error.errno in IN_THE_WAY:
        what = "a file is where a folder is needed, or a folder where a file is"
        todo = "Move it away, or name another folder with --work or --data"
        return InputError(what, where, todo, code="file_or_folder")
    if error.errno == errno.ENAMETOOLONG:
        return InputError("the name is too long", where, "Shorten it", code="bad_path")
    if error.errno == errno.ELOOP:
        what = "a link stands where a file is needed, or leads in a circle"
        return InputError(what, where, "Remove the link", code="bad_path")
    lacking = shortage(error)
    if lacking is not None:
        return lacking
    place = f" ({where})" if where else ""
    text = f"the system says: {error.strerror or error}{place}. Look after that disk, {then}"
    return StageError(text, code="system_error")


def recognised(error: BaseException) -> InputError | StageError | None:
    """Any error as the one line that a command ends with; None for a fault of the program."""
    if isinstance(error, (InputError, StageError)):
        return error
    lacking = shortage(error)
    if lacking is None and isinstance(error, OSError) and error.errno is not None:
        return explained(error)
    return lacking


def system_error(error: BaseException | None) -> OSError | None:
    """The OSError in an exception or in what led to it; a library's own words count for nothing."""
    for _ in range(20):
        if error is None or (isinstance(error, OSError) and error.errno is not None):
            return error
        error = error.__cause__ or error.__context__
    return None


BROKEN = ("a broken link", "a link to itself")
KINDS = {
    stat.S_IFREG: "",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def what_is(path: Path | str) -> str:
    """'' for a file, or a link to one; else in words what lies there."""
    try:
        return KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "not a file")
    except OSError as error:
        if error.errno == errno.ELOOP:
            return BROKEN[1]
        return BROKEN[0] if os.path.islink(path) else error.strerror or "nothing"


def must_be_file(path: Path, what: str) -> None:
    """Raises InputError where something lies there that is not a file; nothing at all is fine."""
    kind = what_is(path) if os.path.lexists(path) else ""
    if kind:
        todo = "Put the file itself there, or take this away"
        raise InputError(f"{what} is {kind}, not a file", path, todo, code="not_a_file")
