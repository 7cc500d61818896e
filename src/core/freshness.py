"""Is an artifact up to date? A finished stage leaves a record: the keys and inputs that it read, what it wrote, when, with which versions.

Up to date = the record's keys and input fingerprints are today's, and every output is there as it was written. Decided without importing torch.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from src.core.console import InputError, StageError, Stopped, command, listing, short
from src.core.disk import (
    OF_THE_SYSTEM,
    move,
    new_folder,
    read_json,
    remove,
    remove_leftovers,
    write_json,
)
from src.core.locks import Lock
from src.core.paths import ROOT, Paths
from src.core.settings import RENAMED, Competition, Ensemble, Experiment

LIBRARIES = [
    "torch",
    "segmentation-models-pytorch",
    "timm",
    "albumentations",
    "numpy",
    "opencv-python-headless",
    "scikit-learn",
]
FORCED = "--force asked for it to be done anew"


@dataclass(frozen=True)
class State:
    """kind: done, missing, partial (begun, goes on), stale (a key or an input changed, or --force)
    or damaged (an output is gone, or not as it was written)."""

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
    made_by: dict[str, str] = field(
        default_factory=dict
    )  # input -> the stage that makes it, where that is not obvious
    sources: list[str] = field(default_factory=list)
    editable: list[Path] = field(
        default_factory=list
    )  # outputs that users may edit: only their presence is checked
    fold: int | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return " ".join(
            w
            for w in (self.stage, self.name, f"fold {self.fold}" if self.fold is not None else "")
            if w
        )

    @property
    def lock(self) -> Lock:
        """Held around what this job writes."""
        return Lock.of(self.paths.lock(self.stage, self.name, self.fold), self.title)

    def record(self) -> dict | None:
        """What the last run of this job left; None where there is nothing that can be read."""
        try:
            record = read_json(self.record_file)
        except (OSError, InputError):
            return None
        parts = (record.get(name, {}) for name in ("keys", "inputs", "outputs", "digests"))
        whole = {"keys", "inputs"} <= record.keys() and all(isinstance(p, dict) for p in parts)
        whole = whole and isinstance(record.get("seconds", 0), (int, float))
        if not whole:
            return None
        return record | {"keys": {RENAMED.get(k, k): v for k, v in record["keys"].items()}}

    def state(self) -> State:
        record = self.record()
        if record is None:
            return State("missing")
        if record.get("redo"):
            return State("stale", FORCED)
        if why := self.changed(record):
            return State("stale", why)
        if not record.get("ended"):
            return State("partial")
        for path in self.outputs:
            if not path.is_file():
                return State("damaged", f"{short(path)} is gone")
            if not self._is_as_written(path, record):
                return State("damaged", f"{short(path)} is not as it was written")
        return State("done")

    def require(self, who: str, verify: bool = False) -> None:
        """Raises InputError, with the command that makes it, unless this is done. `who` needs it;
        `verify`: its outputs are read in full, whatever their times say."""
        state = self.state()
        if state.done and verify and not self.verify(self.outputs):
            state = self.state()
        if not state.done:
            waits = state.kind in ("partial", "missing")
            how = "is not finished" if waits else f"is {state.kind}: {state.why}"
            words = [self.stage, *(["--fold", str(self.fold)] if self.fold is not None else [])]
            todo = f"Make it with {command(*words)}"
            what = f"{who} rests on {self.title}, and that {how}"
            raise InputError(what, "", todo, code="not_finished")

    def _is_as_written(self, path: Path, record: dict) -> bool:
        """By its length, and by its content where that may have changed since the last look."""
        if path in self.editable:
            return True
        if path.stat().st_size != record.get("outputs", {}).get(path.name):
            return False
        digest = record.get("digests", {}).get(path.name)  # absent from older records
        return digest is None or digest == fingerprint(path, self.paths)

    def verify(self, paths: list[Path]) -> bool:
        """Read those of `paths` that are outputs of this job, once in each run and whatever their
        times say; False where one is not as it was written. `state` then says so, too."""
        digests = (self.record() or {}).get("digests", {})
        known = Fingerprints.of(self.paths)
        read = [p for p in paths if p in self.outputs and p not in self.editable and p.is_file()]
        whole = all(known.verified(p) == digests.get(p.name, known.get(p)) for p in read)
        if not whole:
            known.save()  # so that the next command, which is to mend it, knows it too
        return whole

    def changed(self, record: dict) -> str:
        """Which key or input differs from the record, in words; '' where none does. A key that the
        record does not have, since that setting came later, counts as its default."""
        then, now = record["keys"], json.loads(json.dumps(self.keys))
        for key in sorted({*then, *now}):
            if key not in then and key in defaults() and now[key] == defaults()[key]:
                continue
            if then.get(key) != now.get(key):
                return f"{key} changed from {then.get(key, 'unset')} to {now.get(key, 'unset')}"
        for name in sorted({*record["inputs"], *self.inputs}):
            if record["inputs"].get(name) != self.fingerprint(name):
                return f"{name} changed" if name in record["inputs"] else f"{name} is new"
        return ""

    def fingerprint(self, name: str) -> str:
        value = self.inputs.get(name, "")
        return fingerprint(value, self.paths) if isinstance(value, Path) else value

    def missing_inputs(self) -> list[str]:
        """The names of the inputs that are not there."""
        return [
            n for n, v in self.inputs.items() if not (v.is_file() if isinstance(v, Path) else v)
        ]

    def makers(self, jobs: list[Job]) -> list[Job]:
        """Those of `jobs` whose outputs this one reads; a digest in place of a file is of the index."""
        read = {v for v in self.inputs.values() if isinstance(v, Path)}
        from_index = any(
            not isinstance(v, Path) and self.made_by.get(n) == "prepare"
            for n, v in self.inputs.items()
        )
        return [
            j
            for j in jobs
            if j is not self
            and (read & set(j.outputs) or from_index and j.outputs[0].name == self.paths.index.name)
        ]

    def changed_sources(self) -> list[str]:
        """Which source files changed since this was made: a warning, not a reason to redo."""
        then = (self.record() or {}).get("sources", {})
        return [s for s, digest in self._sources().items() if s in then and then[s] != digest]

    def _sources(self) -> dict[str, str]:
        return {s: _digest_file(ROOT / s) for s in self.sources if (ROOT / s).is_file()}

    def redo(self) -> None:
        """--force: note in the record that this is to be done anew, so that a run that is stopped
        goes on with what is left, without --force. What another run is at is just being done."""
        if not self.lock.acquire():
            return
        try:
            record = self.record()
            if record is not None:
                write_json(self.record_file, record | {"redo": True})
        finally:
            self.lock.release()

    @contextmanager
    def running(self, facts: dict[str, Any]) -> Iterator[None]:
        """Around the work, under the job's lock: sets aside what no longer fits, notes the start,
        and on success writes the record with `facts` (filled by the work)."""
        with self.lock.held():
            moved = self._clear_the_place()
            begun = {
                "stage": self.stage,
                "keys": self.keys,
                "inputs": {n: self.fingerprint(n) for n in self.inputs},
                "started": _now(),
                "ended": None,
            }
            # the outputs of a stage that goes on by itself (train, predict) stay valid while keys and inputs do
            write_json(self.record_file, begun)
            started = time.time()
            try:
                yield
            except BaseException as error:
                self._put_back(moved, may_be_repeated(error))
                raise
            known = Fingerprints.of(self.paths)
            outputs = {path.name: path.stat().st_size for path in self.outputs}
            digests = {path.name: known.get(path) for path in self.outputs}
            record = begun | {
                "ended": _now(),
                "seconds": round(time.time() - started, 1),
                "outputs": outputs,
                "digests": digests,
            }
            write_json(
                self.record_file,
                record | {"versions": _versions(), "sources": self._sources()} | facts,
            )
            known.save()

    def _clear_the_place(self) -> dict[Path, Path]:
        """Set aside what no longer fits; returns what went where, to be put back if nothing comes of the work."""
        state = self.state()
        if state.kind in ("stale", "missing"):
            return self.set_aside()
        if state.kind == "damaged":  # no work may go on from it
            record = self.record() or {}
            for path in self.outputs:
                if path.is_file() and not self._is_as_written(path, record):
                    retire(path, self.paths)
        return {}

    def _put_back(self, moved: dict[Path, Path], keep_wish: bool) -> None:
        """Nothing came of it: a typo must not cost hours of training. `keep_wish`: what --force
        asked for is still to be done."""
        if moved and not any(
            path.exists() for path in (*self.outputs, *self.details.get("extras", []))
        ):
            with suppress(
                OSError, InputError, StageError
            ):  # why it failed is said, whatever becomes of this
                for path, kept in moved.items():
                    move(kept, path)
                record = self.record()
                if record is not None and not keep_wish and record.pop("redo", None):
                    write_json(self.record_file, record)

    def set_aside(self) -> dict[Path, Path]:
        """Move this job's outputs, if any, to artifacts/old/<time>/; returns where each went."""
        there = [
            p
            for p in (*self.outputs, *self.details.get("extras", []), self.record_file)
            if p.exists()
        ]
        if not any(
            p in there for p in self.outputs
        ):  # parts of something never finished are worth nothing under other settings
            for path in there:
                remove(path)
            return {}
        attic = new_folder(self.paths.old, time.strftime("%Y%m%d-%H%M%S"))
        moved = {path: attic / os.path.relpath(path, self.paths.work) for path in there}
        for path, target in moved.items():
            move(path, target)
        return moved


def may_be_repeated(error: BaseException) -> bool:
    """Was the work stopped, or refused by the machine, rather than wrong?"""
    stopped = not isinstance(error, Exception) or isinstance(error, Stopped)
    return stopped or isinstance(error, OSError) or getattr(error, "code", "") in OF_THE_SYSTEM


@functools.cache
def defaults() -> dict[str, Any]:
    """Every setting's default, as a record has it: {'train.epochs': 40, …}."""
    flat: dict[str, Any] = {}
    for model in (Competition, Ensemble, Experiment):
        _collect_defaults(model, "", flat)
    return json.loads(json.dumps(flat))


def _collect_defaults(model: type[BaseModel], prefix: str, flat: dict[str, Any]) -> None:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            _collect_defaults(info.annotation, f"{prefix}{name}.", flat)
        elif not info.is_required():
            flat[prefix + name] = info.get_default(call_default_factory=True)


def retire(path: Path, paths: Paths) -> None:
    """Move a file to artifacts/old/<time>/."""
    attic = new_folder(paths.old, time.strftime("%Y%m%d-%H%M%S"))
    move(path, attic / os.path.relpath(path, paths.work))


class Fingerprints:
    """Content digests of files, remembered by path, size and time, so that a second look costs a stat."""

    _loaded: dict[Path, Fingerprints] = {}

    def __init__(self, file: Path):
        self.file, self.dirty = file, False
        self.read: set[tuple[str, int, int]] = set()  # what this run has read in full
        self.known: dict[str, list] = {}
        remove_leftovers(file)  # it may not be written again for long
        with suppress(OSError, InputError):  # only a memory: what is not understood is read again
            self.known = {k: v for k, v in read_json(file).items() if _is_mark(v)}

    @classmethod
    def of(cls, paths: Paths) -> Fingerprints:
        if paths.fingerprints not in cls._loaded:
            cls._loaded[paths.fingerprints] = cls(paths.fingerprints)
        return cls._loaded[paths.fingerprints]

    def get(self, path: Path) -> str:
        key, size, when = _mark(path)
        if self.known.get(key, [None, None])[:2] != [size, when]:
            self.known[key] = [size, when, _digest_file(path)]
            self.read.add((key, size, when))
            self.dirty = True
        return self.known[key][2]

    def verified(self, path: Path) -> str:
        """The same, read in this run: a disk may change bytes and no time."""
        key, size, when = _mark(path)
        if (key, size, when) not in self.read:
            self.known.pop(key, None)
        return self.get(path)

    def save(self) -> None:
        if self.dirty and self.file.parent.is_dir():
            with suppress(OSError, InputError, StageError):  # only a memory
                write_json(self.file, self.known)
                self.dirty = False


def _mark(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return os.path.abspath(path), stat.st_size, stat.st_mtime_ns


def _is_mark(value: Any) -> bool:
    return isinstance(value, list) and [type(v) for v in value] == [int, int, str]


def fingerprint(path: Path, paths: Paths) -> str:
    """A digest of a file's content; '' where it is not there."""
    return Fingerprints.of(paths).get(path) if path.is_file() else ""


def folder_fingerprint(files: list[Path], home: Path, paths: Paths) -> str:
    """A digest of the names and contents of files below `home`; '' for none."""
    if not files:
        return ""
    known, lines, unreadable = Fingerprints.of(paths), [], []
    for file in sorted(files):
        name = os.path.relpath(file, home)
        try:
            lines.append(f"{name} {known.get(file)}")
        except PermissionError:
            unreadable.append(name)
    if unreadable:
        todo = f"Give yourself the right to read them: chmod -R u+rX {short(home)}"
        what = f"no permission to read {listing(unreadable)}"
        raise InputError(what, short(home), todo, code="unreadable_file")
    return _digest("\n".join(lines).encode(errors="surrogateescape"))


def rows_fingerprint(index: Path, part: str) -> str:
    """A digest of the index's train or test rows, paths left out; '' where there are none."""
    try:
        stat = index.stat()
    except OSError:
        return ""
    return _rows_digest(index, part, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _rows_digest(index: Path, part: str, *stat) -> str:
    rows = [
        [v for k, v in row.items() if k != "image"]
        for row in _rows(index, *stat)
        if row["set"] == part
    ]
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
        return (
            hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12)).hexdigest()
            if hasattr(hashlib, "file_digest")
            else _digest(file.read())
        )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S")
