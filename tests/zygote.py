"""Many commands, quickly: one process imports what is slow, and forks a child for each command.

    with Zygote("torch", "albumentations") as zygote:
        answer = zygote.run(["prepare", "--config", "x.yaml", "--work", "w"], cwd=folder)
        assert answer.code == 0, answer.err

Each child is like a fresh `./run.sh …`: nothing that it does outlives it, it can be killed at any
moment, and its time and memory are measured. A command that starts processes of its own is killed
with them. Used by the fuzz, by the sweep of failpoints and by the random kills.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Answer:
    """How a command ended. `code`: its exit code, or minus the signal that killed it."""

    code: int
    out: str
    err: str
    seconds: float
    peak: int  # bytes of memory at the most, its own and those of imports
    timed_out: bool = False

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    def is_civil(self) -> bool:
        """Done, or one clear line: what every command owes whatever it is given."""
        told = not self.errors if self.code == 0 else len(self.errors) == 1
        return self.code in (0, 2) and told and "Traceback" not in self.err + self.out


class Zygote:
    """`imports`: modules to import once, before any command."""

    def __init__(self, *imports: str):
        self.imports = imports

    def __enter__(self) -> Zygote:
        environment = {k: v for k, v in os.environ.items() if k not in ("RUN_AS", "CALLED_FROM")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-u", __file__, *self.imports],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout.readline() == "ready\n", "the zygote did not start"
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def run(
        self,
        words: list[str],
        cwd: Path,
        *,
        timeout: float = 60,
        env: dict[str, str] | None = None,
        kill_after: float | None = None,
        limits: dict[str, int] | None = None,
        failpoint: dict | None = None,
    ) -> Answer:
        """`kill_after`: seconds until SIGKILL. `limits`: resource limits such as {'FSIZE': 1000}.
        `failpoint`: what tests/failpoints.py is to `arm`."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            out.touch()  # it may be killed before it says a word
            err.touch()
            asked = {
                "words": [str(w) for w in words],
                "cwd": str(cwd),
                "timeout": timeout,
                "env": env or {},
                "kill_after": kill_after,
                "limits": limits or {},
                "failpoint": failpoint,
                "out": str(out),
                "err": str(err),
            }
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            found = json.loads(self.process.stdout.readline())
            texts = [f.read_text(errors="replace") for f in (out, err)]
        return Answer(found["code"], *texts, found["seconds"], found["peak"], found["timed_out"])


def serve(imports: list[str]) -> None:
    for name in imports:
        __import__(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # no thread pool may exist when it forks
    import src.__main__  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def answer(asked: dict) -> dict:
    began = time.time()
    child = os.fork()
    if child == 0:
        obey(asked)
    timed_out, deadline = False, began + asked["timeout"]
    kill_at = began + asked["kill_after"] if asked["kill_after"] is not None else None
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        now = time.time()
        if kill_at is not None and now >= kill_at:
            os.kill(child, signal.SIGKILL)  # the command alone, as the system would
            kill_at = None
        if now >= deadline:
            timed_out = True
            os.killpg(child, signal.SIGKILL)
            deadline = now + 60
        time.sleep(0.002)
    if asked["kill_after"] is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # whatever it left behind
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.time() - began,
        "peak": usage.ru_maxrss * 1024,
        "timed_out": timed_out,
    }


def obey(asked: dict) -> None:
    """In the child: the command, as if typed."""
    import resource

    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.update(asked["env"])
    os.environ["CALLED_FROM"] = asked["cwd"]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(asked[name], flags), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    for name, value in asked["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    code = 1
    try:
        from src.__main__ import main

        if asked["words"][:1] == ["bundle"]:
            import failpoints

            failpoints.without_rehearsal()
        if asked["failpoint"]:
            import failpoints

            failpoints.arm(**asked["failpoint"])
        code = main(asked["words"])
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code or 0)


if __name__ == "__main__":
    serve(sys.argv[1:])
