"""Is an artifact up to date? A finished stage leaves a record: the keys and inputs that it read, what it wrote, when, with which versions.

Up to date = the record's keys and input fingerprints are today's, and every output is there in its full length. Decided without importing torch.
"""
from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Iterator

from src.core.console import InputError, short
from src.core.paths import ROOT, Paths

LIBRARIES = ["torch", "segmentation-models-pytorch", "timm", "albumentations", "numpy", "opencv-python-headless", "scikit-learn"]


@dataclass(frozen=True)
class State:
    """kind: done, missing, partial (begun, goes on), stale (a key or an input changed) or damaged (an output is gone or cut short)."""

    kind: str
    why: str = ""

    @property
    def done(self) -> bool:
        return self.kind == "done"


@dataclass(eq=False)  # by identity: a plan compares thousands of them
class Job:
    """One unit of work: a stage for one experiment, ensemble or fold."""

    stage: str
    name: str
    paths: Paths
    record_file: Path
    keys: dict[str, Any]
    inputs: dict[str, Path | str]  # a file, or an already computed digest ('' = not there yet)
    outputs: list[Path]
    made_by: dict[str, str] = field(default_factory=dict)  # input -> the stage that makes it, where that is not obvious
    sources: list[str] = field(default_factory=list)
    editable: list[Path] = field(default_factory=list)  # outputs that users may edit: only their presence is checked
    fold: int | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return " ".join(w for w in (self.stage, self.name, f"fold {self.fold}" if self.fold is not None else "") if w)

    def record(self) -> dict | None:
        try:
            record = json.loads(self.record_file.read_text(encoding="utf-8"))
            return record if isinstance(record.get("keys"), dict) and isinstance(record.get("inputs"), dict) else None
        except (OSError, ValueError, AttributeError):
            return None

    def state(self) -> State:
        record = self.record()
        if record is None:
            return State("missing")
        if why := self.changed(record):
            return State("stale", why)
        if not record.get("ended"):
            return State("partial")
        for path in self.outputs:
            if not path.is_file():
                return State("damaged", f"{short(path)} is gone")
            if path not in self.editable and path.stat().st_size != record.get("outputs", {}).get(path.name):
                return State("damaged", f"{short(path)} is not as it was written")
        return State("done")

    def changed(self, record: dict) -> str:
        """Which key or input differs from the record, in words; '' where none does."""
        then, now = record["keys"], json.loads(json.dumps(self.keys))
        for key in sorted({*then, *now}):
            if then.get(key) != now.get(key):
                return f"{key} changed from {then.get(key, 'unset')} to {now.get(key, 'unset')}"
        for name in sorted({*record["inputs"], *self.inputs}):
            if record["inputs"].get(name) != self.fingerprint(name):
                return f"{name} changed" if name in record["inputs"] else f"{name} is new"
        return ""

    def fingerprint(self, name: str) -> str:
        value = self.inputs.get(name, "")
        return fingerprint(value, self.paths) if isinstance(value, Path) else value

    def missing_input(self) -> str:
        """The name of the first input that is not there; '' where all are."""
        return next((n for n, v in self.inputs.items() if not (v.is_file() if isinstance(v, Path) else v)), "")

    def makers(self, jobs: list["Job"]) -> list["Job"]:
        """Those of `jobs` whose outputs this one reads; a digest in place of a file is of the index."""
        read = {v for v in self.inputs.values() if isinstance(v, Path)}
        from_index = any(not isinstance(v, Path) and self.made_by.get(n) == "prepare" for n, v in self.inputs.items())
        return [j for j in jobs if j is not self and (read & set(j.outputs) or from_index and j.outputs[0].name == self.paths.index.name)]

    def changed_sources(self) -> list[str]:
        """Which source files changed since this was made: a warning, not a reason to redo."""
        then = (self.record() or {}).get("sources", {})
        return [s for s, digest in self._sources().items() if s in then and then[s] != digest]

    def _sources(self) -> dict[str, str]:
        return {s: _digest_file(ROOT / s) for s in self.sources if (ROOT / s).is_file()}

    @contextmanager
    def running(self, facts: dict[str, Any], force: bool = False) -> Iterator[None]:
        """Around the work: sets aside what no longer fits, notes the start, and on success writes the record with `facts` (filled by the work)."""
        state, moved = self.state(), {}
        if force or state.kind in ("stale", "missing"):
            moved = self.set_aside()
        elif state.kind == "damaged":
            sizes = (self.record() or {}).get("outputs", {})
            for path in self.outputs:  # cut short or overwritten: no work may go on from it
                if path.is_file() and path not in self.editable and path.stat().st_size != sizes.get(path.name):
                    retire(path, self.paths)
        begun = {"stage": self.stage, "keys": self.keys, "inputs": {n: self.fingerprint(n) for n in self.inputs}, "started": _now(), "ended": None}
        # the outputs of a stage that goes on by itself (train, predict) stay valid while keys and inputs do
        write_json(self.record_file, begun)
        started = time.time()
        try:
            yield
        except BaseException:
            if moved and not any(path.exists() for path in (*self.outputs, *self.details.get("extras", []))):  # nothing came of it: a typo must not cost hours of training
                for path, kept in moved.items():
                    shutil.move(kept, path)
            raise
        outputs = {path.name: path.stat().st_size for path in self.outputs}
        record = begun | {"ended": _now(), "seconds": round(time.time() - started, 1), "outputs": outputs}
        write_json(self.record_file, record | {"versions": _versions(), "sources": self._sources()} | facts)
        Fingerprints.of(self.paths).save()

    def set_aside(self) -> dict[Path, Path]:
        """Move this job's outputs, if any, to artifacts/old/<time>/; returns where each went."""
        there = [p for p in (*self.outputs, *self.details.get("extras", []), self.record_file) if p.exists()]
        if not any(p in there for p in self.outputs):  # parts of something never finished are worth nothing under other settings
            for path in there:
                path.unlink()
            return {}
        attic = self.paths.old / time.strftime("%Y%m%d-%H%M%S")
        moved = {path: attic / os.path.relpath(path, self.paths.work) for path in there}
        for path, target in moved.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
        return moved


def retire(path: Path, paths: Paths) -> None:
    """Move a file to artifacts/old/<time>/."""
    target = paths.old / time.strftime("%Y%m%d-%H%M%S") / os.path.relpath(path, paths.work)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)


class Fingerprints:
    """Content digests of files, remembered by path, size and time, so that a second look costs a stat."""

    _loaded: dict[Path, "Fingerprints"] = {}

    def __init__(self, file: Path):
        self.file, self.dirty = file, False
        try:
            self.known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}

    @classmethod
    def of(cls, paths: Paths) -> "Fingerprints":
        if paths.fingerprints not in cls._loaded:
            cls._loaded[paths.fingerprints] = cls(paths.fingerprints)
        return cls._loaded[paths.fingerprints]

    def get(self, path: Path) -> str:
        stat = path.stat()
        key, mark = os.path.abspath(path), [stat.st_size, stat.st_mtime_ns]
        if self.known.get(key, [None, None])[:2] != mark:
            self.known[key] = [*mark, _digest_file(path)]
            self.dirty = True
        return self.known[key][2]

    def save(self) -> None:
        if self.dirty and self.file.parent.is_dir():
            try:  # only a memory: folds trained side by side may write it at the same time
                temporary = self.file.with_name(f".{os.getpid()}.{self.file.name}")
                temporary.write_text(json.dumps(self.known), encoding="utf-8")
                os.replace(temporary, self.file)
                self.dirty = False
            except OSError:
                pass


def fingerprint(path: Path, paths: Paths) -> str:
    """A digest of a file's content; '' where it is not there."""
    return Fingerprints.of(paths).get(path) if path.is_file() else ""


def folder_fingerprint(files: list[Path], home: Path, paths: Paths) -> str:
    """A digest of the names and contents of files below `home`; '' for none."""
    if not files:
        return ""
    known = Fingerprints.of(paths)
    return _digest("\n".join(f"{os.path.relpath(f, home)} {known.get(f)}" for f in sorted(files)).encode())


def rows_fingerprint(index: Path, part: str) -> str:
    """A digest of the index's train or test rows, paths left out; '' where there are none."""
    try:
        stat = index.stat()
    except OSError:
        return ""
    return _rows_digest(index, part, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _rows_digest(index: Path, part: str, *stat) -> str:
    rows = [[v for k, v in row.items() if k != "image"] for row in _rows(index, *stat) if row["set"] == part]
    return _digest(json.dumps(rows).encode()) if rows else ""


@functools.lru_cache(maxsize=4)
def _rows(index: Path, *_) -> list[dict[str, str]]:
    """Size and time make a changed file another question: a plan asks dozens of times."""
    try:
        with open(index, newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        return rows if all({"id", "set"} <= row.keys() for row in rows) else []
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def index_ids(index: Path, part: str) -> list[str]:
    """The ids of the index's train or test rows; none where there is no index yet."""
    try:
        stat = index.stat()
    except OSError:
        return []
    return [row["id"] for row in _rows(index, stat.st_size, stat.st_mtime_ns) if row["set"] == part]


def write_json(path: Path, content: Any) -> None:
    """Written whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path given; it takes the place of `path` at the end, so that a half-written file is never taken for done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")  # one fixed name: a killed run leaves no heap of them
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno == 28:
            raise InputError("the disk is full", short(path), "Free some space or point --work elsewhere, then run the same command again") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """A JSON file that a stage (or a user) wrote; raises InputError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"not readable as JSON: {error}", short(path)) from None


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            pass
    return found


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _digest_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12)).hexdigest() if hasattr(hashlib, "file_digest") else _digest(file.read())


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S")
