"""Is an artifact up to date? A finished stage leaves a record: the settings and inputs that it
read, what it wrote, when, and with which versions of the libraries.

Up to date means: settings and inputs are still those of the record, and every output is there as
it was written. This is decided without importing torch.
"""

from __future__ import annotations

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

from src.core.console import InputError, StageError, Stopped, command, say, short
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
from src.core.settings import NEVER_STALE, RENAMED, Competition, Ensemble, Experiment

LIBRARIES = ["torch", "segmentation-models-pytorch", "timm", "albumentations", "numpy"]
LIBRARIES += ["opencv-python-headless", "scikit-learn"]
TIME = "%Y-%m-%dT%H:%M:%S"
FORCED = "--force asked for it to be redone"


@dataclass(frozen=True)
class Input:
    """Something that a job reads. `name`: its key in the record; it never changes, or finished
    work would go stale.
    `made_by`: the words of the command that makes it; '' where the user provides it.
    `digest`: where only some of `file` matters, a digest of that ('' until it exists).
    """

    name: str
    file: Path
    made_by: str = ""
    digest: str | None = None

    def exists(self) -> bool:
        return self.file.is_file() if self.digest is None else self.digest != ""


@dataclass(frozen=True)
class State:
    """`kind`: done, missing, begun (can be resumed), stale (a setting or an input changed,
    or --force) or damaged (an output is gone, or not as it was written)."""

    kind: str
    why: str = ""

    @property
    def done(self) -> bool:
        return self.kind == "done"


@dataclass(eq=False)  # by identity: a plan compares thousands of them
class Job:
    """One unit of work: a stage for one experiment, ensemble or fold.

    `keys`: the settings that count, with their values. `extras`: further files, set aside with the
    outputs. `editable`: outputs that users may edit: only their presence is checked. `also_reads`:
    files that are made together with one of the inputs. `sources`: its code, below src/ and
    without .py. `folds_left`: how many folds this run has to train, this one counted.
    """

    stage: str
    name: str
    paths: Paths
    keys: dict[str, Any]
    inputs: list[Input]
    outputs: list[Path]
    fold: int | None = None
    extras: list[Path] = field(default_factory=list)
    editable: list[Path] = field(default_factory=list)
    also_reads: list[Path] = field(default_factory=list)
    sources: str = ""
    experiment: Experiment | None = None
    folds_left: int = 1

    @property
    def title(self) -> str:
        fold = f"fold {self.fold}" if self.fold is not None else ""
        return " ".join(filter(None, (self.stage, self.name, fold)))

    @property
    def reads(self) -> list[Path]:
        """The files of all inputs, each once."""
        return list(dict.fromkeys([i.file for i in self.inputs] + self.also_reads))

    @property
    def record_file(self) -> Path:
        return self.paths.record(self.stage, self.name, self.fold)

    @property
    def lock(self) -> Lock:
        """Held around what this job writes."""
        return Lock.of(self.paths.lock(self.stage, self.name, self.fold), self.title)

    def record(self) -> dict | None:
        """What the last run of this job left; None where there is nothing readable."""
        try:
            record = read_json(self.record_file)
        except (OSError, InputError):
            return None
        sections = [record.get(name, {}) for name in ("keys", "inputs", "outputs", "digests")]
        is_complete = (
            {"keys", "inputs"} <= record.keys()
            and all(isinstance(section, dict) for section in sections)
            and isinstance(record.get("seconds", 0), (int, float))
        )
        if not is_complete:
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
            return State("begun")
        for path in self.outputs:
            if not path.is_file():
                return State("damaged", f"{short(path)} is gone")
            if not self._is_as_written(path, record):
                return State("damaged", f"{short(path)} is not as it was written")
        return State("done")

    def require(self, who: str, verify: bool = False) -> None:
        """Raises InputError, with the command that makes it, unless this is done. `who` needs it;
        `verify`: its outputs are read in full, whatever their modification times."""
        if verify and self.state().done:
            self.verify(self.outputs)
        state = self.state()
        if state.done:
            return
        unfinished = state.kind in ("begun", "missing")
        how = "is not finished" if unfinished else f"is {state.kind}: {state.why}"
        words = [self.stage] if self.fold is None else [self.stage, "--fold", str(self.fold)]
        todo = f"Make it with {command(*words)}"
        what = f"{who} rests on {self.title}, and that {how}"
        raise InputError(what, "", todo, code="not_finished")

    def announce(self) -> None:
        """Say why an earlier result is made again."""
        state = self.state()
        if state.kind in ("stale", "damaged"):
            kept = "; the old result moves to artifacts/old/" if state.kind == "stale" else ""
            say(f"{self.title}: {state.why}{kept}")

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
        modification times; False where one is not as it was written. `state` then says so, too."""
        digests = (self.record() or {}).get("digests", {})
        known = Fingerprints.of(self.paths)
        read = [p for p in paths if p in self.outputs and p not in self.editable and p.is_file()]
        intact = all(known.get(p, again=True) == digests.get(p.name, known.get(p)) for p in read)
        if not intact:
            known.save()  # so that the next command, which is to repair it, knows it too
        return intact

    def changed(self, record: dict) -> str:
        """Which setting or input differs from the record, in words; ''. A setting that an earlier
        or later version of the program does not have counts as unchanged."""
        then, now = record["keys"], json.loads(json.dumps(self.keys))
        for key in sorted({*then, *now}):
            added = key not in then and key in defaults() and now[key] == defaults()[key]
            removed = "." in key and "[" not in key and key not in defaults()
            dropped = key not in now and (removed or key in NEVER_STALE)
            if not added and not dropped and then.get(key) != now.get(key):
                return f"{key} changed from {then.get(key, 'unset')} to {now.get(key, 'unset')}"
        then, now = record["inputs"], self.fingerprints()
        for name in sorted({*then, *now}):
            if then.get(name) != now.get(name, ""):
                return f"{name} changed" if name in then else f"{name} is new"
        return ""

    def fingerprints(self) -> dict[str, str]:
        """Of every input, by name; '' where it is not there."""
        return {
            i.name: fingerprint(i.file, self.paths) if i.digest is None else i.digest
            for i in self.inputs
        }

    def makers(self, jobs: list[Job]) -> list[Job]:
        """Those of `jobs` whose outputs this one reads. All of prepare is made in one pass."""
        if self.stage == "prepare":
            return []
        read = {i.file for i in self.inputs}
        return [j for j in jobs if not read.isdisjoint(j.outputs)]

    def changed_sources(self) -> list[str]:
        """Which source files changed since this was made: a warning, not a reason to redo."""
        then = (self.record() or {}).get("sources", {})
        return [s for s, digest in self._sources().items() if s in then and then[s] != digest]

    def _sources(self) -> dict[str, str]:
        names = [f"src/{source}.py" for source in self.sources.split()]
        return {name: _digest_file(ROOT / name) for name in names if (ROOT / name).is_file()}

    def redo(self) -> None:
        """--force: note in the record that this is to be redone, so that a stopped run goes on
        with what is left. What another run is working on is being redone anyway."""
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
            moved = self._make_room()
            begun = {
                "stage": self.stage,
                "keys": self.keys,
                "inputs": self.fingerprints(),
                "started": time.strftime(TIME),
                "ended": None,
            }
            # a stage that resumes by itself (train, predict) finds its outputs still valid
            write_json(self.record_file, begun)
            started = time.time()
            try:
                yield
            except BaseException as error:
                self._put_back(moved, error)
                raise
            known = Fingerprints.of(self.paths)
            record = begun | {
                "ended": time.strftime(TIME),
                "seconds": round(time.time() - started, 1),
                "outputs": {path.name: path.stat().st_size for path in self.outputs},
                "digests": {path.name: known.get(path) for path in self.outputs},
                "versions": versions(),
                "sources": self._sources(),
            }
            write_json(self.record_file, record | facts)
            known.save()

    def _make_room(self) -> dict[Path, Path]:
        """Set aside what no longer fits; returns what went where, to be put back if the work
        comes to nothing."""
        state = self.state()
        if state.kind in ("stale", "missing"):
            return self._set_aside()
        if state.kind == "damaged":  # no work may be resumed from it
            record = self.record() or {}
            there = [p for p in self.outputs if p.is_file()]
            retire([p for p in there if not self._is_as_written(p, record)], self.paths)
        return {}

    def _set_aside(self) -> dict[Path, Path]:
        """Move this job's outputs, if any, to artifacts/old/<time>/; returns where each went."""
        there = [p for p in (*self.outputs, *self.extras, self.record_file) if p.exists()]
        if not set(there).isdisjoint(self.outputs):
            return retire(there, self.paths)
        for path in there:  # of something never finished: useless under other settings
            remove(path)
        return {}

    def _put_back(self, moved: dict[Path, Path], error: BaseException) -> None:
        """The work came to nothing: a typo must not cost hours of training. Where it was stopped,
        or refused by the machine, what --force asked for is still to be done."""
        if not moved or any(path.exists() for path in (*self.outputs, *self.extras)):
            return
        stopped = not isinstance(error, Exception) or isinstance(error, (Stopped, OSError))
        may_be_repeated = stopped or getattr(error, "code", "") in OF_THE_SYSTEM
        with suppress(OSError, InputError, StageError):  # the reason of the failure is what counts
            for path, kept in moved.items():
                move(kept, path)
            record = self.record()
            if record is not None and not may_be_repeated and record.pop("redo", None):
                write_json(self.record_file, record)


@functools.cache
def defaults() -> dict[str, Any]:
    """Every setting's default, as a record has it: {'train.epochs': 40, …}."""
    flat: dict[str, Any] = {}
    models = [("", Competition), ("", Ensemble), ("", Experiment)]
    for prefix, model in models:  # sections are added on the way
        for name, info in model.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                models.append((f"{prefix}{name}.", info.annotation))
            elif not info.is_required():
                flat[prefix + name] = info.get_default(call_default_factory=True)
    return json.loads(json.dumps(flat))


def retire(files: list[Path], paths: Paths) -> dict[Path, Path]:
    """Move files to artifacts/old/<time>/; returns where each went."""
    if not files:
        return {}
    attic = new_folder(paths.old, time.strftime("%Y%m%d-%H%M%S"))
    moved = {path: attic / os.path.relpath(path, paths.work) for path in files}
    for path, target in moved.items():
        move(path, target)
    return moved


class Fingerprints:
    """Content digests of files, remembered by path, size and time: a second look costs a stat."""

    _loaded: dict[Path, Fingerprints] = {}

    def __init__(self, file: Path):
        self.file, self.dirty = file, False
        self.read: set[tuple[str, int, int]] = set()  # what this run has read in full
        self.known: dict[str, list] = {}  # path -> [size, time, digest]
        remove_leftovers(file)  # it may not be written again for long
        with suppress(OSError, InputError):  # only a cache: what is not understood is read again
            for path, entry in read_json(file).items():
                if isinstance(entry, list) and [type(v) for v in entry] == [int, int, str]:
                    self.known[path] = entry

    @classmethod
    def of(cls, paths: Paths) -> Fingerprints:
        if paths.fingerprints not in cls._loaded:
            cls._loaded[paths.fingerprints] = cls(paths.fingerprints)
        return cls._loaded[paths.fingerprints]

    def get(self, path: Path, again: bool = False) -> str:
        """The digest of a file's content. `again`: read in this run, whatever its modification
        time, since a disk may change bytes and no time."""
        stat = path.stat()
        mark = os.path.abspath(path), stat.st_size, stat.st_mtime_ns
        name, *now = mark
        if self.known.get(name, [])[:2] != now or again and mark not in self.read:
            self.known[name] = [*now, _digest_file(path)]
            self.read.add(mark)
            self.dirty = True
        return self.known[name][2]

    def save(self) -> None:
        if self.dirty and self.file.parent.is_dir():
            with suppress(OSError, InputError, StageError):  # only a cache
                write_json(self.file, self.known)
                self.dirty = False


def fingerprint(path: Path, paths: Paths) -> str:
    """A digest of a file's content; '' where it is not there."""
    return Fingerprints.of(paths).get(path) if path.is_file() else ""


def versions() -> dict[str, str]:
    installed = {}
    for library in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            installed[library] = metadata.version(library)
    return installed


def digest(data: bytes) -> str:
    """12 bytes of BLAKE2, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _digest_file(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=12)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
