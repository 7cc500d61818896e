"""Unpacking a zip that came from elsewhere: nothing is written outside of its folder, nothing beyond a bound, and nothing half-written takes its name.

READS   a zip file, and the files that are there already: those of the same size and checksum are left as they are
WRITES  its members below a folder; a zip among them (train.zip) is unpacked where it lies, and goes
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from src.core.console import InputError, StageError, short
from src.core.disk import point

MOST = 50 * 10**9  # bytes, unpacked
MOST_FILES = 10**6
PIECE = 1 << 20


class Damaged(StageError):
    """The archive is not as it was packed."""

    def __init__(self, what: str):
        super().__init__(what, code="download_damaged")


@dataclass
class Unpacked:
    """`files`: name below the folder -> bytes and crc (8 hexadecimal digits); `opened`: the zips among the members that were unpacked too; `new`: how many
    files were not there before; `left`: bytes that may still be written."""

    left: int
    files: dict[str, dict] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    new: int = 0

    def take(self, size: int, archive: Path) -> None:
        self.left -= size
        if self.left < 0:
            todo = (
                f"Unpack it yourself if you trust it; the bound is MOST in {short(Path(__file__))}"
            )
            raise InputError(
                "it unpacks to more than is allowed, or than the disk has room for",
                short(archive),
                todo,
                code="archive_too_large",
            )


def unpack(
    archive: Path, folder: Path, most: int, tick: Callable[[int], None] = lambda size: None
) -> Unpacked:
    """Unpack `archive` below `folder`, at most `most` bytes; `tick` is told of every piece. Raises InputError for what must not be unpacked, before anything
    is written where it can be seen beforehand, and Damaged for a member that does not fit its checksum."""
    done = Unpacked(most)
    _unpack(archive, folder, folder, done, tick, nested=True)
    return done


def crc_of(file: Path) -> int:
    crc = 0
    with open(file, "rb") as data:
        while piece := data.read(PIECE):
            crc = zlib.crc32(piece, crc)
    return crc


def _unpack(
    archive: Path,
    top: Path,
    folder: Path,
    done: Unpacked,
    tick: Callable[[int], None],
    nested: bool,
) -> None:
    """`folder`: below `top`, where the members go. One level of zips in zips is unpacked, with `nested`."""
    try:
        with zipfile.ZipFile(archive) as source:
            members = _checked(source, archive, done)
            base = folder if nested else folder / _own_folder(members, archive)
            _check_case(members, archive, top)
            for name, info in members.items():
                target = base / name
                parent = target.parent.resolve()
                if not parent.is_relative_to(top.resolve()):
                    raise InputError(
                        f"{short(target.parent)} leads out of the folder",
                        short(top),
                        "Remove that link",
                        code="archive_refused",
                    )
                parent.mkdir(parents=True, exist_ok=True)
                if nested and target.suffix.lower() == ".zip":
                    _inner(source, info, target, top, done, tick, archive)
                    continue
                if (known := done.files.get(target.relative_to(top).as_posix())) and known[
                    "crc"
                ] != f"{info.CRC:08x}":
                    raise InputError(
                        f"the archive holds {target.relative_to(top)} twice, and each is different",
                        short(archive),
                        "Unpack it by hand, and look which one is right",
                        code="archive_twice",
                    )
                if _there(target, info):
                    done.take(info.file_size, archive)
                    tick(info.file_size)
                else:
                    _write(source, info, target, done, tick, archive)
                    done.new += 1
                done.files[target.relative_to(top).as_posix()] = {
                    "bytes": info.file_size,
                    "crc": f"{info.CRC:08x}",
                }
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise Damaged(str(error) if nested else f"{archive.name.lstrip('.')}: {error}") from None
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise InputError(
            "a file and a folder have the same name",
            short(Path(error.filename or folder)),
            "Remove what is there, then run the same command again",
            code="file_or_folder",
        ) from None


def _checked(
    source: zipfile.ZipFile, archive: Path, done: Unpacked
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The files of a zip by their path. Raises InputError for paths that lead out, links, devices, encryption, doubled names, and too much."""
    found: dict[PurePosixPath, zipfile.ZipInfo] = {}
    if len(source.infolist()) > MOST_FILES:
        todo = f"Unpack it yourself if you trust it; the bound is MOST_FILES in {short(Path(__file__))}"
        raise InputError(
            f"it holds more than {MOST_FILES:,} files",
            short(archive),
            todo,
            code="archive_too_large",
        )
    for info in source.infolist():
        raw = info.orig_filename.replace("\\", "/")
        path, kind = PurePosixPath(raw), stat.S_IFMT(info.external_attr >> 16)
        if (
            raw.startswith("/")
            or re.match(r"[A-Za-z]:", raw)
            or ".." in path.parts
            or "\0" in raw
            or raw.strip("/. ") == ""
        ):
            why = "a path that leads out of its folder"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            why = "a link" if kind == stat.S_IFLNK else "a device"
        elif path in found:
            why = "the same name twice"
        elif info.flag_bits & 1:
            why = "an encrypted file"
        elif raw.endswith("/") or any(
            part.startswith(".") or part == "__MACOSX" for part in path.parts
        ):
            continue  # folders come with their files; the rest is what file managers leave behind
        else:
            found[path] = info
            continue
        raise InputError(
            f"the archive holds {why}: {raw[:100]!r}",
            short(archive),
            "It is not unpacked; look at it, and take what you trust out of it by hand",
            code="archive_refused",
        )
    if sum(info.file_size for info in found.values()) > done.left:
        done.take(done.left + 1, archive)
    return found


def _check_case(members: dict[PurePosixPath, zipfile.ZipInfo], archive: Path, folder: Path) -> None:
    """Raises InputError where two names differ only in case or composition and the disk does not
    tell them apart: the second would take the place of the first."""
    seen: dict[str, PurePosixPath] = {}
    for path in members:
        plain = unicodedata.normalize("NFC", str(path)).casefold()
        if plain in seen and not tells_case(folder):
            what = f"the archive holds {str(seen[plain])!r} and {str(path)!r}, which are the same name on this disk"
            todo = "Unpack it on a disk that tells them apart, or by hand"
            raise InputError(what, short(archive), todo, code="archive_twice")
        seen[plain] = path


def tells_case(folder: Path) -> bool:
    """Whether the disk has two names where only case differs."""
    with tempfile.TemporaryDirectory(
        prefix=".case", dir=folder if folder.is_dir() else None
    ) as name:
        (Path(name) / "a").touch()
        return not (Path(name) / "A").exists()


def _inner(
    source: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    target: Path,
    top: Path,
    done: Unpacked,
    tick: Callable[[int], None],
    archive: Path,
) -> None:
    """A zip in the zip. One that is none, or a sample of the submission with images in it, stays a file: that is the form of what is handed in."""
    parked = target.with_name(f".{target.name}")
    try:
        if not _there(target, info):
            _write(source, info, parked, done, lambda size: None, archive)
            is_zip = zipfile.is_zipfile(parked)
            if is_zip and "samplesub" in re.sub("[^a-z]", "", target.name.lower()):
                with zipfile.ZipFile(parked) as sample:
                    is_zip = sum(not name.endswith("/") for name in sample.namelist()) == 1
            if is_zip:
                _unpack(parked, top, target.parent, done, tick, nested=False)
                done.left += info.file_size
                done.opened.append(target.relative_to(top).as_posix())
                return
            os.replace(parked, target)
            done.new += 1
        done.files[target.relative_to(top).as_posix()] = {
            "bytes": info.file_size,
            "crc": f"{info.CRC:08x}",
        }
    finally:
        parked.unlink(missing_ok=True)


def _own_folder(members: dict[PurePosixPath, zipfile.ZipInfo], archive: Path) -> str:
    """Where the members of a zip in a zip go, beside it: '' for a table or a folder of the zip's own name, else a folder of that name."""
    name = archive.name.lstrip(".")[: -len(".zip")]
    table = len(members) == 1 and next(iter(members)).suffix.lower() in (
        ".csv",
        ".tsv",
        ".txt",
        ".json",
    )
    return "" if table or {path.parts[0] for path in members} == {name} else name


def own(file: Path) -> BinaryIO:
    """A new file, to be written. What is there goes first, and no link that somebody puts in its
    place is followed."""
    file.unlink(missing_ok=True)
    point("make", file)
    return open(file, "xb", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666))


def _there(target: Path, info: zipfile.ZipInfo) -> bool:
    return (
        target.is_file() and target.stat().st_size == info.file_size and crc_of(target) == info.CRC
    )


def _write(
    source: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    target: Path,
    done: Unpacked,
    tick: Callable[[int], None],
    archive: Path,
) -> None:
    """One file, whole or not at all; zipfile compares the checksum when it has read the last byte."""
    temporary = target.with_name(f".{target.name[:200]}.part")
    try:
        with source.open(info) as packed, own(temporary) as file:
            while piece := packed.read(PIECE):
                done.take(len(piece), archive)
                file.write(piece)
                tick(len(piece))
        point("rename", target)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
