"""Folds side by side: one process for each GPU, or as many as --parallel says; whichever is free
takes the next fold.

READS   what train reads
WRITES  what train writes, and nothing of its own: every child is src/stages/train.py with one fold,
        which checks what is there, saves and resumes as it does alone

Imports nothing heavy: how many GPUs there are is asked before torch is imported.
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
from src.core.console import InputError, Interrupts, StageError, Stopped, error_line, listing, say
from src.core.disk import point, recognised
from src.core.freshness import Job
from src.core.paths import ROOT

DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
DEATH_SIGNAL = 1  # prctl(2): PR_SET_PDEATHSIG
CHILD = [sys.executable, "-u", "-m", "src.pipeline.parallel"]
CODE = re.compile(r" \[([a-z][a-z0-9_]*)\]$")  # of an error, at the end of its line
PATIENCE = 30  # seconds that a child has to end when everything is to stop at once


def devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each GPU that this process may use; [] where there is none.

    Found without torch, which would take seconds and a part of a GPU's memory. CUDA itself reads
    the variable only up to the first entry that is not a device (CUDA programming guide,
    environment variables).
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names: list[str] = []
        for name in chosen.split(","):
            if not name.strip() or name.strip().startswith("-"):
                break
            names.append(name.strip())
        return names
    command = ["nvidia-smi", "-L"]
    try:  # in a container it knows which GPUs are lent, where /proc may show all of the machine's
        listed = subprocess.run(
            command, capture_output=True, text=True, timeout=60, encoding="utf-8"
        )
        lines = [] if listed.returncode else listed.stdout.splitlines()
        count = sum(line.startswith("GPU ") for line in lines)
    except (OSError, subprocess.SubprocessError):
        count = len(list(DRIVER.glob("*")))
    return [str(i) for i in range(count)]


def count(given: int | None) -> int:
    """How many folds train at the same time: --parallel N, else one for each GPU, at least 1."""
    return max(1, len(devices())) if given is None else given


# ------------------------------------------------------------------------------------ the parent


@dataclass(eq=False)
class Child:
    """One running fold.

    `slot`: its place among those side by side. `last`: its last line on stderr. `unfinished`: by
    pipe, a line that has not ended yet.
    """

    job: Job
    label: str
    slot: int
    process: subprocess.Popen
    last: str = ""
    unfinished: dict[object, bytes] = field(default_factory=dict)

    def pass_on(self, pipe) -> bool:
        """Print what has come through one of its two pipes, in whole lines that begin with the
        label; False when the pipe is closed."""
        data = os.read(pipe.fileno(), 1 << 16)
        *lines, rest = (self.unfinished.get(pipe, b"") + (data or b"\n")).split(b"\n")
        self.unfinished[pipe] = rest
        is_stderr = pipe is self.process.stderr
        for raw in lines:
            line = raw.decode(errors="replace").rstrip()
            if not line:
                continue
            if is_stderr:
                self.last = line
            stream = sys.stderr if is_stderr else sys.stdout
            print(f"{self.label} | {line}", file=stream, flush=True)
        return bool(data)

    def failure(self) -> str:
        """In words, why it did not finish; '' where it did."""
        code = self.process.returncode
        if code == 0:
            return ""
        if code > 0:
            why = CODE.sub("", self.last.removeprefix("error: ")).rstrip(".")
            return why or f"it ended with exit code {code}"
        why = f"it was killed ({signal.Signals(-code).name})"
        if code == -signal.SIGKILL:
            why += "; the system does so when memory runs out: a smaller --parallel needs less"
        return why

    def saved(self) -> str:
        """What is left of its work after it was asked to stop, in words."""
        code = self.process.returncode
        if code == -signal.SIGTERM:  # it had not come so far as to listen for it
            return "nothing had to be saved"
        if code == 130:
            return self.last.removeprefix("stopped: ")
        return self.failure() or "finished"

    @property
    def code(self) -> str:
        """The short name of its error, which ends its last line."""
        if self.process.returncode < 0:
            return "process_killed"
        name = CODE.search(self.last)
        return name[1] if name else "fold_failed"


class Pool:
    """The folds that wait, run and have ended; `slots` are the places for those that run."""

    def __init__(self, jobs: list[Job], config: Config, slots: int):
        self.config, self.gpus = config, devices()
        self.side_by_side = min(slots, len(jobs))
        self.several_names = len({job.name for job in jobs}) > 1
        self.waiting, self.free = list(jobs), list(range(self.side_by_side))
        self.running: list[Child] = []
        self.ended: list[Child] = []
        self.selector = selectors.DefaultSelector()

    def start(self) -> None:
        """A process for each free slot, as long as folds are waiting."""
        while self.waiting and self.free:
            job, slot = self.waiting.pop(0), self.free.pop(0)
            gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
            process = _start(job, self.config.owner(job.name), gpu, self.side_by_side)
            label = f"{job.name} fold {job.fold}" if self.several_names else f"fold {job.fold}"
            child = Child(job, label, slot, process)
            self.running.append(child)
            for pipe in (process.stdout, process.stderr):
                self.selector.register(pipe, selectors.EVENT_READ, child)

    def watch(self) -> None:
        """Pass on what the children say, and note which have ended. The slot of one that failed
        takes no other fold: a broken GPU would spoil them all."""
        for key, _ in self.selector.select(timeout=0.3):
            if not key.data.pass_on(key.fileobj):
                self.selector.unregister(key.fileobj)
                key.fileobj.close()
        open_pipes = {id(key.data) for key in self.selector.get_map().values()}
        for child in [c for c in self.running if id(c) not in open_pipes]:
            child.process.wait()
            self.running.remove(child)
            self.ended.append(child)
            if not child.failure():
                self.free.append(child.slot)

    def ask_to_stop(self) -> None:
        """To be called once: a child that is told twice ends without saving."""
        for child in self.running:
            child.process.terminate()

    def close(self) -> None:
        """Leave no process behind, whatever happened."""
        self.ask_to_stop()
        for child in self.running:
            try:
                child.process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.communicate()
        self.selector.close()


def run(jobs: list[Job], config: Config, slots: int) -> None:
    """Train these folds, `slots` at a time.

    A fold that fails does not stop the others. In the end the error is raised: InputError where
    all that failed did so for wrong input, else StageError. On Ctrl+C or SIGTERM every child saves,
    and Stopped is raised.
    """
    pool = Pool(jobs, config, slots)
    where = f"no GPU, OMP_NUM_THREADS={_threads(pool.side_by_side)} each"
    if pool.gpus:
        where = f"GPU {', '.join(pool.gpus[: pool.side_by_side])}"
    say(f"[train] {len(jobs)} folds, {pool.side_by_side} at a time: {where}")
    for job in jobs[1:]:  # the driver has announced the first one
        job.announce()
    asked = False
    try:
        with Interrupts() as interrupts:
            while pool.running or (pool.waiting and pool.free and not interrupts.asked):
                if not interrupts.asked:
                    pool.start()
                elif not asked:
                    pool.ask_to_stop()
                    asked = True
                pool.watch()
    finally:
        pool.close()
    if interrupts.asked:
        saved = "; ".join(f"{child.label}: {child.saved()}" for child in pool.ended)
        raise Stopped(saved or "no fold was begun")
    if failed := [child for child in pool.ended if child.failure()]:
        raise _failure(failed, pool.waiting)


def _failure(failed: list[Child], waiting: list[Job]) -> InputError | StageError:
    """One error for all folds that failed."""
    left = f". Not begun: {listing(job.title for job in waiting)}" if waiting else ""
    text = "; ".join(f"{child.job.title}: {child.failure()}" for child in failed) + left
    codes = {child.code for child in failed}
    code = codes.pop() if len(codes) == 1 else "several"
    if all(child.process.returncode == InputError.exit_code for child in failed):
        return InputError(text, code=code)
    return StageError(f"{text}. What the others trained is kept", code=code)


def _start(job: Job, config: Config, gpu: str | None, side_by_side: int) -> subprocess.Popen:
    """In a session of its own: Ctrl+C on a terminal, and `timeout`, reach a whole group of
    processes, and here the parent passes it on."""
    environment = dict(os.environ)
    config = replace(config, experiment=config.experiment.model_copy(deep=True))
    if gpu is None:
        environment["OMP_NUM_THREADS"] = str(_threads(side_by_side))
    else:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
        if config.experiment.train.workers is None:  # loader processes share the cores, too
            config.experiment.train.workers = min(8, _share(side_by_side))
    point("start", job.record_file)
    process = subprocess.Popen(
        CHILD,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_end_with_parent if LIBC else None,
    )
    # a broken pipe: it failed before it listened, and its exit code says so
    with suppress(BrokenPipeError), process.stdin:
        task = os.getcwd(), console.REPEATED, replace(job, folds_left=1), config
        process.stdin.write(pickle.dumps(task))
    process.stdin = None
    return process


def _end_with_parent() -> None:
    """In the child: SIGTERM when the parent is gone, for whatever reason. Elsewhere than on Linux
    a child ends when it next prints a line."""
    LIBC.prctl(DEATH_SIGNAL, signal.SIGTERM)


def _share(side_by_side: int) -> int:
    """Of the cores, for one child."""
    from joblib import cpu_count  # 0.15 s, which `status` need not spend

    return max(1, cpu_count() // side_by_side)


def _threads(side_by_side: int) -> int:
    """A child's share of the cores, and no more than the user allows."""
    share, allowed = _share(side_by_side), os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(allowed)) if allowed.isdigit() and int(allowed) else share


# ------------------------------------------------------------------------------------- the child


def _terminated(*_) -> None:
    raise KeyboardInterrupt


def child() -> int:
    """One fold; what to do comes through stdin. Exit codes as everywhere, and the last line on
    stderr says why."""
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sends SIGTERM
    try:
        home, console.REPEATED[:], job, config = pickle.load(sys.stdin.buffer)
        os.chdir(home)
        # not at the top: torch takes seconds, and the parent does without
        importlib.import_module(f"src.stages.{job.stage}").run(job, config, job.paths)
        return 0
    except Stopped as stopped:
        line, code = f"stopped: {stopped}", 130
    except KeyboardInterrupt:
        line, code = "stopped: nothing had to be saved", 130
    except BaseException as error:
        line, code = f"error: {type(error).__name__}: {error}", 1
        known = recognised(error)
        if known is None:
            traceback.print_exc()
        else:
            line, code = error_line(known), known.exit_code
    print(line, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(child())
