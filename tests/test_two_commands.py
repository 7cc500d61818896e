"""Two commands in one work folder: the second waits and says for whom, or goes on with what is
free."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, command_line, write_configs
from zygote import Answer, Zygote

from src.core.paths import Paths
from src.core.settings import Experiment
from src.tools import demo_data

SMALL = """image_size: 32
predict: {tta: [identity]}
model: {arch: unet, encoder: tu-lcnet_035, encoder_weights: none,
        options: {decoder_channels: [32, 16, 16, 8, 8]}}
"""
IMPORTS = ("torch", "segmentation_models_pytorch", "albumentations", "pandas", "cv2")
IMPORTS += (
    "src.stages.prepare",
    "src.stages.train",
    "src.stages.split",
    "iterstrat.ml_stratifiers",
    "src.stages.evaluate",
)
HOLD = """
import sys, time
from pathlib import Path
from src.core.locks import Lock
lock = Lock.of(Path(sys.argv[1]), "a job")
assert lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def pair():
    """Two processes that commands can be given to at the same time."""
    with Zygote(*IMPORTS) as first, Zygote(*IMPORTS) as second:
        yield first, second


@pytest.fixture
def home(tmp_path) -> Path:
    write_configs(tmp_path, small=SMALL)
    demo_data.make(tmp_path / "data", n_train=60, n_test=6, size=(150, 250))
    return tmp_path


def line(home: Path, *words: str, epochs: int = 1) -> list[str]:
    sets = ("split.folds=3", f"train.epochs={epochs}", "train.workers=0", "evaluate.bootstrap=100")
    return command_line(home, *words, sets=sets)


def both(pair, home: Path, words: list[str], apart: float) -> list[Answer]:
    """The same command twice, the second so many seconds after the first."""
    answers: list[Answer | None] = [None, None]

    def give(number: int) -> None:
        time.sleep(number * apart)
        answers[number] = pair[number].run(words, home, timeout=120)

    threads = [threading.Thread(target=give, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize("apart", [0.0, 0.2, 0.5])
def test_two_prepares_leave_one_whole_store(pair, home, apart):
    first, second = both(pair, home, line(home, "prepare"), apart)
    assert first.code == second.code == 0, first.err + second.err
    images = np.load(Paths(home, home / "data").images(Experiment(image_size=32, resize="stretch")))
    assert len(images) == 60 and images.reshape(60, -1).max(axis=1).min() > 0, "no image is black"
    made = [a for a in (first, second) if "train images:" in a.out]
    assert len(made) == 1, "the other one waited, and found it done"


def test_two_runs_share_the_folds(pair, home):
    assert pair[0].run(line(home, "prepare"), home).code == 0
    assert pair[0].run(line(home, "split"), home).code == 0
    first, second = both(pair, home, line(home, "train", epochs=3), 0.3)
    assert first.code == second.code == 0, first.err + second.err
    headers = [a.out.count("[train]") for a in (first, second)]
    assert sum(headers) == 3 and min(headers) >= 1, "no fold twice, and each run had one"
    assert "waiting for process" in first.out + second.out, "in the end one waits for the other"


def test_it_says_for_whom_it_waits(home):
    lock = Paths(home, home / "data").lock("prepare")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        waiter = subprocess.Popen(
            [sys.executable, "-u", "-m", "src", *line(home, "prepare")],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        told = waiter.stdout.readline()
        assert f"waiting for process {holder.pid} on " in told and "since 20" in told
        waiter.send_signal(signal.SIGINT)
        assert waiter.wait(timeout=60) == 130
        assert "Go on with" in (err := waiter.stderr.read()) or "go on with" in err
        holder.stdin.close()
        holder.wait()


def test_a_killed_run_leaves_no_lock_to_wait_for(pair, home):
    """Its loader processes live on for seconds, and must not hold it."""
    for word in ("prepare", "split"):
        assert pair[0].run(line(home, word), home).code == 0
    words = [*line(home, "train", "--fold", "0", epochs=5000), "--set", "train.workers=2"]
    killed = pair[0].run(words, home, kill_after=8)
    assert killed.code == -9 and "epoch " in killed.out
    began = time.time()
    again = pair[1].run([*words, "--set", "train.epochs=1"], home)
    assert again.code == 0, again.err
    assert "waiting for" not in again.out and time.time() - began < 20


def test_force_leaves_alone_what_another_run_is_at(pair, home):
    for word in ("prepare", "split"):
        assert pair[0].run(line(home, word), home).code == 0
    first: list[Answer] = []
    words = line(home, "train", "--fold", "0", epochs=30)
    thread = threading.Thread(target=lambda: first.append(pair[0].run(words, home)))
    thread.start()
    paths = Paths(home, home / "data")
    while not paths.log("small", 0).is_file():  # after its first epoch
        time.sleep(0.05)
    status = pair[1].run(line(home, "status", epochs=30), home)
    forced = pair[1].run(line(home, "train", "--fold", "0", "--force", epochs=30), home)
    thread.join()
    assert first[0].code == forced.code == 0, first[0].err + forced.err
    assert "train small fold 0" in status.out and "running" in status.out
    assert " since " in status.out
    assert "waiting for process" in forced.out and "epoch " not in forced.out


def test_a_fold_waits_for_the_images_that_another_run_prepares(home):
    lock = Paths(home, home / "data").lock("prepare")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        waiter = subprocess.Popen(
            [sys.executable, "-u", "-m", "src", *line(home, "train", "--fold", "1")],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert f"waiting for process {holder.pid} on " in waiter.stdout.readline()
        holder.stdin.close()
        holder.wait()
        assert waiter.wait(timeout=120) == 2, "nobody has prepared anything"
        assert "[lacks_input]" in waiter.stderr.read()


def test_a_folder_in_the_place_of_a_lock_is_one_line(pair, home):
    Paths(home, home / "data").lock("prepare").mkdir(parents=True)
    answer = pair[0].run(line(home, "prepare"), home)
    assert answer.code == 2 and "[file_or_folder]" in answer.errors[0] and len(answer.errors) == 1


def test_a_damaged_note_of_the_holder_is_no_matter(pair, home):
    lock = Paths(home, home / "data").lock("prepare")
    lock.parent.mkdir(parents=True)
    for text in ("[]", "{", "\xff", json.dumps({"process": "x"})):
        lock.write_text(text, encoding="latin-1")
        assert pair[0].run(line(home, "prepare", "--force"), home).code == 0
    assert os.path.getsize(lock) == 0, "nobody holds it any more"
