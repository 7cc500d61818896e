"""Unpacking a zip from elsewhere: nothing is written outside of its folder, nothing beyond a bound,
and nothing half-written takes its name.

READS   a zip file, and the files that are there already: those of the same size and checksum are
        left as they are
WRITES  its members below a folder; a zip among them (train.zip) is unpacked where it lies, and goes
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile, ZipInfo, is_zipfile

from pydantic import BaseModel, Field

from src.core.console import InputError, StageError, short
from src.core.disk import point

MOST = 50 * 10**9  # bytes, unpacked
MOST_FILES = 10**6
PIECE = 1 << 20
TABLES = (".csv", ".tsv", ".txt", ".json")
Members = dict[PurePosixPath, ZipInfo]


class FileRecord(BaseModel):
    """bytes, and crc: 8 hexadecimal digits."""

    bytes: int
    crc: str = Field(pattern="^[0-9a-f]{8}$")

    @classmethod
    def of(cls, file: Path) -> FileRecord:
        return cls(bytes=file.stat().st_size, crc=f"{crc_of(file):08x}")


class Damaged(StageError):
    """The archive is not as it was packed."""

    def __init__(self, what: str):
        super().__init__(what, code="download_damaged")


def unpack(
    archive: Path, folder: Path, most: int, tick: Callable[[int], None] = lambda size: None
) -> Unpacked:
    """Unpack `archive` below `folder`, at most `most` bytes; `tick` is called with the size of each
    piece. Raises InputError for what must not be unpacked, where possible before anything is
    written, and Damaged for a member that does not fit its checksum."""
    done = Unpacked(folder, most, tick)
    done.unpack(archive, PurePosixPath(), nested=True)
    return done


@dataclass
class Unpacked:
    """What was unpacked below `folder` so far.

    left: bytes that may still be written; opened: the zips among the members that were unpacked
    too; new: how many files were not there before.
    """

    folder: Path
    left: int
    tick: Callable[[int], None] = lambda size: None
    files: dict[str, FileRecord] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    new: int = 0

    def unpack(self, archive: Path, base: PurePosixPath, nested: bool) -> None:
        """To `base` in the folder. nested: zips among the members are unpacked too, one level of
        them."""
        try:
            with ZipFile(archive) as source:
                members = _checked_members(source, archive)
                total = sum(info.file_size for info in members.values())
                if total > self.left:
                    self._take(total, source)
                _check_case(members, archive, self.folder)
                if not nested:
                    base /= _own_folder(members, archive)
                for path, info in members.items():
                    self._make_parent(self.folder / base / path)
                    if nested and path.suffix.lower() == ".zip":
                        self._unpack_inner(source, info, base / path)
                    else:
                        self._unpack_file(source, info, str(base / path))
        except (BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            where = "" if nested else f"{archive.name.lstrip('.')}: "
            raise Damaged(f"{where}{error}") from None
        except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
            raise InputError(
                "a file and a folder have the same name",
                Path(error.filename or self.folder),
                "Remove what is there, then run the same command again",
                code="file_or_folder",
            ) from None

    def _make_parent(self, target: Path) -> None:
        if not target.parent.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(
                f"{short(target.parent)} leads out of the folder",
                self.folder,
                "Remove that link",
                code="archive_refused",
            )
        target.parent.mkdir(parents=True, exist_ok=True)

    def _unpack_file(self, source: ZipFile, info: ZipInfo, name: str) -> None:
        record = _record(info)
        if self.files.setdefault(name, record) != record:
            raise InputError(
                f"the archive holds {name} twice, and each is different",
                Path(source.filename),
                "Unpack it by hand, and look which one is right",
                code="archive_twice",
            )
        if _is_there(self.folder / name, info):
            self._take(info.file_size, source)
            self.tick(info.file_size)
        else:
            self._write(source, info, self.folder / name, self.tick)
            self.new += 1

    def _unpack_inner(self, source: ZipFile, info: ZipInfo, path: PurePosixPath) -> None:
        """A zip in the zip. One that is damaged, or a sample submission with images in it, remains
        a file: the submission has that form."""
        target = self.folder / path
        parked = target.with_name(f".{target.name}")
        try:
            if not _is_there(target, info):
                self._write(source, info, parked, lambda size: None)
                if is_zipfile(parked) and not _is_sample_with_images(parked):
                    self.unpack(parked, path.parent, nested=False)
                    self.left += info.file_size
                    self.opened.append(str(path))
                    return
                os.replace(parked, target)
                self.new += 1
            self.files[str(path)] = _record(info)
        finally:
            parked.unlink(missing_ok=True)

    def _write(
        self, source: ZipFile, info: ZipInfo, target: Path, tick: Callable[[int], None]
    ) -> None:
        """One file, whole or not at all; zipfile compares the checksum after the last byte."""
        temporary = target.with_name(f".{target.name[:200]}.part")
        try:
            with source.open(info) as packed, create(temporary) as file:
                while piece := packed.read(PIECE):
                    self._take(len(piece), source)
                    file.write(piece)
                    tick(len(piece))
            point("rename", target)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _take(self, size: int, source: ZipFile) -> None:
        self.left -= size
        if self.left < 0:
            raise InputError(
                "it unpacks to more than is allowed, or than the disk has room for",
                Path(source.filename),
                f"Unpack it yourself if you trust it; MOST is set in {short(Path(__file__))}",
                code="archive_too_large",
            )


def crc_of(file: Path) -> int:
    crc = 0
    with open(file, "rb") as data:
        while piece := data.read(PIECE):
            crc = zlib.crc32(piece, crc)
    return crc


def create(file: Path) -> BinaryIO:
    """A new file, to be written. What is there goes first, and no link that somebody puts in its
    place is followed."""
    file.unlink(missing_ok=True)
    point("make", file)
    return open(file, "xb", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666))


def _record(info: ZipInfo) -> FileRecord:
    return FileRecord(bytes=info.file_size, crc=f"{info.CRC:08x}")


def _is_there(target: Path, info: ZipInfo) -> bool:
    same_size = target.is_file() and target.stat().st_size == info.file_size
    return same_size and crc_of(target) == info.CRC


def _checked_members(source: ZipFile, archive: Path) -> Members:
    """The files of a zip by their path. Raises InputError for too many, for a name that is there
    twice, and for what `_danger` names."""
    if len(source.infolist()) > MOST_FILES:
        raise InputError(
            f"it holds more than {MOST_FILES:,} files",
            archive,
            f"Unpack it yourself if you trust it; MOST_FILES is set in {short(Path(__file__))}",
            code="archive_too_large",
        )
    found: Members = {}
    for info in source.infolist():
        name = info.orig_filename.replace("\\", "/")
        path = PurePosixPath(name)
        danger = "the same name twice" if path in found else _danger(info, name)
        if danger:
            raise InputError(
                f"the archive holds {danger}: {name[:100]!r}",
                archive,
                "It is not unpacked; look at it, and take what you trust out of it by hand",
                code="archive_refused",
            )
        # the rest is what file managers leave behind
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
        if not name.endswith("/") and not hidden:
            found[path] = info
    return found


def _danger(info: ZipInfo, name: str) -> str:
    """Why a member must not be unpacked; '' where it may."""
    leads_out = re.match(r"/|[A-Za-z]:", name) or ".." in PurePosixPath(name).parts
    if leads_out or "\0" in name or not name.strip("/. "):
        return "a path that leads out of its folder"
    if info.flag_bits & 1:
        return "an encrypted file"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a link"
    return "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "a device"


def _check_case(members: Members, archive: Path, folder: Path) -> None:
    """Raises InputError where two names differ only in case or composition and the disk does not
    distinguish them: the second would take the place of the first."""
    seen: dict[str, PurePosixPath] = {}
    for path in members:
        plain = unicodedata.normalize("NFC", str(path)).casefold()
        if plain in seen and not is_case_sensitive(folder):
            raise InputError(
                f"the archive holds {str(seen[plain])!r} and {str(path)!r}, which are the same "
                "name on this disk",
                archive,
                "Unpack it on a disk that distinguishes them, or by hand",
                code="archive_twice",
            )
        seen[plain] = path


def is_case_sensitive(folder: Path) -> bool:
    """Whether the disk has two names where only case differs."""
    home = folder if folder.is_dir() else None
    with tempfile.TemporaryDirectory(prefix=".case", dir=home) as name:
        (Path(name) / "a").touch()
        return not (Path(name) / "A").exists()


def _is_sample_with_images(archive: Path) -> bool:
    if "samplesub" not in re.sub("[^a-z]", "", archive.name.lower()):
        return False
    with ZipFile(archive) as sample:
        return sum(not name.endswith("/") for name in sample.namelist()) != 1


def _own_folder(members: Members, archive: Path) -> str:
    """Where the members of a zip in a zip go, beside it: '' for a table or a folder of the zip's
    own name, else a folder of that name."""
    name = archive.name.lstrip(".")[: -len(".zip")]
    is_table = [path.suffix.lower() in TABLES for path in members] == [True]
    return "" if is_table or {path.parts[0] for path in members} == {name} else name
