"""fetch: the files of a contest, or of a data set, from Kaggle into a folder of their own. It goes on where it was stopped.

READS   --competition SLUG (or slug: in competition.yaml), or --dataset OWNER/NAME; Kaggle; fetched.json of an earlier run
        (BUSI itself is --dataset aryashah2k/breast-ultrasound-images-dataset)
WRITES  input/SLUG/ (with --data DIR, DIR/SLUG/): the files, unpacked, and fetched.json: whose they are, their sizes and checksums. Until all is there, .fetch/
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import shutil
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.config.load import Config
from src.core import console
from src.core.console import (
    InputError,
    StageError,
    command,
    duration,
    header,
    listing,
    progress,
    say,
    short,
    warn,
)
from src.core.disk import make_folder, read_json, remove, remove_folder, write_json
from src.core.locks import Lock
from src.core.paths import Paths, contest_folder
from src.kaggle_io.client import Download, Kaggle
from src.kaggle_io.errors import ConnectionLost, url
from src.kaggle_io.slugs import plain_dataset, slug_of
from src.kaggle_io.unzip import MOST, Damaged, Unpacked, crc_of, own, unpack

BREAKS = 5  # of the connection, one after another without a new byte in between
PAUSE = 2.0  # seconds after the first of them, doubled after each further one
QUIET = 10.0  # seconds between two lines of progress, where there is no terminal
MB = 10**6


def run(given: argparse.Namespace, config: Config, paths: Paths) -> int:
    if given.dataset and given.competition:
        raise InputError(
            "--dataset and --competition are two downloads",
            "command line",
            "Fetch one after the other",
            code="option_elsewhere",
        )
    of = plain_dataset(given.dataset) if given.dataset else slug_of(given, config, paths)
    name = of.rpartition("/")[2]
    paths = replace(paths, data=paths.data if paths.data.name == name else paths.data / name)
    header("fetch", of, [url(of)], [paths.data])
    kaggle = Kaggle()
    if not given.dataset:
        contest = kaggle.contest(of)
        facts = [
            contest.title,
            f"until {contest.deadline:%Y-%m-%d %H:%M} UTC" if contest.deadline else "",
            contest.metric,
            f"{contest.daily} submissions a day" if contest.daily else "",
        ]
        say(f"  {'; '.join(f for f in facts if f)}")
    try:
        with Lock.of(paths.data.with_name(f".{paths.data.name}.lock"), f"fetch {of}").held():
            files = fetch_files(kaggle, of, paths, given.force)
    except OSError as error:
        if error.errno == 28:
            todo = "What has arrived is kept: free some space, then run the same command again, or name another folder with --data"
            raise InputError(
                "the disk is full", short(paths.data), todo, code="disk_full"
            ) from None
        raise InputError(
            f"not writable: {error.strerror or error}",
            short(Path(error.filename or paths.data)),
            "Name another folder with --data",
            code="not_writable",
        ) from None
    report(files, config, paths)
    return 0


def fetch_files(kaggle: Kaggle, of: str, paths: Paths, force: bool) -> dict[str, dict]:
    """Download, verify and unpack what is not there yet. Returns name -> bytes and crc of all files, as in fetched.json."""
    folder, part, before = (
        paths.data,
        PartialDownload(paths.data, of),
        previous_download(paths.fetched, of),
    )
    offered = kaggle.files(of)
    if force:
        part.drop()
    stopped = part.whole  # while it unpacked
    arriving = kaggle.download(of, 0 if stopped else part.size, part.mark)
    named = arriving.mark["etag"] or arriving.mark["modified"]
    intact = all(
        (folder / n).is_file() and (folder / n).stat().st_size == f["bytes"]
        for n, f in before["files"].items()
    )
    if not force and named and before.get("archive") == arriving.mark and intact:
        arriving.response.close()
        part.drop()
        say(
            f"  {len(before['files'])} files, up to date since {before['when']}; --force fetches them anew"
        )
        return before["files"]
    make_folder(folder)
    if offered:
        say(
            f"  {len(offered)} files, {size(sum(filter(None, offered.values())))}; the download is {size(arriving.mark['bytes'])}"
        )
    needed = (
        (arriving.mark["bytes"] or 0)
        - part.size
        + sum(n or 0 for name, n in offered.items() if not (folder / name).is_file())
    )
    if needed > (free := shutil.disk_usage(folder).free):
        raise InputError(
            f"not enough room on the disk: {size(needed)} are needed and {size(free)} are free",
            short(folder),
            "Free some space, or name another folder with --data",
            code="disk_full",
        )
    if stopped and named and arriving.mark == part.mark:
        arriving.response.close()
    else:
        transfer(kaggle, of, part, arriving)
    verify(part, arriving.md5)
    done = settle(part, arriving.name, folder)
    if gone := [n for n in before["files"] if n not in done.files and (folder / n).is_file()]:
        warn(f"{len(gone)} files are no longer part of it, and stay: {listing(gone)}")
    if lacking := [name for name in offered if name not in done.files and name not in done.opened]:
        warn(f"{len(lacking)} files that Kaggle lists were not in the download: {listing(lacking)}")
    whose = {"competition": None if "/" in of else of, "dataset": of if "/" in of else None}
    write_json(
        paths.fetched,
        whose
        | {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "archive": arriving.mark,
            "files": done.files,
        },
    )
    part.drop()
    say(
        f"  {len(done.files)} files, {size(sum(f['bytes'] for f in done.files.values()))}"
        + (
            f"; {len(done.files) - done.new} of them were there already"
            if done.new < len(done.files)
            else ""
        )
    )
    return done.files


def previous_download(file: Path, of: str) -> dict:
    """fetched.json of an earlier run for the same contest or data set."""
    try:
        found = read_json(file)
        sizes = [f["bytes"] + int(f["crc"], 16) for f in found["files"].values()]
        same = of in (found["competition"], found["dataset"]) and isinstance(found["when"], str)
        return found if same and len(sizes) == len(found["files"]) else {"files": {}}
    except (
        InputError,
        OSError,
        RecursionError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ):  # then there is no saying what is up to date
        return {"files": {}}


class PartialDownload:
    """What has arrived of a download so far (.fetch/ in the folder), and the `mark` of the file at Kaggle that it belongs to."""

    def __init__(self, folder: Path, of: str) -> None:
        self.of, self.home = of, folder / ".fetch"
        self.file, self.note = self.home / "archive.part", self.home / "mark.json"
        self.mark: dict[str, Any] | None = None
        try:
            known = read_json(self.note)
            mark, size = known["mark"], known["mark"]["bytes"]
            whole = {"etag", "modified", "bytes"} == mark.keys() and (
                size is None or type(size) is int
            )
            linked = any(p.is_symlink() for p in (self.home, self.file, self.note))
            self.mark = (
                mark if whole and not linked and known["of"] == of and self.file.is_file() else None
            )
        except (
            InputError,
            OSError,
            RecursionError,
            KeyError,
            TypeError,
            AttributeError,
        ):  # as good as nothing
            pass

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.mark else 0

    @property
    def whole(self) -> bool:
        return bool(self.mark) and self.mark["bytes"] == self.size

    def begin(self, mark: dict[str, Any]) -> None:
        self.drop()
        make_folder(self.home)
        with own(self.file):
            pass
        write_json(self.note, {"of": self.of, "mark": mark})
        self.mark = mark

    def drop(self) -> None:
        self.mark = None
        if self.home.is_symlink() or self.home.is_file():
            remove(self.home)
        else:
            remove_folder(self.home)


def transfer(kaggle: Kaggle, of: str, part: PartialDownload, arriving: Download) -> None:
    """Write what arrives to `part`, and ask for the rest where the connection breaks off. Raises StageError where it breaks again and again."""
    fails, most = 0, part.size
    with Meter("download", arriving.mark["bytes"], arriving.start) as meter:
        while True:
            if not arriving.start:
                part.begin(arriving.mark)
            meter.done = part.size
            try:
                with open(part.file, "ab") as file:
                    for piece in arriving:
                        file.write(piece)
                        meter.add(len(piece))
                if part.mark["bytes"] is None or part.whole:
                    return
                # older versions of urllib3 call that an end
                raise ConnectionLost("the connection to Kaggle broke", code="connection_lost")
            except ConnectionLost as lost:
                if part.whole:
                    return
                fails, most = (fails + 1, most) if part.size <= most else (0, part.size)
                where = f"at {size(part.size)} of {size(arriving.mark['bytes'])}"
                if fails == BREAKS:
                    raise StageError(
                        f"{lost.what} {where}, {BREAKS} times in a row. What has "
                        "arrived is kept: run the same command again to go on",
                        code=lost.code,
                    ) from None
                warn(f"{lost.what} {where}; trying again in {duration(PAUSE * 2**fails)}")
            time.sleep(PAUSE * 2**fails)
            arriving = kaggle.download(of, part.size, part.mark)


def verify(part: PartialDownload, md5: str) -> None:
    """Raises StageError, and drops what has arrived, unless it has the size and the MD5 (base64; '': not said) that Kaggle says."""
    if part.mark["bytes"] is not None and not part.whole:
        raise thrown_away(part, f"{part.size} bytes arrived and Kaggle says {part.mark['bytes']}")
    if md5:
        digest = hashlib.md5(usedforsecurity=False)
        with open(part.file, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        if base64.b64encode(digest.digest()).decode() != md5:
            raise thrown_away(part, "its MD5 is not the one that Kaggle says")


def settle(part: PartialDownload, name: str, folder: Path) -> Unpacked:
    """Unpack what has arrived; what is no zip is a file as it is."""
    if not zipfile.is_zipfile(part.file):
        name = re.sub(r"[^\w. -]", "_", name).lstrip(".") or "file"
        if name.lower().endswith(".zip"):
            raise thrown_away(part, f"{name} is no zip")
        done = Unpacked(0, {name: {"bytes": part.size, "crc": f"{crc_of(part.file):08x}"}}, new=1)
        part.file.replace(folder / name)
        return done
    there = sum(
        f.stat().st_size for f in folder.rglob("*") if f.is_file() and part.home not in f.parents
    )
    try:
        with zipfile.ZipFile(part.file) as archive:
            total = sum(info.file_size for info in archive.infolist())
        with Meter("unpack", total) as meter:
            return unpack(
                part.file, folder, min(MOST, shutil.disk_usage(folder).free + there), meter.add
            )
    except (Damaged, zipfile.BadZipFile) as damaged:
        raise thrown_away(part, str(damaged)) from None


def thrown_away(part: PartialDownload, why: str) -> StageError:
    part.drop()
    return StageError(
        f"the download is damaged: {why}. It was thrown away: run the same command again",
        code="download_damaged",
    )


class Meter:
    """Bytes as they come, as a context manager: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, label: str, total: int | None, done: int = 0) -> None:
        self.label, self.total, self.done, self.start = label, total, done, done
        self.began = self.said = time.monotonic()

    def __enter__(self) -> Meter:
        self.bar = progress((self.total or 0) // MB, f"{self.label}, MB")
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def add(self, count: int) -> None:
        self.done += count
        self.bar.update(self.done // MB - self.bar.n)
        now = time.monotonic()
        if now - self.said >= QUIET and not sys.stderr.isatty():
            self.said, speed = now, (self.done - self.start) / (now - self.began)
            left = (
                f", about {duration((self.total - self.done) / speed)} left"
                if self.total and speed > 0
                else ""
            )
            share = (
                f" of {size(self.total)} ({100 * self.done // max(1, self.total)} %)"
                if self.total
                else ""
            )
            say(f"  {self.label}: {size(self.done)}{share}{left}")


# --------------------------------------------------------------------------------------------------------------------- at the end


def report(files: dict[str, dict], config: Config, paths: Paths) -> None:
    """What is there, whether the pipeline understands it, and the next command."""
    from src.data import dataset
    from src.submission.order import sample_order
    from src.submission.sample import sample_file

    sample = sample_file(config.competition, paths.data)
    alike = sorted(
        n
        for n in files
        if re.search("sample.*subm|subm.*sample", n.lower())
        and n.lower().endswith((".csv", ".tsv", ".txt", ".zip"))
    )
    extra: list[str] = []
    if sample.is_file():
        say(f"  the sample of the submission is {sample.relative_to(paths.data)}")
    elif alike:
        extra = ["--set", f"data.sample_submission={alike[0]}"]
        say(
            f"  the sample of the submission seems to be {' or '.join(alike)}: name it by data.sample_submission in competition.yaml, or by {' '.join(extra)}"
        )
    else:
        say(
            "  there is no sample of the submission (data.sample_submission names one that is called otherwise): everything but the submission works"
        )
    settled = False
    try:
        items = dataset.find(
            paths.data, config.competition, problems := dataset.Problems(), sample_order
        )
        train = sum(i.part == "train" for i in items)
        say(
            f"  the pipeline sees {train} train and {len(items) - train} test images"
            + (
                ""
                if train
                else ": data.train, or data.table, in competition.yaml says where they are"
            )
        )
        for line in problems.lines():
            say(f"  {line[:300]}")
        settled = bool(train) and not problems
    except InputError as error:
        say(f"  the pipeline does not understand the folder yet: {error}")
    if "--data" in console.REPEATED:
        console.REPEATED[console.REPEATED.index("--data") + 1] = short(paths.data)
    elif not _found_by_itself(config, paths):
        extra = ["--data", short(paths.data), *extra]
    say(
        f"{'next' if settled else 'next, when that is settled'}: {command(*extra)}"
        + (
            ""
            if "--config" in console.REPEATED
            else "   (without a GPU: with --config configs/cpu.yaml)"
        )
    )


def _found_by_itself(config: Config, paths: Paths) -> bool:
    try:
        return contest_folder(config.competition.slug) == paths.data
    except InputError:
        return False


def size(count: int | None) -> str:
    """12.3 MB; of an unknown size too."""
    if count is None:
        return "an unknown size"
    unit = next((u for u in (("GB", 10**9), ("MB", MB), ("kB", 1000)) if count >= u[1]), None)
    return f"{count / unit[1]:.1f} {unit[0]}" if unit else f"{count} bytes"
