"""Folds side by side: one process for each GPU, or for each of --parallel N; whichever is free takes the next fold.

READS   what train reads
WRITES  what train writes, and nothing of its own: every child is src/stages/train.py with one fold, which checks what is there, saves and goes on as it does alone

Imports nothing heavy: how many GPUs there are is asked before torch is there.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import re
import selectors
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from src.config.load import Config
from src.core import console
from src.core.console import InputError, Interrupts, StageError, Stopped, error_line, say
from src.core.disk import explained, point
from src.core.freshness import Job
from src.core.paths import ROOT

DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
CHILD = [sys.executable, "-u", "-m", "src.pipeline.parallel"]
NAME = re.compile(r" \[([a-z][a-z0-9_]*)\]$")  # of an error, at the end of its line
PATIENCE = 30  # seconds that a child has to end when everything is to stop at once


def devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each GPU that this process may use; [] where there is none. Found without torch, which would take seconds and a part
    of a GPU's memory. CUDA itself reads the variable only as far as the first entry that is no device (CUDA programming guide, environment variables)."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        found: list[str] = []
        for name in (n.strip() for n in chosen.split(",")):
            if not name or name.startswith("-"):
                break
            found.append(name)
        return found
    try:  # in a container it knows which GPUs are lent, where /proc may show those of the whole machine
        told = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, encoding="utf-8"
        )
        count = (
            sum(line.startswith("GPU ") for line in told.stdout.splitlines())
            if told.returncode == 0
            else 0
        )
    except (OSError, subprocess.SubprocessError):
        count = len(list(DRIVER.glob("*")))
    return [str(i) for i in range(count)]


def count(given: int | None) -> int:
    """How many folds train at the same time: --parallel N, else one for each GPU, and at least 1."""
    return max(1, len(devices())) if given is None else given


# --------------------------------------------------------------------------------------------------------------------------- the parent


@dataclass(eq=False)
class Child:
    """One running fold: its process, its place among those side by side, and what it said last on stderr."""

    job: Job
    label: str  # before each of its lines
    slot: int
    process: subprocess.Popen
    last: str = ""
    unfinished: dict[object, bytes] = field(
        default_factory=dict
    )  # pipe -> a line that has not ended yet

    def hear(self, pipe) -> bool:
        """Pass on what has come through one of its two pipes, in whole lines; False when the pipe is closed."""
        data = os.read(pipe.fileno(), 1 << 16)
        *lines, rest = (self.unfinished.get(pipe, b"") + (data or b"\n")).split(b"\n")
        self.unfinished[pipe] = rest
        warns = pipe is self.process.stderr
        for line in (raw.decode(errors="replace").rstrip() for raw in lines):
            if line:
                self.last = line if warns else self.last
                print(
                    f"{self.label} | {line}", file=sys.stderr if warns else sys.stdout, flush=True
                )
        return bool(data)

    def failure(self) -> str:
        """In words, why it did not finish; '' where it did."""
        code = self.process.returncode
        if code == 0:
            return ""
        if code < 0:
            why = (
                "; the system does so when memory runs out: a smaller --parallel needs less"
                if code == -signal.SIGKILL
                else ""
            )
            return f"it was killed ({signal.Signals(-code).name}){why}"
        said = NAME.sub("", self.last.removeprefix("error: ")).rstrip(".")
        return said or f"it ended with exit code {code}"

    @property
    def code(self) -> str:
        """The short name of its error, which ends its last line."""
        if self.process.returncode < 0:
            return "process_killed"
        name = NAME.search(self.last)
        return name[1] if name else "fold_failed"


def run(jobs: list[Job], config: Config, slots: int) -> int:
    """Train these folds, `slots` at a time; returns how many were trained.

    A fold that fails does not stop the others. Its slot takes no other one, since a GPU that is out of order would spoil them all. In the end the error is
    raised: InputError where all that failed did so for wrong input, else StageError. On Ctrl+C or SIGTERM every child saves, and Stopped is raised.
    """
    gpus, several = devices(), len({job.name for job in jobs}) > 1
    waiting, running, ended, free = list(jobs), [], [], list(range(min(slots, len(jobs))))
    side_by_side, asked = len(free), False
    say(
        f"[train] {len(jobs)} folds, {side_by_side} at a time: "
        + (
            f"GPU {', '.join(gpus[:side_by_side])}"
            if gpus
            else f"no GPU, OMP_NUM_THREADS={_threads(side_by_side)} each"
        )
    )
    for job in jobs[1:]:  # of the first one it has been said already
        job.announce()
    selector = selectors.DefaultSelector()
    try:
        with Interrupts() as interrupts:
            while running or waiting and free and not interrupts.asked:
                while waiting and free and not interrupts.asked:
                    job, slot = waiting.pop(0), free.pop(0)
                    label = f"{job.name} fold {job.fold}" if several else f"fold {job.fold}"
                    running.append(
                        child := Child(
                            job,
                            label,
                            slot,
                            _start(
                                job,
                                config.owner(job.name),
                                gpus[slot % len(gpus)] if gpus else None,
                                side_by_side,
                            ),
                        )
                    )
                    for pipe in (child.process.stdout, child.process.stderr):
                        selector.register(pipe, selectors.EVENT_READ, child)
                if interrupts.asked and not asked:
                    asked = True
                    for child in running:
                        child.process.terminate()  # once: told a second time, it would end without saving
                for key, _ in selector.select(timeout=0.3):
                    if not key.data.hear(key.fileobj):
                        selector.unregister(key.fileobj)
                        key.fileobj.close()
                open_ = {id(key.data) for key in selector.get_map().values()}
                for child in [c for c in running if id(c) not in open_]:
                    child.process.wait()
                    running.remove(child)
                    ended.append(child)
                    free += [] if child.failure() else [child.slot]
    finally:
        _end(running)
        selector.close()
    if interrupts.asked:
        raise Stopped("; ".join(f"{c.label}: {_saved(c)}" for c in ended) or "no fold was begun")
    if failed := [c for c in ended if c.failure()]:
        text = "; ".join(f"{c.job.title}: {c.failure()}" for c in failed) + (
            f". Not begun: {console.listing(j.title for j in waiting)}" if waiting else ""
        )
        codes = {c.code for c in failed}
        code = codes.pop() if len(codes) == 1 else "several"
        if all(c.process.returncode == 2 for c in failed):
            raise InputError(text, code=code)
        raise StageError(f"{text}. What the others trained is kept", code=code)
    return len(ended)


def _start(job: Job, config: Config, gpu: str | None, side_by_side: int) -> subprocess.Popen:
    """A session of its own: Ctrl+C on a terminal, and `timeout`, reach a whole group of processes, and the parent's word is enough."""
    environment = dict(os.environ)
    config = Config(
        config.name, config.file, config.competition, config.experiment.model_copy(deep=True)
    )
    if gpu is None:
        environment["OMP_NUM_THREADS"] = str(_threads(side_by_side))
    else:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
        if config.experiment.train.workers is None:
            config.experiment.train.workers = min(
                8, max(1, _cores() // side_by_side)
            )  # loader processes: of the cores too, each has its share
    point("start", job.record_file)
    process = subprocess.Popen(
        CHILD,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_with_parent if LIBC else None,
    )
    job = replace(job, folds_left=1)  # what this fold tells of time is its own
    with (
        suppress(BrokenPipeError),
        process.stdin,
    ):  # broken: it failed before it listened, and its exit code says so
        process.stdin.write(pickle.dumps((os.getcwd(), console.REPEATED, job, config)))
    process.stdin = None
    return process


def _with_parent() -> None:
    """In the child: SIGTERM when the parent is gone, however it went (prctl(2): PR_SET_PDEATHSIG is 1). Elsewhere a child ends at the next line it says."""
    LIBC.prctl(1, signal.SIGTERM)


def _end(running: list[Child]) -> None:
    """Nothing is left behind, whatever happened."""
    for child in running:
        child.process.terminate()
    for child in running:
        try:
            child.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.communicate()


def _saved(child: Child) -> str:
    if child.process.returncode == -signal.SIGTERM:  # it had not come so far as to listen for it
        return "nothing had to be saved"
    return (
        child.last.removeprefix("stopped: ")
        if child.process.returncode == 130
        else child.failure() or "finished"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(side_by_side: int) -> int:
    """A child's share of the cores, and no more than the user allows."""
    share, allowed = max(1, _cores() // side_by_side), os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(allowed)) if allowed.isdigit() and int(allowed) else share


# ---------------------------------------------------------------------------------------------------------------------------- the child


def _terminated(*_) -> None:
    raise KeyboardInterrupt


def child() -> int:
    """One fold; what to do comes through stdin. Exit codes as everywhere, and the last line on stderr says why."""
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's word is SIGTERM
    try:
        home, console.REPEATED[:], job, config = pickle.load(sys.stdin.buffer)
        os.chdir(home)
        importlib.import_module(f"src.stages.{job.stage}").run(
            job, config, job.paths
        )  # not at the top: torch takes seconds, and the parent does without
        return 0
    except InputError as error:
        return _last(error_line(error), 2)
    except StageError as error:
        return _last(error_line(error), 1)
    except Stopped as stopped:
        return _last(f"stopped: {stopped}", 130)
    except KeyboardInterrupt:
        return _last("stopped: nothing had to be saved", 130)
    except OSError as error:
        told = explained(error)
        return _last(error_line(told), 2 if isinstance(told, InputError) else 1)
    except BaseException as error:
        traceback.print_exc()
        return _last(f"error: {type(error).__name__}: {error}", 1)


def _last(line: str, code: int) -> int:
    print(line, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(child())
