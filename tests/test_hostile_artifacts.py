"""Artifacts that are not what they should be; and what makes one of them stale, found out by
watching what the stages read."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, command_line, refused, write_configs

from src.__main__ import main
from src.config.load import load
from src.core.console import InputError
from src.core.paths import Paths
from src.core.setting_types import Strict
from src.core.settings import NEVER_STALE, Loss, Model, Submission
from src.data import tables
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.kaggle_io import client as kaggle
from src.kaggle_io import download, log, slugs
from src.kaggle_io import unzip as archives
from src.parts import losses, metrics
from src.parts.postprocess import Decision
from src.pipeline import jobs as stages
from src.pipeline import records
from src.stages import predict, train
from src.tools import bundle, fetch, infer

SMALL = """image_size: 64
model: {arch: unet, encoder: tu-lcnet_035, encoder_weights: none,
        options: {decoder_channels: [32, 16, 16, 8, 8]}}
train: {lr: 2.0e-3}
"""
OTSU = "image_size: 64\ntask: mask\nmodel: {arch: otsu}\n"
STUDY = (
    "question: Does a mask of more pixels help?\nbase: small\ngrid: {evaluate.threshold: [[0.4]]}\n"
)
SETTINGS = ["split.folds=2", "train.epochs=2", "train.workers=0", "evaluate.bootstrap=100"]


@pytest.fixture(scope="module")
def home(demo, tmp_path_factory) -> Path:
    """configs/, data/ and a finished run of an ensemble of a tiny network and otsu."""
    home = tmp_path_factory.mktemp("finished")
    few = (
        "question: Does a higher threshold help?\nbase: otsu\nset: {score: {dice: 1}}\n"
        "cells: {high: {evaluate.threshold: [0.6]}}\n"
    )
    both = "members: [small, otsu]\nmethod: greedy\n"
    write_configs(home, both=both, small=SMALL, otsu=OTSU, few=few)
    shutil.copytree(demo, home / "data")
    assert main(line(home)) == 0 and main(line(home, config="small")) == 0
    return home


@pytest.fixture
def copy(home, tmp_path) -> Path:
    return Path(shutil.copytree(home, tmp_path / "home"))


def line(home: Path, *words: str, config: str = "both") -> list[str]:
    return command_line(home, *words, config=config, sets=SETTINGS)


def loaded(home: Path, name: str = "both", *overrides: str):
    config = load(home / "configs" / f"{name}.yaml", [*SETTINGS, *overrides])
    paths = Paths(home, home / "data")
    return config, paths.studies(config.competition.split) if config.study else paths


# --------------------------------------------------------------- what is read is what makes stale


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
            if (where, what) in DECLARING or where == "jobs.py" and what.endswith("_job"):
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


DECLARING = {("config.py", "keys"), ("jobs.py", "plan"), ("jobs.py", "untuned")}
STORE = {
    "image_size",
    "resize",
    "filter",
    "filter_options",
    "data.channels",
}  # in the pixels, an input
# What a stage may read without declaring it, and why it can do no harm.
EXCUSED = {
    "prepare": {
        **{
            f"submission.{k}": "of the inferred form, prepare takes the ids alone"
            for k in Submission.model_fields
            if k not in ("id", "name", "delimiter")
        },
    },
    "split": {
        "data.classes": "all of them are in the index, an input; their order makes no folds wrong",
        "data.empty_class": "in words of an error",
    },
    "train": {
        **dict.fromkeys(STORE, "the pixels are an input, and have it in their name"),
        "predict.checkpoint": "in words, and for the score that status shows",
        "predict.tta": "tried out before the first epoch, an error where the network cannot",
        "predict.weights": "in words",
    },
    "predict": {
        **dict.fromkeys(STORE, "the pixels are an input, and have it in their name"),
        **dict.fromkeys(
            [
                "task",
                "train.amp",
                "train.batch_size",
                "data.classes",
                "loss.mask_weight",
                *(f"model.{k}" for k in Model.model_fields),
            ],
            "declared by train, whose checkpoints are inputs",
        ),
    },
    "ensemble": {},
    "evaluate": {
        "split.groups": "in words of a warning",
        "data.channels": "of pictures; another one makes prepare stale",
    },
    "submit": {
        "data.on_error": "refuses, or does not; what is written is the same",
        "data.table": "by prepare's report, whose part of it is an input",
        "members": "to check weights.json by; declared by ensemble, whose predictions are an input",
    },
    "study": {
        "data.channels": "of pictures; another one makes prepare stale",
        "data.empty_class": "declared by evaluate, whose metrics are inputs",
    },
}
RUNS = {
    "prepare": ("small", []),
    "split": ("small", []),
    "split holdout": ("small", ["split.scheme=holdout"]),
    "train": ("small", []),
    "train to the best": (
        "small",
        [
            "predict.checkpoint=best",
            "train.patience=1",
            "train.mix=mixup",
            "train.sampling=annealed",
        ],
    ),
    "train otsu": ("otsu", []),
    "predict": ("small", []),
    "predict with the best": ("small", ["predict.checkpoint=best"]),
    "predict otsu": ("otsu", []),
    "ensemble": ("both", []),
    "ensemble mean": ("both", ["method=mean"]),
    "evaluate": ("both", []),
    "evaluate widely": ("small", ["evaluate.smooth=[0.0, 0.1]", "evaluate.agree=['no', mask]"]),
    "submit": ("both", []),
    "study": ("few", []),
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
    module = importlib.import_module(f"src.stages.{stage}")
    if stage == "prepare":
        monkeypatch.setattr(module, "ProcessPoolExecutor", Here)
    jobs = [j for j in stages.plan(config, paths) if j.stage == stage]
    job = next((j for j in jobs if j.name == name), jobs[0])
    with watched(config) as read:
        job.redo()
        module.run(job, config, paths)
    declared = set().union(*(j.keys for j in (jobs if stage == "prepare" else [job])))
    covered = declared | NEVER_STALE | EXCUSED[stage].keys()
    covered |= {f"{k}[0]" for k in covered}
    assert read, "nothing was watched"
    assert not (lacking := sorted(read - covered)), (
        f"{stage} reads {lacking}, and does not declare it"
    )


def test_the_watch_sees_what_is_read_and_how_much_of_it(home):
    config, _ = loaded(home)
    with watched(config) as read:
        (
            config.competition.evaluate.threshold[0],
            list(config.competition.evaluate.smooth),
            config.members[0].experiment.train.lr,
        )
        config.keys("split")
    assert read == {"evaluate.threshold[0]", "evaluate.smooth", "train.lr"}


def not_done(home: Path, *overrides: str, config: str = "small") -> set[str]:
    return {
        job.stage for job in stages.plan(*loaded(home, config, *overrides)) if not job.state().done
    }


JUDGING = ["score={dice: 1}", "evaluate.threshold=[0.4]", "data.empty_class=null"]


@pytest.mark.parametrize("setting", JUDGING)
def test_what_judges_epochs_makes_a_training_stale_only_where_it_decides_something(copy, setting):
    """Hours are at stake: with the last checkpoint and without patience no weight depends on it."""
    assert "train" not in not_done(copy, setting)
    assert not_done(copy, "predict.checkpoint=best") == {"predict"}, "judged by the same"
    assert "train" in not_done(copy, "predict.checkpoint=best", setting)
    for words in (["predict.checkpoint=best"], ["train.patience=1"]):
        assert (
            main(line(copy, "train", config="small") + [w for s in words for w in ("--set", s)])
            == 0
        )
        assert "train" not in not_done(copy, *words) and "train" in not_done(copy, *words, setting)


def test_an_unfinished_training_does_not_go_on_under_another_score(copy):
    job = next(j for j in stages.plan(*loaded(copy, "small")) if j.stage == "train")
    job.record_file.write_text(json.dumps(job.record() | {"ended": None}))
    assert job.state().kind == "begun"
    other = next(
        j for j in stages.plan(*loaded(copy, "small", "score={dice: 1}")) if j.stage == "train"
    )
    assert other.state().kind == "stale"


def test_a_record_that_does_not_say_what_judged_is_no_reason_to_train_for_hours_again(copy):
    for job in stages.plan(*loaded(copy, "small")):
        if job.stage == "train":
            record = job.record()
            record["keys"] = {
                k: v
                for k, v in record["keys"].items()
                if not k.startswith(("evaluate.", "data.empty"))
            }
            job.record_file.write_text(json.dumps(record))
    assert "train" not in not_done(copy) | not_done(copy, "predict.checkpoint=best")
    assert "train" in not_done(copy, "predict.checkpoint=best", "score={dice: 1}")


def test_an_ensemble_is_stale_when_what_weighs_its_members_changes(home):
    assert "ensemble" in not_done(home, "evaluate.threshold=[0.4]", config="both")
    assert "ensemble" not in not_done(
        home, "evaluate.threshold=[0.5, 0.4]", "evaluate.smooth=[0.1]", config="both"
    )


# ---------------------------------------------------------------- the same inputs, the same bytes


def test_distances_between_outlines_are_the_same_wherever_they_lie_in_memory():
    """cv2.distanceTransform gave another last digit from run to run; these are exact."""
    rng = np.random.default_rng(0)
    pred, true = (rng.random((2, 90, 150)) > 0.999).repeat(3, 1)[:, :90]
    there, back = metrics.outline_distances(pred, true)
    for found, own, other in ((there, pred, true), (back, true, pred)):
        a, b = np.argwhere(metrics.outline(own)), np.argwhere(metrics.outline(other))
        squares = ((a[:, None] - b[None]) ** 2).sum(2).min(1)
        assert np.array_equal(found, np.sqrt(squares.astype(float)))


def test_maps_of_contours_are_exact():
    mask = np.zeros((64, 64), np.float32)
    mask[20:40, 10:50] = 1
    distances = losses.contour_distance(mask, Loss()) * 64 + 0.5
    assert np.allclose(distances**2, np.rint(distances**2), atol=2e-3)
    assert np.array_equal(
        losses.distance_to_zero(mask > 0), np.sqrt(np.rint(losses.distance_to_zero(mask > 0) ** 2))
    )


def test_evaluate_writes_the_same_bytes_every_time(home, copy):
    """With another seed of hashes, another number of threads, another memory."""
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    words = [sys.executable, "-c", RUN_ENSEMBLE, *line(copy, "--force")]
    subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True)
    for name in ("metrics.json", "per_image.csv", "decision.json", "report.html", "weights.json"):
        then, now = (
            (folder / "artifacts/predictions/both" / name).read_bytes() for folder in (home, copy)
        )
        assert then == now, name


RUN_ENSEMBLE = """import sys
from src.__main__ import main
sys.exit(main(["ensemble", *sys.argv[1:]]) or main(["evaluate", *sys.argv[1:]]))
"""


# ------------------------------------------------------------------------------------ predictions


def arrays(**changes) -> dict:
    found = {
        "ids": np.array(["a", "b"]),
        "classes": np.array(["x", "y"]),
        "mask": np.full((2, 4, 4), 0.5, np.float16),
        "label": np.full((2, 2), 0.5, np.float32),
    }
    return {k: v for k, v in (found | changes).items() if v is not None}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"mask": np.full((2, 4, 4), 0.5 + 0j)}, "mask holds complex128"),
        ({"mask": np.full((2, 4, 4), "0.5")}, "mask holds <U3"),
        ({"mask": np.ones((2, 4, 4), int)}, "mask holds int64"),
        ({"mask": np.ones((2, 4, 4), bool)}, "mask holds bool"),
        ({"mask": np.full((2, 4, 4), None)}, "mask holds object"),
        ({"mask": np.zeros((2, 0, 0), np.float16)}, "mask has shape (2, 0, 0)"),
        ({"mask": np.zeros((2, 4, 5), np.float16)}, "mask has shape (2, 4, 5)"),
        ({"label": np.ones((2, 2), int)}, "label holds int64"),
        ({"label": np.full((2, 2), 0.5 + 0j)}, "label holds complex128"),
        ({"label": np.full((2, 3), 0.3, np.float32)}, "label has shape (2, 3)"),
        ({"ids": np.array([["a"], ["b"]])}, "ids has shape (2, 1)"),
        ({"ids": np.array("a")}, "ids has shape ()"),
        (
            {"ids": np.zeros(0, "U1"), "mask": np.zeros((0, 4, 4), np.float16), "label": None},
            "ids has shape (0,)",
        ),
        ({"ids": np.array([0.5, 1.5])}, "ids holds float64"),
        ({"ids": None}, "there are no ids"),
        ({"classes": None}, "there are no classes"),
        ({"classes": np.array([["x", "y"]])}, "classes has shape (1, 2)"),
        ({"mask": None, "label": None}, "neither mask nor label"),
    ],
)
def test_predictions_of_another_form_are_refused_by_name(tmp_path, changes, words):
    np.savez(tmp_path / "p.npz", **arrays(**changes))
    with refused("predictions_damaged", words) as raised:
        Predictions.load(tmp_path / "p.npz", ["x", "y"])
    assert "allow_pickle" not in str(raised.value)


def test_probabilities_of_classes_add_up_to_one(tmp_path):
    np.savez(tmp_path / "p.npz", **arrays(label=np.full((2, 2), 0.7, np.float32)))
    with refused("predictions_values", "add up to 1"):
        Predictions.load(tmp_path / "p.npz", ["x", "y"])
    np.savez(tmp_path / "p.npz", **arrays())
    assert len(Predictions.load(tmp_path / "p.npz", ["x", "y"])) == 2


def test_an_array_that_claims_more_than_it_holds_is_not_read(tmp_path):
    """A header may promise more than there is memory."""
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        for name, values in arrays().items():
            text = io.BytesIO()
            np.save(text, values)
            data = text.getvalue()
            if name == "mask":
                data = data[:-8]
            archive.writestr(f"{name}.npy", data)
    with refused("predictions_damaged", "mask is cut short"):
        Predictions.load(tmp_path / "p.npz", ["x", "y"])


# ------------------------------------------------------------------------ tables, pixels, records


def told(home: Path, capfd, *words: str, config: str = "both", sets: tuple = ()) -> str:
    """The one line that a command ends with."""
    capfd.readouterr()
    code = main(line(home, *words, config=config) + [w for s in sets for w in ("--set", s)])
    err = capfd.readouterr().err
    errors = [text for text in err.splitlines() if text.startswith("error: ")]
    assert (
        code == 2
        and len(errors) == 1
        and "fault of the program" not in err
        and "Traceback" not in err
    ), err
    return errors[0]


def test_folds_beyond_all_numbers_are_named(copy, capfd):
    folds = copy / "artifacts" / "folds.csv"
    text = folds.read_text()
    folds.write_text(text.replace(",1\n", f",{10**30}\n", 1))
    said = told(copy, capfd, "train", config="small")
    assert "[folds_damaged]" in said and "from -1 to 9999" in said
    folds.write_text(text.replace(",1\n", ",٣\n", 1))
    assert "[folds_damaged]" in told(copy, capfd, "train", config="small")


def test_folds_that_are_a_folder_or_doubled_columns(copy, capfd):
    folds = copy / "artifacts" / "folds.csv"
    text = folds.read_text()
    folds.write_text("\n".join(row + ("," + row.split(",")[1]) for row in text.splitlines()))
    assert "[folds_damaged]" in told(copy, capfd, "train", config="small")
    folds.unlink()
    folds.mkdir()
    assert "[file_or_folder]" in told(copy, capfd, "split", config="small")


def test_fold_numbers_may_have_gaps(copy):
    folds = copy / "artifacts" / "folds.csv"
    folds.write_text(folds.read_text().replace(",1\n", ",7\n"))
    config, paths = loaded(copy, "small")
    assert stages.folds(config, paths) == [0, 7]


@pytest.mark.parametrize("spoil", ["header", "shape", "gone", "archive"])
def test_a_damaged_pixel_store_is_named(copy, spoil, capfd):
    file = copy / "artifacts/prepared/images_64.npy"
    if spoil == "header":
        file.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': nonsense" + file.read_bytes()[28:])
    elif spoil == "shape":
        np.save(file, np.load(file)[:, :32])
    elif spoil == "archive":
        with open(file, "wb") as data:
            np.savez(data, a=np.zeros(1))
    else:
        file.unlink()
    code = "no_pixels" if spoil == "gone" else "pixels_damaged"
    with refused(code):
        tables.open_store(file, 24, 64)
    config, paths = loaded(copy, "small")
    job = next(j for j in stages.plan(config, paths) if j.stage == "train")
    with refused(code):  # the stage itself, whatever its record says
        train.train(job, config, paths)


@pytest.mark.parametrize(
    "column, value",
    [
        ("set", "tran"),
        ("height", "0"),
        ("height", str(10**30)),
        ("width", "150.5"),
        ("width", "70000"),
        ("area", "9e9"),
        ("area", ""),
        ("group", "-1"),
        ("id", ""),
    ],
)
def test_a_damaged_index_is_named(home, tmp_path, column, value):
    paths = Paths(tmp_path, tmp_path)
    paths.prepared.mkdir(parents=True)
    rows = [
        text.split(",") for text in (home / "artifacts/prepared/index.csv").read_text().splitlines()
    ]
    rows[1][rows[0].index(column)] = value
    paths.index.write_text("\n".join(map(",".join, rows)))
    with refused("index_damaged"):
        tables.read_index(paths)


@pytest.mark.parametrize(
    "name, change",
    [
        ("offsets", lambda a: a[::-1]),
        ("offsets", lambda a: a[:-1]),
        ("runs", lambda a: a * 10**6),
        ("runs", lambda a: -a),
        ("runs", lambda a: a.astype(float)),
        ("sizes", lambda a: a * 0),
        ("sizes", lambda a: a[:, :1]),
        ("ids", lambda a: a[None]),
        ("ids", lambda a: a.astype(object)),
    ],
)
def test_damaged_true_masks_are_named(home, tmp_path, name, change):
    with np.load(home / "artifacts/prepared/truth.npz") as file:
        found = {k: file[k] for k in file.files}
    np.savez(tmp_path / "truth.npz", **found | {name: change(found[name])})
    with refused("truth_damaged"):
        Truth.load(tmp_path / "truth.npz")


def test_a_damaged_remark_about_rounding_is_made_anew(copy, monkeypatch):
    """weights_fold0.json lies there only until predict is finished."""
    config, paths = loaded(copy, "small")
    for content in ("[]", "{", '{"weights": "float8"}', '{"weights": [1]}', "[" * 10**5):
        paths.rounding("small", 0).write_text(content)
        assert predict.read_rounding(paths.rounding("small", 0)) == ""
    job = next(j for j in stages.plan(config, paths) if j.stage == "predict")
    record = job.record()
    record["ended"] = None
    job.record_file.write_text(json.dumps(record))
    paths.part("small", 1, "test").write_bytes(b"half of it")
    before = paths.test("small").read_bytes()
    paths.test("small").unlink()
    predict.run(job, config, paths)
    assert paths.test("small").read_bytes() == before


WRONG = [
    [],
    {},
    None,
    1,
    "text",
    {"nested": []},
    {"nested": {"score": "much"}},
    {"mask": 1, "label": 2},
    {"name": 1, "files": [], "networks": {}},
]


@pytest.mark.parametrize("content", [*map(json.dumps, WRONG), "", "{", "[" * 10**5, "\udcff"])
def test_records_of_another_kind_are_named(home, tmp_path, content):
    paths = Paths(tmp_path, tmp_path)
    readers = {
        paths.metrics("x"): lambda: records.read_metrics(paths, "x"),
        paths.weights("x"): lambda: records.read_weights(paths, "x", ["a"]),
        paths.manifest: lambda: infer.check(paths),
        paths.decision("x"): lambda: Decision.load(paths.decision("x")),
    }
    for file, read in readers.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(InputError, match=file.name) as raised:
            read()
        codes = ("damaged_json", "decision_key" if "decision" in file.name else "damaged_json")
        assert raised.value.code in codes


@pytest.mark.parametrize(
    "stage, file",
    [
        ("submit", "metrics.json"),
        ("submit", "weights.json"),
        ("submit", "decision.json"),
        ("bundle", "weights.json"),
        ("bundle", "metrics.json"),
    ],
)
def test_a_stage_names_the_record_that_is_damaged(copy, stage, file, capfd):
    """Of the right length, so that only reading it tells."""
    place = copy / "artifacts/predictions/both" / file
    place.write_text("[]".ljust(place.stat().st_size))
    if stage == "submit":
        (copy / "submissions/both.json").unlink()
    said = told(copy, capfd, stage)
    assert file in said or "rests on" in said or "stale" in said


def test_a_decision_of_too_many_parts_is_refused():
    with refused("invalid_value", "largest"):
        Decision.from_dict(asdict(Decision()) | {"largest": 10**400}, Path("decision.json"))


@pytest.mark.parametrize(
    "content", ["[]", "1", "{", '{"competition": 3}', '{"competition": ["a"]}', "[" * 10**5]
)
def test_a_damaged_note_of_what_was_fetched_is_as_good_as_none(tmp_path, content, capfd):
    paths = Paths(tmp_path, tmp_path)
    paths.fetched.write_text(content)
    given = argparse.Namespace(competition=None)
    config = load(ROOT / "configs" / "cpu.yaml", ["slug=null"])
    with refused("no_contest_named"):
        slugs.slug_of(given, config, paths)
    assert fetch.read_fetched(paths, "a") is None
    home = tmp_path / ".fetch"
    home.mkdir()
    for note in (content, '{"of": "a", "mark": []}', '{"of": "a", "mark": {"bytes": "1"}}'):
        (home / "mark.json").write_text(note)
        (home / "archive.part").write_bytes(b"1")
        assert download.PartialDownload(tmp_path, "a").mark is None


@pytest.mark.parametrize(
    "files", [["a"], {"a": 1}, {"a": {"bytes": "1", "crc": "0"}}, {"a": {"bytes": 1, "crc": "x"}}]
)
def test_a_note_of_what_was_fetched_with_odd_files_is_as_good_as_none(tmp_path, files):
    paths, mark = Paths(tmp_path, tmp_path), {"etag": "e", "modified": None, "bytes": 1}
    good = {"competition": "a", "dataset": None, "when": "now", "archive": mark, "files": {}}
    paths.fetched.write_text(json.dumps(good))
    assert fetch.read_fetched(paths, "a").files == {}
    paths.fetched.write_text(json.dumps(good | {"files": files}))
    assert fetch.read_fetched(paths, "a") is None


# ----------------------------------------------------------------------------------------- Kaggle


def sent(ref: str, when: str) -> kaggle.RemoteSubmission:
    return kaggle.RemoteSubmission(ref, when, "e.csv", "one", "complete", public=0.5)


def row(**changes) -> log.Row:
    return log.Row(
        "2026-11-20T10:00:00Z", "slug", "e.csv", message="one", status="unconfirmed", **changes
    )


def test_an_unconfirmed_submission_does_not_take_the_score_of_an_older_one(tmp_path):
    """The same file and message may have gone there before, from the web page."""
    log.edit(tmp_path / "log.csv", lambda rows: rows.append(row()))
    older, own, later = (
        sent("1", "2026-11-20T09:00:00Z"),
        sent("2", "2026-11-20T09:59:30Z"),
        sent("3", "2026-11-20T11:00:00Z"),
    )
    assert log.find_unconfirmed(row(), [later, own, older]) == own, "the clocks may differ a little"
    assert log.find_unconfirmed(row(), [older]) is None
    found = log.refresh(tmp_path / "log.csv", "slug", [later, own, older])
    assert [(r.ref, r.status) for r in found] == [("2", "complete")]


@pytest.mark.parametrize("spoil", ["folder", "nan"])
def test_a_damaged_log_of_submissions_is_named(tmp_path, spoil):
    file = tmp_path / "log.csv"
    if spoil == "folder":
        file.mkdir()
    else:
        log.edit(file, lambda rows: rows.append(row(cv=0.5)))
        file.write_text(file.read_text().replace("0.5", "nan"))
    with refused("log_damaged"):
        log.read(file)


def test_a_package_that_lacks_a_request_is_named_with_the_version_needed(monkeypatch):
    older = types.SimpleNamespace(KaggleApi=type("KaggleApi", (), {}))
    client = object.__new__(kaggle.Kaggle)
    monkeypatch.setitem(sys.modules, "kaggle.api.kaggle_api_extended", older)
    monkeypatch.setattr(client, "_request", lambda *_, **__: None, raising=False)
    for ask in (kaggle.Kaggle, lambda: client.download("a-contest")):
        with refused("kaggle_too_old", kaggle.NEEDED) as raised:
            ask()
        assert "\n" not in str(raised.value)
    assert f"kaggle>={kaggle.NEEDED}" in (ROOT / "requirements.txt").read_text()


def test_a_client_without_the_part_that_is_asked_for_is_no_fault(monkeypatch):
    client = object.__new__(kaggle.Kaggle)
    client.secrets = []
    client.api = types.SimpleNamespace(build_kaggle_client=lambda: contextlib.nullcontext(object()))
    known = types.SimpleNamespace(ApiAskRequest=type("Ask", (), {}))
    monkeypatch.setitem(sys.modules, "kagglesdk.competitions.types.competition_api_service", known)
    assert client._request("a", "competition", "ask") is None


# -------------------------------------------------------------------------------- archives, links


def zipped(file: Path, *names: str) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return file


def test_names_that_differ_only_in_case_are_refused_where_the_disk_takes_them_for_one(
    tmp_path, monkeypatch
):
    file = zipped(tmp_path / "a.zip", "x/A.png", "x/a.png")
    monkeypatch.setattr(archives, "is_case_sensitive", lambda folder: False)
    with refused("archive_twice"):
        archives.unpack(file, tmp_path / "out", 10**6)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(archives, "is_case_sensitive", lambda folder: True)
    assert archives.unpack(file, tmp_path / "out", 10**6).new == 2


def test_an_archive_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_FILES", 2)
    with refused("archive_too_large", "more than 2 files"):
        archives.unpack(zipped(tmp_path / "a.zip", "a", "b", "c"), tmp_path / "out", 10**6)


def test_no_link_at_a_temporary_name_is_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".a.part").symlink_to(precious)
    archives.unpack(zipped(tmp_path / "a.zip", "a"), folder, 10**6)
    assert precious.read_text() == "mine" and (folder / "a").read_text() == "a"

    (folder / ".fetch").mkdir()
    (folder / ".fetch" / "archive.part").symlink_to(precious)
    (folder / ".fetch" / "mark.json").write_text(
        json.dumps({"of": "x", "mark": {"etag": "e", "modified": None, "bytes": 9}})
    )
    part = download.PartialDownload(folder, "x")
    assert part.mark is None
    part.begin(kaggle.Mark(etag="e", modified=None, bytes=9))
    assert precious.read_text() == "mine" and not part.file.is_symlink()
    part.drop()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (folder / ".fetch").symlink_to(elsewhere)
    download.PartialDownload(folder, "x").begin(kaggle.Mark(etag="e", modified=None, bytes=9))
    assert (elsewhere / "kept").is_file() and not (folder / ".fetch").is_symlink()

    (tmp_path / ".bundle.part").symlink_to(elsewhere)
    with bundle.replacing_folder(tmp_path / "bundle") as inside:
        (inside / "new").touch()
    assert (tmp_path / "bundle" / "new").is_file() and [f.name for f in elsewhere.iterdir()] == [
        "kept"
    ]


def test_a_damaged_stamp_of_an_earlier_infer_is_as_good_as_none(home, tmp_path):
    config, paths = loaded(home, "small")
    scratch = Paths(tmp_path, paths.data)
    stamp = scratch.record("predict", "small")
    for content in ("", "{", "[" * 10**5):
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(content)
        scratch.oof("small").touch()
        infer.clear_scratch(scratch, config, paths, [], afresh=False)
        assert json.loads(stamp.read_text())["ids"] == [] and not scratch.oof("small").exists()


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"runs": []}', '{"runs": {"order": "spiral"}}', "[" * 10**5, "{"]
)
def test_a_damaged_report_of_the_images_is_named_before_masks_are_written(copy, content, capfd):
    """Its words on run lengths lost, masks would be written in the usual order, right or wrong."""
    report = copy / "artifacts/prepared/report.json"
    report.write_text(content.ljust(report.stat().st_size))
    config, paths = loaded(copy)
    assert stages.train_runs(paths) is None
    with refused("damaged_json"):
        stages.form_of(config, paths)
    assert main(line(copy, "status")) == 0
