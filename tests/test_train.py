"""train: exact resumption, interruption, broken checkpoints, non-finite losses. Small real runs of
the command line."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from src.__main__ import main
from src.config.load import load
from src.core.paths import Paths
from src.pipeline.jobs import train_job
from src.tools import bench
from src.training import runlog

SETTINGS = [
    "image_size=64",
    "split.folds=2",
    "train.epochs=3",
    "train.batch_size=4",
    "train.workers=0",
    "train.amp=bfloat16",
]


def words(stage: str, demo: Path, work: Path, *more: str) -> list[str]:
    sets = [w for s in SETTINGS for w in ("--set", s)]
    return [
        stage,
        "--config",
        str(ROOT / "configs" / "demo.yaml"),
        "--data",
        str(demo),
        "--work",
        str(work),
        *sets,
        *more,
    ]


def start(*line: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "src", *line],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def in_this_process(*line: str) -> int:
    """As `start` has it, without the seconds that importing takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return main(list(line))
    finally:
        torch.set_num_threads(threads)


def weights(work: Path) -> dict:
    saved = torch.load(Paths(work, work).checkpoint("demo", 0, "last"), weights_only=True)
    return {"net": saved["net"], "ema": saved["ema"], "momenta": saved["optimiser"]["state"]}


def identical(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    return torch.equal(a, b)


@pytest.fixture(scope="module")
def split_work(demo, tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("train")
    assert main(words("prepare", demo, work)) == 0 and main(words("split", demo, work)) == 0
    return work


@pytest.fixture
def work(split_work, tmp_path) -> Path:
    return Path(shutil.copytree(split_work, tmp_path / "work"))


@pytest.fixture(scope="module")
def uninterrupted(demo, split_work, tmp_path_factory) -> Path:
    work = Path(shutil.copytree(split_work, tmp_path_factory.mktemp("whole") / "work"))
    assert in_this_process(*words("train", demo, work, "--fold", "0")) == 0
    return work


@pytest.mark.parametrize(
    "how, after",
    [
        (signal.SIGKILL, "epoch   1/3"),
        (signal.SIGINT, "epoch   1/3"),
        (signal.SIGTERM, "images to train on"),
    ],
)
def test_killed_and_started_again_ends_bit_identical(how, after, demo, work, uninterrupted, capfd):
    run = start(*words("train", demo, work, "--fold", "0"))
    for line in run.stdout:
        if after in line:
            break
    run.send_signal(how)
    out, err = run.communicate(timeout=120)
    if how == signal.SIGKILL:
        assert run.returncode == -signal.SIGKILL
    else:
        assert run.returncode == 130, out + err
        assert "Traceback" not in err
        assert "--fold 0" in err and "--set image_size=64" in err, (
            "the command that continues repeats everything that was typed"
        )
    line = words("train", demo, work, "--fold", "0")
    if how == signal.SIGKILL:  # once in a process of its own, as people would
        again = start(*line)
        out, err = again.communicate(timeout=240)
        assert again.returncode == 0, out + err
    else:
        assert in_this_process(*line) == 0
        out = capfd.readouterr().out
    if how != signal.SIGTERM:
        assert "goes on from epoch" in out
    assert identical(weights(work), weights(uninterrupted))
    logs = [Paths(w, w).log("demo", 0).read_text().splitlines() for w in (work, uninterrupted)]
    speed = len(logs[0][0].split(",")) - 3  # what follows is time
    assert [line.split(",")[:speed] for line in logs[0]] == [
        line.split(",")[:speed] for line in logs[1]
    ]


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_truncated_checkpoint_is_not_taken_for_done(which, demo, uninterrupted, tmp_path, capfd):
    work = Path(shutil.copytree(uninterrupted, tmp_path / "work"))
    paths = Paths(work, demo)
    config = load(ROOT / "configs" / "demo.yaml", SETTINGS)
    assert train_job(config, paths, 0).state().done
    last = paths.checkpoint("demo", 0, which)
    os.truncate(last, last.stat().st_size // 2)
    assert train_job(config, paths, 0).state().kind == "damaged"
    assert main(words("train", demo, work, "--fold", "0")) == 0
    out, err = capfd.readouterr()
    assert "is not as it was written" in out and (which == "last" or "starts over" in err)
    assert train_job(config, paths, 0).state().done
    assert torch.load(last, weights_only=True)["ema"]


@pytest.mark.parametrize("at", ["step", "validation"])
def test_stopped_at_the_very_end_of_an_epoch_it_goes_on(
    at, demo, work, uninterrupted, capfd, monkeypatch
):
    """After the last step of the second epoch, before its validation; or within the last validation
    of all."""
    from src.core.console import Interrupts
    from src.stages import train

    count, asked = [0], [None]

    class Asked(Interrupts):
        def __enter__(self):
            asked[0] = super().__enter__()
            return self

    def stop_at(number, real):
        def wrapped(*arguments, **options):
            count[0] += 1
            if count[0] == number:
                asked[0].asked = True
            return real(*arguments, **options)

        return wrapped

    monkeypatch.setattr(train, "Interrupts", Asked)
    with monkeypatch.context() as patched:
        steps = 3  # 12 images by 4
        if at == "step":
            patched.setattr("src.training.runlog.Clock.tick", stop_at(2 * steps, lambda self: None))
        else:
            patched.setattr(train, "predict_images", stop_at(3, train.predict_images))
        assert main(words("train", demo, work)) == 130, (
            "with two folds to train, the second is not begun"
        )
    out, err = capfd.readouterr()
    assert "stopped: " in err
    assert "step 3 of 3" in err or "fold 0 is finished" in err
    assert "fold 1: reads" not in out
    assert main(words("train", demo, work, "--fold", "0")) == 0
    again = Paths(work, work).log("demo", 0).read_text().splitlines()
    assert len(again) == 4 and [r.split(",")[:6] for r in again][1][0] == "1"


def test_predict_does_not_use_what_is_half_trained(demo, work, capfd, monkeypatch):
    """best.pt and last.pt are there after the first epoch; they are not the fold's network yet."""

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("src.stages.train.finish", stopped)
    for fold in "01":
        assert main(words("train", demo, work, "--fold", fold)) == 130
    monkeypatch.undo()
    assert main(words("predict", demo, work)) == 2
    err = capfd.readouterr().err
    for words_of_it in ("[not_finished]", "train demo fold 0", "./run.sh train", "--fold 0"):
        assert words_of_it in err


def test_another_setting_sets_the_old_result_aside(demo, uninterrupted, tmp_path, capfd):
    work = Path(shutil.copytree(uninterrupted, tmp_path / "work"))
    more = ("--set", "train.epochs=1", "--set", "train.lr=0.01")
    assert main(words("train", demo, work, "--fold", "0", *more)) == 0
    out = capfd.readouterr().out
    assert "train.epochs changed from 3 to 1" in out
    assert list(Paths(work, work).old.rglob("last.pt")), "the old weights are kept"


def test_a_loss_that_stays_not_finite_stops_with_advice_and_keeps_the_checkpoint(
    demo, work, capfd, monkeypatch
):
    from src.parts import losses

    good, calls = losses.MASK_LOSSES["bce"], []

    def breaks_in_the_second_epoch(logits, target, settings):
        calls.append(1)
        return good(logits, target, settings) * (1 if len(calls) <= 3 else float("nan"))

    monkeypatch.setitem(losses.MASK_LOSSES, "bce", breaks_in_the_second_epoch)
    monkeypatch.setattr("src.stages.train.BAD_IN_A_ROW", 3)
    assert main(words("train", demo, work, "--fold", "0")) == 1
    err = capfd.readouterr().err
    for words_of_it in ("3 steps in a row", "train.lr=", "last.pt", "[diverged]"):
        assert words_of_it in err
    assert "Traceback" not in err
    kept = torch.load(Paths(work, work).checkpoint("demo", 0, "last"), weights_only=True)
    assert kept["epoch"] == 1 and all(torch.isfinite(v).all() for v in kept["net"].values())


def test_out_of_memory_names_the_settings_that_halve_it(demo, work, capfd, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("src.training.loop.Loop.backward", full)
    assert main(words("train", demo, work, "--fold", "0")) == 1
    err = capfd.readouterr().err
    assert "--set train.batch_size=2 --set train.accumulate=2" in err and "[out_of_memory]" in err


def test_early_stopping_and_the_best_checkpoint(demo, work, capfd, monkeypatch):
    scores = iter([0.5, 0.9, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr("src.parts.metrics.score", lambda weights, found: next(scores))
    settings = ("train.epochs=6", "train.patience=2", "predict.checkpoint=best")
    more = [w for s in settings for w in ("--set", s)]
    assert main(words("train", demo, work, "--fold", "0", *more)) == 0
    out = capfd.readouterr().out
    assert "stopped early" in out and "epoch   4/6" in out and "epoch   5/6" not in out
    assert "predict uses the best checkpoint: epoch 2" in out
    best = torch.load(Paths(work, work).checkpoint("demo", 0, "best"), weights_only=True)
    assert best["epoch"] == 2 and best["score"] == 0.9
    record = json.loads(Paths(work, work).record("train", "demo", 0).read_text())
    assert record["epochs"] == 4


def test_the_demo_config_trains_with_letterbox_accumulation_float32_and_colours(
    demo, split_work, tmp_path, capfd
):
    work = Path(shutil.copytree(split_work, tmp_path / "work"))
    settings = ("resize=letterbox", "train.accumulate=2", "train.amp=float32", "train.ema=0")
    settings += ("train.epochs=1", "data.channels=3")
    more = [w for s in settings for w in ("--set", s)]
    assert main(words("prepare", demo, work, *more)) == 0
    assert main(words("train", demo, work, "--fold", "0", *more)) == 0, capfd.readouterr().err


def test_one_bad_batch_is_skipped_and_named_and_training_goes_on(demo, work, capfd, monkeypatch):
    """The epoch's line and log.csv count it, the weights stay finite, and the fold is finished."""
    from src.parts import losses

    good, calls = losses.MASK_LOSSES["bce"], []

    def breaks_once(logits, target, settings):
        calls.append(1)
        return good(logits, target, settings) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setitem(losses.MASK_LOSSES, "bce", breaks_once)
    assert main(words("train", demo, work, "--fold", "0")) == 0
    assert "1 steps skipped" in capfd.readouterr().out
    paths = Paths(work, work)
    with open(paths.log("demo", 0), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["skipped"] for row in rows] == ["1", "0", "0"]
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    # nine steps, the first of them warm-up; an epoch is logged with the rate of its last step
    highest = load(ROOT / "configs" / "demo.yaml", SETTINGS).experiment.train.lr
    cosine = [highest * (1 + math.cos(math.pi * (step - 1) / 8)) / 2 for step in (2, 5, 8)]
    assert [float(row["lr"]) for row in rows] == pytest.approx(cosine, rel=1e-4)
    kept = torch.load(paths.checkpoint("demo", 0, "last"), weights_only=True)
    assert all(torch.isfinite(v).all() for part in ("net", "ema") for v in kept[part].values())
    assert kept["bad"] == 0


def test_a_fold_learns_what_it_can(demo, split_work, tmp_path):
    """Shown the same few images for forty epochs, a network fits them: gradients, rates and targets
    belong together."""
    work = Path(shutil.copytree(split_work, tmp_path / "work"))
    settings = ("train.epochs=40", "train.augment=none", "train.lr=3e-3", "train.amp=float32")
    more = [w for s in settings for w in ("--set", s)]
    assert in_this_process(*words("train", demo, work, "--fold", "0", *more)) == 0
    with open(Paths(work, work).log("demo", 0), newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.4 * losses[0]


def test_the_log_leaves_blank_what_an_experiment_does_not_measure(tmp_path):
    log = runlog.RunLog(tmp_path / "log.csv", tmp_path / "curves.png")
    row = {"epoch": 1, "loss": 0.123456789, "lr": 1e-3, "score": 0.5, "dice": 0.5, "skipped": 0}
    log.write([row | {"images_per_second": 10.0, "seconds": 0.25, "val": 3}])
    header, line = log.log.read_bytes().decode().split("\r\n")[:2]
    assert header.split(",") == runlog.COLUMNS
    assert line == "1,0.123457,,,0.001,0.5,0.5,,,,10,0.25,0"
    drawn = log.curves.stat().st_mtime_ns
    log.write([row])
    assert log.curves.stat().st_mtime_ns == drawn, "not redrawn within ten seconds"
    log.write([row], final=True)
    assert log.curves.stat().st_mtime_ns > drawn


def test_bench_compares_the_loops_that_train_and_predict_use(capfd):
    settings = ["image_size=32", "train.batch_size=2", "train.workers=0", "train.amp=float32"]
    config = load(ROOT / "configs" / "demo.yaml", settings)
    given = argparse.Namespace(what=["train", "predict"], sets=[], steps=2, repeats=1)
    assert bench.run(given, config, Paths(ROOT, ROOT)) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["train", "predict"]
    assert all("ratio" in line and "32 px" in line for line in lines)
