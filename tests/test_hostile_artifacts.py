"""Artifacts that are not what they should be; and what makes one of them stale, found out by watching what the stages read."""
from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT

from src.__main__ import main
from src.core import stages
from src.core.config import load
from src.core.paths import Paths
from src.core.settings import NEUTRAL, Model, Strict, Submission

SMALL = """image_size: 64
model: {arch: unet, encoder: tu-lcnet_035, encoder_weights: none,
        options: {decoder_channels: [32, 16, 16, 8, 8]}}
train: {lr: 2.0e-3}
"""
OTSU = "image_size: 64\ntask: mask\nmodel: {arch: otsu}\n"
STUDY = "question: Does a mask of more pixels help?\nbase: small\ngrid: {evaluate.threshold: [[0.4]]}\n"
SETTINGS = ["split.folds=2", "train.epochs=2", "train.workers=0", "evaluate.bootstrap=100"]


@pytest.fixture(scope="module")
def home(demo, tmp_path_factory) -> Path:
    """configs/, data/ and a finished run of an ensemble of a tiny network and otsu."""
    home = tmp_path_factory.mktemp("finished")
    (home / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "competition.yaml", home / "configs")
    texts = {"both": "members: [small, otsu]\nmethod: greedy\n", "small": SMALL, "otsu": OTSU}
    texts["few"] = "question: Does a higher threshold help?\nbase: otsu\nset: {score: {dice: 1}}\ncells: {high: {evaluate.threshold: [0.6]}}\n"
    for name, text in texts.items():
        (home / "configs" / f"{name}.yaml").write_text(text)
    shutil.copytree(demo, home / "data")
    assert main(line(home)) == 0 and main(line(home, config="small")) == 0
    return home


@pytest.fixture
def copy(home, tmp_path) -> Path:
    return Path(shutil.copytree(home, tmp_path / "home"))


def line(home: Path, *words: str, config: str = "both") -> list[str]:
    sets = [w for s in SETTINGS for w in ("--set", s)]
    places = ["--config", home / "configs" / f"{config}.yaml", "--data", home / "data", "--work", home]
    return [*words, *map(str, places), *sets]


def loaded(home: Path, name: str = "both", *overrides: str):
    config = load(home / "configs" / f"{name}.yaml", [*SETTINGS, *overrides])
    paths = Paths(home, home / "data")
    return config, paths.studies(config.competition.split) if config.study else paths


# -------------------------------------------------------------- what is read is what makes stale


class First(list):
    """A list of `evaluate` that tells whether more of it is read than its first value."""

    def told(self, name: str, tell) -> First:
        self.name, self.tell = name, tell
        return self

    def __getitem__(self, at):
        self.tell(f"{self.name}[0]" if at == 0 else self.name)
        return super().__getitem__(at)

    def __iter__(self):
        self.tell(self.name)
        return super().__iter__()

    def __len__(self):
        self.tell(self.name)
        return super().__len__()


@contextmanager
def watched(config):
    """The names of all settings that are read within, apart from those read to declare jobs."""
    read: set[str] = set()
    named: dict[int, str] = {}

    def name(holder, prefix: str) -> None:
        named[id(holder)] = prefix
        for key in type(holder).model_fields:
            if isinstance(getattr(holder, key), Strict):
                name(getattr(holder, key), f"{prefix}{key}.")

    def tell(key: str) -> None:
        frame = sys._getframe(2)
        while frame:
            where, what = os.path.basename(frame.f_code.co_filename), frame.f_code.co_name
            if (where, what) in DECLARING or where == "stages.py" and what.endswith("_job"):
                return
            frame = frame.f_back
        read.add(key)

    def look(self, key):
        value = object.__getattribute__(self, key)
        prefix = named.get(id(self))
        if prefix is None or key not in type(self).model_fields or isinstance(value, Strict):
            return value
        if prefix == "evaluate." and isinstance(value, list):
            return First(value).told(prefix + key, tell)
        tell(prefix + key)
        return value

    for one in (config, *config.members, *config.experiments):
        for holder in (one.competition, one.experiment, one.ensemble):
            if holder is not None:
                name(holder, "")
    Strict.__getattribute__ = look
    try:
        yield read
    finally:
        del Strict.__getattribute__


DECLARING = {("config.py", "keys"), ("stages.py", "plan"), ("stages.py", "untuned")}
STORE = {"image_size", "resize", "filter", "filter_options", "data.channels"}  # in the pixels, an input
# What a stage may read without declaring it, and why it can do no harm.
EXCUSED = {
    "prepare": {
        **{f"submission.{k}": "of the inferred form, prepare takes the ids alone" for k in Submission.model_fields if k not in ("id", "name", "delimiter")},
    },
    "split": {"data.classes": "all of them stand in the index, an input; their order makes no folds wrong", "data.empty_class": "in words of an error"},
    "train": {
        **dict.fromkeys(STORE, "the pixels are an input, and have it in their name"),
        "predict.checkpoint": "in words, and for the score that status shows",
        "predict.views": "tried out before the first epoch, an error where the network cannot do them",
        "predict.weights": "in words",
    },
    "predict": {
        **dict.fromkeys(STORE, "the pixels are an input, and have it in their name"),
        **dict.fromkeys(
            ["task", "train.amp", "train.batch_size", "data.classes", "loss.balance", *(f"model.{k}" for k in Model.model_fields)],
            "declared by train, whose checkpoints are inputs",
        ),
    },
    "ensemble": {},
    "evaluate": {"split.groups": "in words of a warning", "data.channels": "of pictures; another one makes prepare stale"},
    "submit": {
        "data.on_error": "refuses, or does not; what is written is the same", "data.table": "by prepare's report, whose part of it is an input",
        "image_size": "in the record", "predict.views": "in the record",
    },
    "study": {"data.channels": "of pictures; another one makes prepare stale", "data.empty_class": "declared by evaluate, whose metrics are inputs"},
}
RUNS = {
    "prepare": ("small", []), "split": ("small", []), "split holdout": ("small", ["split.scheme=holdout"]),
    "train": ("small", []), "train to the best": ("small", ["predict.checkpoint=best", "train.patience=1", "train.mix=mixup", "train.sampling=annealed"]),
    "train otsu": ("otsu", []),
    "predict": ("small", []), "predict with the best": ("small", ["predict.checkpoint=best"]), "predict otsu": ("otsu", []),
    "ensemble": ("both", []), "ensemble mean": ("both", ["method=mean"]),
    "evaluate": ("both", []), "evaluate widely": ("small", ["evaluate.smooth=[0.0, 0.1]", "evaluate.agree=['no', mask]"]),
    "submit": ("both", []), "study": ("few", []),
}


class Here(ThreadPoolExecutor):
    """In place of prepare's processes: what they read is seen."""

    def __init__(self, *_):
        super().__init__(1)


@pytest.mark.parametrize("which", RUNS)
def test_a_stage_declares_every_setting_that_it_reads(copy, which, monkeypatch):
    """What is read and not declared lets old results pass for fresh ones."""
    stage, (name, overrides) = which.split()[0], RUNS[which]
    if stage == "study":
        assert main(line(copy, "study", config="few")) == 0
    config, paths = loaded(copy, name, *overrides)
    module = importlib.import_module(f"src.{stage}")
    if stage == "prepare":
        monkeypatch.setattr(module, "ProcessPoolExecutor", Here)
    jobs = [j for j in stages.plan(config, paths) if j.stage == stage]
    job = next((j for j in jobs if j.name == name), jobs[0])
    with watched(config) as read:
        module.run(job, config, paths, True)
    declared = set().union(*(j.keys for j in (jobs if stage == "prepare" else [job])))
    covered = declared | NEUTRAL | EXCUSED[stage].keys()
    covered |= {f"{k}[0]" for k in covered}
    assert read, "nothing was watched"
    assert not (lacking := sorted(read - covered)), f"{stage} reads {lacking}, and does not declare it"


def test_the_watch_sees_what_is_read_and_how_much_of_it(home):
    config, _ = loaded(home)
    with watched(config) as read:
        config.competition.evaluate.threshold[0], list(config.competition.evaluate.smooth), config.members[0].experiment.train.lr
        config.keys("split")
    assert read == {"evaluate.threshold[0]", "evaluate.smooth", "train.lr"}


def not_done(home: Path, *overrides: str, config: str = "small") -> set[str]:
    return {job.stage for job in stages.plan(*loaded(home, config, *overrides)) if not job.state().done}


JUDGING = ["score={dice: 1}", "evaluate.threshold=[0.4]", "data.empty_class=null"]


@pytest.mark.parametrize("setting", JUDGING)
def test_what_judges_epochs_makes_a_training_stale_only_where_it_decides_something(copy, setting):
    """Hours are at stake: with the last checkpoint and without patience no weight depends on it."""
    assert "train" not in not_done(copy, setting)
    assert not_done(copy, "predict.checkpoint=best") == {"predict"}, "judged by the same"
    assert "train" in not_done(copy, "predict.checkpoint=best", setting)
    for words in (["predict.checkpoint=best"], ["train.patience=1"]):
        assert main(line(copy, "train", config="small") + [w for s in words for w in ("--set", s)]) == 0
        assert "train" not in not_done(copy, *words) and "train" in not_done(copy, *words, setting)


def test_an_unfinished_training_does_not_go_on_under_another_score(copy):
    job = next(j for j in stages.plan(*loaded(copy, "small")) if j.stage == "train")
    job.record_file.write_text(json.dumps(job.record() | {"ended": None}))
    assert job.state().kind == "partial"
    other = next(j for j in stages.plan(*loaded(copy, "small", "score={dice: 1}")) if j.stage == "train")
    assert other.state().kind == "stale"


def test_a_record_that_does_not_say_what_judged_is_no_reason_to_train_for_hours_again(copy):
    for job in stages.plan(*loaded(copy, "small")):
        if job.stage == "train":
            record = job.record()
            record["keys"] = {k: v for k, v in record["keys"].items() if not k.startswith(("evaluate.", "data.empty"))}
            job.record_file.write_text(json.dumps(record))
    assert "train" not in not_done(copy) | not_done(copy, "predict.checkpoint=best")
    assert "train" in not_done(copy, "predict.checkpoint=best", "score={dice: 1}")


def test_an_ensemble_is_stale_when_what_weighs_its_members_changes(home):
    assert "ensemble" in not_done(home, "evaluate.threshold=[0.4]", config="both")
    assert "ensemble" not in not_done(home, "evaluate.threshold=[0.5, 0.4]", "evaluate.smooth=[0.1]", config="both")
