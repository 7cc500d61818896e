"""Folds side by side: how many, what each process is given, what becomes of one that fails, is
killed or is stopped; and the same weights as one after another."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, refused, write_configs
from test_chain import SETTINGS, SMALL
from test_train import identical

from src.__main__ import main
from src.config.load import load
from src.core.console import StageError, Stopped
from src.core.paths import Paths
from src.pipeline import parallel
from src.pipeline.jobs import train_job

# what stands in for a fold's training below: it notes what it was given, and does as its fold's
# number says
STAND_IN = """
import os, pathlib, pickle, signal, sys, time
home, repeated, job, config = pickle.load(sys.stdin.buffer)
os.chdir(home)
given = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
with open("began", "a") as file:
    print(job.fold, *given, config.experiment.train.workers, file=file)

def end(line, code):
    print(line, file=sys.stderr)
    sys.exit(code)

"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """started(code, jobs, …): run jobs that do `code` in place of training; what each child was
    given, a line each, in the order in which they began."""
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parallel, "devices", lambda: [])
    monkeypatch.chdir(tmp_path)
    file = write_configs(tmp_path, small=SMALL) / "small.yaml"

    def start(code: str, folds: int, slots: int, sets: tuple[str, ...] = ()) -> list[str]:
        config, paths = load(file, [f"split.folds={folds}", *sets]), Paths(tmp_path, tmp_path)
        monkeypatch.setattr(parallel, "CHILD", [sys.executable, "-u", "-c", STAND_IN + code])
        (tmp_path / "began").unlink(missing_ok=True)
        parallel.run([train_job(config, paths, k) for k in range(folds)], config, slots)
        return began(tmp_path)

    return start


def began(folder: Path) -> list[str]:
    return (folder / "began").read_text().splitlines()


# --------------------------------------------------------------------------------------- how many


def fake_smi(folder: Path, monkeypatch, script: str) -> None:
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    "value, found",
    [
        ("0,1", ["0", "1"]),
        (" 1 , 3", ["1", "3"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("GPU-8932f937,MIG-2a", ["GPU-8932f937", "MIG-2a"]),
    ],
)
def test_devices_are_those_that_the_environment_lends(value, found, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert parallel.devices() == found and parallel.count(None) == max(1, len(found))


def test_devices_are_asked_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(parallel, "DRIVER", tmp_path / "gpus")
    listed = (
        "echo 'GPU 0: Tesla T4 (UUID: GPU-1)'; echo '  MIG 1g.5gb Device 0: (UUID: MIG-2)'; "
        "echo 'GPU 1: Tesla T4 (UUID: GPU-3)'"
    )
    fake_smi(tmp_path / "two", monkeypatch, listed)
    assert parallel.devices() == ["0", "1"] and parallel.count(None) == 2
    fake_smi(tmp_path / "broken", monkeypatch, "echo 'GPU 0: of no use'; exit 9")
    assert parallel.devices() == []
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi: the driver's own list
    assert parallel.devices() == [] and parallel.count(None) == 1
    for bus in ("0000:00:04.0", "0000:00:05.0", "0000:00:06.0"):
        (tmp_path / "gpus" / bus).mkdir(parents=True)
    assert parallel.devices() == ["0", "1", "2"]
    assert parallel.count(5) == 5 and parallel.count(1) == 1, "what is typed wins"


# ----------------------------------------------------------------------- what each child is given


def test_each_gpu_has_one_fold_and_the_next_fold_goes_to_the_free_one(started, monkeypatch):
    """The first fold's process ends when the third one has begun, which only the second one's GPU
    can have."""
    monkeypatch.setattr(parallel, "devices", lambda: ["4", "7"])
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    wait = "while job.fold == 0 and len(open('began').readlines()) < 3: time.sleep(0.02)"
    lines = started(wait, 3, 2)
    assert sorted(lines[:2]) == ["0 4 None 3", "1 7 None 3"] and lines[2] == "2 7 None 3"
    lines = started(wait, 3, 2, ("train.workers=1",))
    assert sorted(lines) == ["0 4 None 1", "1 7 None 1", "2 7 None 1"], "what was typed stays"


def test_without_a_gpu_the_cores_are_shared(started, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert [line.split()[1:] for line in started("", 2, 5)] == [["None", "4", "None"]] * 2, (
        "two folds, so two share"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [line.split()[2] for line in started("", 2, 2)] == ["3", "3"], (
        "not more than the user allows"
    )


def test_lines_are_whole_and_say_whose_they_are(started, capfd):
    code = """
for part in ('ep', f'och {job.fold}\\n\\n', 'no end'):
    print(part, end='', flush=True)
    time.sleep(0.05)
print('warning: mind', file=sys.stderr)
"""
    started(code, 2, 2)
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("[train] 2 folds, 2 at a time")
    assert sorted(lines[1:]) == [
        "fold 0 | epoch 0",
        "fold 0 | no end",
        "fold 1 | epoch 1",
        "fold 1 | no end",
    ]
    assert sorted(err.splitlines()) == ["fold 0 | warning: mind", "fold 1 | warning: mind"]


# -------------------------------------------------------------------------------- what goes wrong


def test_a_fold_that_fails_is_named_and_the_others_are_trained(started, tmp_path):
    with refused("out_of_memory", kind=StageError) as raised:
        full = "end('error: out of memory at batch 4. [out_of_memory]', 1)"
        started(f"if job.fold == 0: {full}", 4, 2)
    assert (
        str(raised.value)
        == "train small fold 0: out of memory at batch 4. What the others trained is kept"
    ), "its name stands once, at the end"
    assert len(began(tmp_path)) == 4, "the other slot took all that were left"


def test_where_every_slot_has_failed_no_other_fold_is_begun(started, tmp_path):
    ends = "end('error: no such loss. Did you mean dice? [unknown_part]', 2)"
    with refused("unknown_part", "Not begun: train small fold 2, train small fold 3") as raised:
        started(ends, 4, 2)
    said = str(raised.value)
    assert said.count("Did you mean dice?; train small fold") == 1 and "[" not in said
    assert len(began(tmp_path)) == 2


def test_folds_that_fail_in_different_ways_are_several(started):
    ends = "end('error: no [' + ('a' if job.fold else 'b') + '_name]', 2)"
    with refused("several", "fold 0: no", "fold 1: no") as raised:
        started(ends, 2, 2)
    assert "_name" not in str(raised.value)


def test_a_fold_without_a_name_of_its_error(started):
    with refused("fold_failed", "KeyError: 1", kind=StageError):
        started("end('error: KeyError: 1', 1)", 2, 1)


def test_a_killed_fold_is_named(started):
    with refused("process_killed", "train small fold 1", "SIGKILL", "memory", kind=StageError):
        started("if job.fold == 1: os.kill(os.getpid(), signal.SIGKILL)", 2, 2)


def test_a_wrong_input_of_the_real_training_comes_through(tmp_path):
    file = write_configs(tmp_path, small=SMALL) / "small.yaml"
    config, paths = load(file), Paths(tmp_path, tmp_path)
    with refused("no_index", "train small fold 3"):
        parallel.run([train_job(config, paths, 3)], config, 1)


def children(pid: int) -> list[int]:
    """Its children and theirs, as Linux knows them."""
    found = [
        int(p)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for p in task.read_text().split()
    ]
    return found + [g for p in found for g in children(p)]


def gone(pids: list[int]) -> bool:
    """Ended, or a zombie that waits for its new parent."""
    for _ in range(300):
        if not [
            p
            for p in pids
            if Path(f"/proc/{p}/stat").exists()
            and Path(f"/proc/{p}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
        ]:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is told by Linux only")
def test_no_child_outlives_a_parent_that_was_killed(tmp_path):
    write_configs(tmp_path, small=SMALL)
    code = f"""
import argparse, sys
from pathlib import Path
from src.pipeline import parallel
from src.config.load import load
from src.core.paths import Paths
from src.pipeline.jobs import train_job
home = Path({str(tmp_path)!r})
config, paths = load(home / "configs" / "small.yaml"), Paths(home, home)
parallel.CHILD = [sys.executable, "-u", "-c", "import time; print('here'); time.sleep(600)"]
parallel.run([train_job(config, paths, k) for k in (0, 1)], config, 2)
"""
    parent = subprocess.Popen(
        [sys.executable, "-u", "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    here = [line for line in (parent.stdout.readline() for _ in range(3)) if "here" in line]
    pids = children(parent.pid)
    parent.kill()
    parent.wait()
    assert len(here) == len(pids) == 2 and gone(pids)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_on_a_signal_every_child_is_told_once_and_has_time_to_save(how, started, tmp_path, capfd):
    code = f"""
def asked(*_):
    with open("asked", "a") as file:
        print(job.fold, file=file)
    time.sleep(0.5)
    if job.fold:
        end(f"stopped: saved at epoch {{job.fold}}", 130)
    sys.exit(0)
signal.signal(signal.SIGTERM, asked)
open(f"ready {{job.fold}}", "w").close()
while len(list(pathlib.Path().glob("ready *"))) < 2: time.sleep(0.02)
if job.fold == 1: os.kill(os.getppid(), {int(how)})
time.sleep(60)
"""
    with pytest.raises(Stopped) as stopped:
        started(code, 3, 2)
    assert sorted(str(stopped.value).split("; ")) == [
        "fold 0: finished",
        "fold 1: saved at epoch 1",
    ]
    assert sorted((tmp_path / "asked").read_text().split()) == ["0", "1"], (
        "each once, and the third fold was not begun"
    )


# --------------------------------------------------------------------------------- really trained


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stopped_by_ctrl_c_and_gone_on_with_it_ends_as_one_after_another_bit_for_bit(
    demo, tmp_path, monkeypatch, capfd
):
    """Ctrl+C on a terminal reaches the whole group of processes. The same command goes on, and both
    folds end with the weights of a run that trained them one after another."""
    write_configs(tmp_path, small=SMALL)
    sets = [w for s in [*SETTINGS, "train.epochs=5", "train.amp=float32"] for w in ("--set", s)]

    def words(work: str, *more: str) -> list[str]:
        return [
            *more,
            "--config",
            str(tmp_path / "configs" / "small.yaml"),
            "--data",
            str(demo),
            "--work",
            str(tmp_path / work),
            *sets,
        ]

    assert main(words("alone", "prepare")) == 0 and main(words("alone", "split")) == 0
    shutil.copytree(tmp_path / "alone", tmp_path / "together")
    run = subprocess.Popen(
        [sys.executable, "-u", "-m", "src", *words("together", "train", "--parallel", "2")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert any("|   epoch " in line for line in run.stdout), run.stderr.read()
    pids = children(run.pid)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 130 and "Traceback" not in err, out + err
    last = err.splitlines()[-1]
    assert (
        last.startswith("stopped: ")
        and "fold 0: " in last
        and "fold 1: " in last
        and "saved " in last
        and "--parallel 2" in last
    )
    assert len(pids) >= 2 and gone(pids)
    capfd.readouterr()

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(words("together", "train", "--parallel", "2")) == 0
    out, _ = capfd.readouterr()
    assert "goes on from epoch" in out and "fold 0 | " in out and "fold 1 | " in out
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(words("alone", "train", "--parallel", "1")) == 0
    finally:
        torch.set_num_threads(threads)
    assert " | " not in capfd.readouterr().out, "one after another, in this process"
    for fold in (0, 1):
        weights = [
            torch.load(
                Paths(tmp_path / w, demo).checkpoint("small", fold, "last"), weights_only=True
            )
            for w in ("alone", "together")
        ]
        assert identical(weights[0]["ema"], weights[1]["ema"]) and identical(
            weights[0]["net"], weights[1]["net"]
        )
