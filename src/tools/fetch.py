"""fetch: the files of a contest, or of a data set, from Kaggle into a folder of their own. It goes
on where it was stopped.

READS   --competition SLUG (or slug: in competition.yaml), or --dataset OWNER/NAME; Kaggle;
        fetched.json of an earlier run (BUSI is --dataset
        aryashah2k/breast-ultrasound-images-dataset)
WRITES  input/SLUG/ (with --data DIR, DIR/SLUG/): the files, unpacked, and fetched.json: where they
        are from, their sizes and checksums. Until all is there, .fetch/
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from src.config.load import Config
from src.core import console
from src.core.console import InputError, command, header, listing, say, short, warn
from src.core.disk import make_folder, write_json
from src.core.locks import Lock
from src.core.paths import Paths, contest_folder
from src.kaggle_io.client import Contest, Download, Kaggle, Mark
from src.kaggle_io.download import Meter, PartialDownload, size, transfer, verify_download
from src.kaggle_io.errors import url
from src.kaggle_io.slugs import plain_dataset, slug_of
from src.kaggle_io.unzip import MOST, Damaged, FileRecord, Unpacked, unpack


class Fetched(BaseModel):
    """fetched.json."""

    competition: str | None
    dataset: str | None
    when: str
    archive: Mark
    files: dict[str, FileRecord]


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
        say(f"  {_describe(kaggle.contest(of))}")
    try:
        with Lock.of(paths.data.with_name(f".{paths.data.name}.lock"), f"fetch {of}").held():
            files = fetch_files(kaggle, of, paths, given.force)
    except OSError as error:
        if error.errno == 28:
            raise InputError(
                "the disk is full",
                paths.data,
                "What has arrived is kept: free some space, then run the same command again, or "
                "name another folder with --data",
                code="disk_full",
            ) from None
        what, where = f"not writable: {error.strerror or error}", error.filename or paths.data
        raise InputError(
            what, Path(where), "Name another folder with --data", code="not_writable"
        ) from None
    extra = report_sample(files, config, paths)
    report_images(config, paths, extra)
    return 0


def _describe(contest: Contest) -> str:
    facts = [
        contest.title,
        f"until {contest.deadline:%Y-%m-%d %H:%M} UTC" if contest.deadline else "",
        contest.metric,
        f"{contest.daily} submissions a day" if contest.daily else "",
    ]
    return "; ".join(filter(None, facts))


def fetch_files(kaggle: Kaggle, of: str, paths: Paths, force: bool) -> dict[str, FileRecord]:
    """Download, verify and unpack what is not there yet. Returns name -> record of all files, as in
    fetched.json."""
    folder, part, before = paths.data, PartialDownload(paths.data, of), read_fetched(paths, of)
    offered = kaggle.files(of)
    if force:
        part.drop()
    stopped_unpacking = part.is_complete
    download = kaggle.download(of, 0 if stopped_unpacking else part.size, part.mark)
    if before and not force and _is_up_to_date(before, download, folder):
        download.response.close()
        part.drop()
        count = len(before.files)
        say(f"  {count} files, up to date since {before.when}; --force fetches them again")
        return before.files
    make_folder(folder)
    _check_room(offered, download, part, folder)
    if stopped_unpacking and download.mark.identity and download.mark == part.mark:
        download.response.close()
    else:
        transfer(kaggle, part, download)
    verify_download(part, download.md5)
    done = unpack_download(part, download.name, folder)
    old = before.files if before else {}
    if gone := [n for n in old if n not in done.files and (folder / n).is_file()]:
        warn(f"{len(gone)} files are no longer part of it, and are kept: {listing(gone)}")
    if missing := [n for n in offered if n not in done.files and n not in done.opened]:
        warn(f"{len(missing)} files that Kaggle lists were not in the download: {listing(missing)}")
    is_dataset = "/" in of
    record = Fetched(
        competition=None if is_dataset else of,
        dataset=of if is_dataset else None,
        when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        archive=download.mark,
        files=done.files,
    )
    write_json(paths.fetched, record.model_dump())
    part.drop()
    line = f"  {len(done.files)} files, {size(sum(f.bytes for f in done.files.values()))}"
    if done.new < len(done.files):
        line += f"; {len(done.files) - done.new} of them were there already"
    say(line)
    return done.files


def read_fetched(paths: Paths, of: str) -> Fetched | None:
    """fetched.json of an earlier run for the same contest or data set; None where there is none, or
    it is damaged."""
    try:
        found = Fetched.model_validate_json(paths.fetched.read_bytes())
    except (OSError, ValueError):
        return None
    return found if of in (found.competition, found.dataset) else None


def _is_up_to_date(before: Fetched, download: Download, folder: Path) -> bool:
    intact = all(
        (folder / name).is_file() and (folder / name).stat().st_size == record.bytes
        for name, record in before.files.items()
    )
    return intact and bool(download.mark.identity) and before.archive == download.mark


def _check_room(
    offered: dict[str, int | None], download: Download, part: PartialDownload, folder: Path
) -> None:
    """Raises InputError where the disk has no room for the download and its files."""
    total = download.mark.bytes
    if offered:
        unpacked = size(sum(filter(None, offered.values())))
        say(f"  {len(offered)} files, {unpacked}; the download is {size(total)}")
    absent = sum(count or 0 for name, count in offered.items() if not (folder / name).is_file())
    needed, free = (total or 0) - part.size + absent, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"not enough room on the disk: {size(needed)} are needed and {size(free)} are free",
            folder,
            "Free some space, or name another folder with --data",
            code="disk_full",
        )


def unpack_download(part: PartialDownload, name: str, folder: Path) -> Unpacked:
    """Unpack what has arrived; a file that is not a zip is moved as it is."""
    if not zipfile.is_zipfile(part.file):
        name = re.sub(r"[^\w. -]", "_", name).lstrip(".") or "file"
        if name.lower().endswith(".zip"):
            raise part.discard(f"{name} is not a zip")
        done = Unpacked(folder, 0, files={name: FileRecord.of(part.file)}, new=1)
        part.file.replace(folder / name)
        return done
    present = sum(
        f.stat().st_size for f in folder.rglob("*") if f.is_file() and part.home not in f.parents
    )
    most = min(MOST, shutil.disk_usage(folder).free + present)
    try:
        with zipfile.ZipFile(part.file) as archive:
            total = sum(info.file_size for info in archive.infolist())
        with Meter("unpack", total) as meter:
            return unpack(part.file, folder, most, meter.add)
    except (Damaged, zipfile.BadZipFile) as damaged:
        raise part.discard(str(damaged)) from None


# ------------------------------------------------------------------------------------- at the end


def report_sample(names: Iterable[str], config: Config, paths: Paths) -> list[str]:
    """Say where the sample submission is; the words of a command line that name it."""
    from src.submission.sample import sample_file

    sample = sample_file(config.competition, paths.data)
    if sample.is_file():
        say(f"  the sample submission is {sample.relative_to(paths.data)}")
        return []
    pattern = r"(?i).*(sample.*subm|subm.*sample).*\.(csv|tsv|txt|zip)"
    alike = sorted(name for name in names if re.fullmatch(pattern, name))
    if not alike:
        say(
            "  there is no sample submission (data.sample_submission names one that is "
            "called otherwise): everything but the submission works"
        )
        return []
    words = ["--set", f"data.sample_submission={alike[0]}"]
    say(
        f"  the sample submission seems to be {' or '.join(alike)}: name it by "
        f"data.sample_submission in competition.yaml, or by {' '.join(words)}"
    )
    return words


def report_images(config: Config, paths: Paths, extra: list[str]) -> None:
    """Say whether the pipeline understands the files, and the next command."""
    from src.data import dataset
    from src.data.problems import Problems
    from src.submission.order import sample_order

    problems, understood = Problems(), False
    try:
        items = dataset.find(paths.data, config.competition, problems, sample_order)
        train = sum(i.part == "train" for i in items)
        hint = ": data.train, or data.table, in competition.yaml says where they are"
        say(
            f"  the pipeline sees {train} train and {len(items) - train} test images"
            f"{'' if train else hint}"
        )
        for line in problems.lines():
            say(f"  {line[:300]}")
        understood = bool(train) and not problems
    except InputError as error:
        say(f"  the pipeline does not understand the folder yet: {error}")
    if "--data" in console.REPEATED:
        console.REPEATED[console.REPEATED.index("--data") + 1] = short(paths.data)
    elif not _is_found_by_itself(config, paths):
        extra = ["--data", short(paths.data), *extra]
    line = f"{'next' if understood else 'next, when that is settled'}: {command(*extra)}"
    if "--config" not in console.REPEATED:
        line += "   (without a GPU: with --config configs/cpu.yaml)"
    say(line)


def _is_found_by_itself(config: Config, paths: Paths) -> bool:
    try:
        return contest_folder(config.competition.slug) == paths.data
    except InputError:
        return False
