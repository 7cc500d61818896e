"""Each stage's keys, inputs and outputs, declared once: what the driver, `status` and the stages themselves go by."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from src.config.load import Config
from src.core.console import InputError
from src.core.freshness import Job, folder_fingerprint, index_ids, rows_fingerprint
from src.core.paths import Paths, anchored, store_name
from src.data.files import data_files
from src.data.tables import is_fold
from src.pipeline.records import read_runs
from src.submission.form import Form, infer
from src.submission.preview import preview_form
from src.submission.sample import sample_file

STAGES = [
    "prepare",
    "split",
    "train",
    "predict",
    "ensemble",
    "evaluate",
    "submit",
]  # study is all but the last of every cell, and the table


def plan(config: Config, paths: Paths) -> list[Job]:
    """Every job from the data to the submission (of a study: to its table), in order, as things stand now."""
    if config.study:
        of_cells = {
            job.title: job
            for cell in config.members
            for job in plan(cell, paths)
            if job.stage != "submit"
        }
        return [*of_cells.values(), study_job(config, paths)]
    stores = {store_name(c.experiment): c for c in config.experiments}
    jobs = [
        prepare_job(config, paths),
        *(store_job(c, paths) for c in stores.values()),
        split_job(config, paths),
    ]
    for c in config.experiments:
        jobs += [train_job(c, paths, k) for k in folds(c, paths)]
        jobs.append(predict_job(c, paths))
    if config.ensemble:
        jobs += [evaluate_job(c, paths) for c in config.members]
        jobs.append(ensemble_job(config, paths))
    jobs.append(evaluate_job(config, paths))
    if has_test(paths) and sample_of(config, paths).is_file() and not unanswered(config, paths):
        jobs.append(submit_job(config, paths))
    return jobs


def sample_of(config: Config, paths: Paths) -> Path:
    return sample_file(config.competition, paths.data)


def form_of(config: Config, paths: Paths) -> Form:
    """The form of the submission, with all that prepare found out; raises InputError where the sample does not say it, or that is damaged."""
    if paths.report.is_file():
        read_runs(paths)
    return infer(
        sample_of(config, paths),
        config.competition,
        index_ids(paths.index, "test"),
        train_runs(paths),
    )


def train_runs(paths: Paths) -> dict | None:
    """What prepare found out about the run lengths of the train table; None where there are none."""
    try:
        return read_runs(paths)
    except InputError:  # not there, or damaged: said where it matters, not by a plan
        return None


def glance_of(config: Config, paths: Paths) -> Form | None:
    return preview_form(
        sample_of(config, paths), config.competition, index_ids(paths.index, "test")
    )


def unanswered(config: Config, paths: Paths) -> str:
    """The column that the sample asks for and this experiment, or all of an ensemble's, does not answer; ''."""
    tasks = {c.experiment.task for c in config.experiments}
    known = config.experiment or len(config.experiments) == len(
        config.ensemble.members
    )  # a team mate's predictions may answer anything
    lacks = (
        {"mask": "label", "class": "mask"}.get(tasks.pop()) if known and len(tasks) == 1 else None
    )
    return form.asks.get(lacks, "") if lacks and (form := glance_of(config, paths)) else ""


def has_test(paths: Paths) -> bool:
    return bool(rows_fingerprint(paths.index, "test")) or not paths.index.is_file()


def folds(config: Config, paths: Paths) -> list[int]:
    """The folds to train: those of folds.csv where that is up to date (users edit it), else those that split will make."""
    if split_job(config, paths).state().done:
        found = set()
        try:
            with open(paths.folds, newline="", encoding="utf-8-sig", errors="replace") as lines:
                found = {(row.get("fold") or "").strip() for row in csv.DictReader(lines)}
        except (OSError, csv.Error):
            pass
        if found and all(map(is_fold, found)):  # else read_folds says what is wrong
            return sorted({int(f) for f in found} - {-1})
    return (
        list(range(config.competition.split.folds))
        if config.competition.split.scheme == "kfold"
        else [0]
    )


def prepare_job(config: Config, paths: Paths) -> Job:
    inputs: dict[str, Path | str] = {
        "the data": folder_fingerprint(data_files(paths.data), paths.data, paths)
    }
    if (
        sample := sample_of(config, paths)
    ).is_file() and sample.suffix.lower() != ".csv":  # those are of the data
        inputs["the sample of the submission"] = sample
    counted = (
        ("order", "first_pixel", "relative_starts", "empty", "size")
        if (paths.data / config.competition.data.table).is_file()
        else ()
    )  # of run lengths in the table
    keys = config.keys("data", *(f"submission.{k}" for k in ("id", "name", "delimiter", *counted)))
    return Job(
        "prepare",
        "",
        paths,
        paths.record("prepare"),
        keys,
        inputs,
        [paths.index, paths.report, paths.truth],
        sources=["src/stages/prepare.py"],
    )


def store_job(config: Config, paths: Paths) -> Job:
    e = config.experiment
    outputs = [
        paths.images(e),
        paths.masks(e),
    ]
    inputs = {
        "the train images": rows_fingerprint(paths.index, "train"),
        "the test images": rows_fingerprint(paths.index, "test") or "none",
        "the data": prepare_job(config, paths).inputs["the data"],
    }
    if rows_fingerprint(paths.index, "test"):
        outputs.append(paths.images(e, "test"))
    name = outputs[1].stem.replace("masks", "pixels")
    return Job(
        "prepare",
        name,
        paths,
        paths.record("store", name),
        config.keys("image_size", "resize", "filter", "filter_options", "data.channels"),
        inputs,
        outputs,
        sources=["src/stages/prepare.py", "src/parts/filters.py"],
        details={"experiment": e},
    )


def split_job(config: Config, paths: Paths) -> Job:
    return Job(
        "split",
        "",
        paths,
        paths.record("split"),
        config.keys("split"),
        {"the train images": rows_fingerprint(paths.index, "train")},
        [paths.folds],
        made_by={"the train images": "prepare"},
        sources=["src/stages/split.py"],
        editable=[paths.folds],
    )


def train_job(config: Config, paths: Paths, fold: int) -> Job:
    e = config.experiment
    inputs = {
        "the train images": rows_fingerprint(paths.index, "train"),
        "folds.csv": paths.folds,
        "the pixels": paths.images(e),
        "the masks": paths.masks(e),
    }
    outputs = [
        paths.checkpoint(config.name, fold, "last"),
        paths.checkpoint(config.name, fold, "best"),
        paths.log(config.name, fold),
    ]
    if Path(e.model.encoder_weights).suffix:
        inputs["model.encoder_weights"] = anchored(e.model.encoder_weights)
    judged_by = config.keys("score", "data.empty_class") | untuned(config)
    keys = config.keys("data.classes", "task", "image_size", "resize", "model", "loss", "train")
    sources = ["src/stages/train.py", "src/training/loop.py", "src/core/pretrained.py"]
    sources += [
        f"src/parts/{p}.py"
        for p in ("models", "losses", "augment", "heads", "transfer", "monai_networks", "fitted")
    ]
    job = Training(
        "train",
        config.name,
        paths,
        paths.record("train", config.name, fold),
        keys | judged_by,
        inputs,
        outputs,
        fold=fold,
        sources=sources,
        made_by={
            "the train images": "prepare",
            "folds.csv": "split",
            "the pixels": "prepare",
            "the masks": "prepare",
        },
    )
    job.details |= {
        "extras": [paths.curves(config.name, fold), paths.onnx(config.name, fold)],
        "judged_by": set(judged_by),
    }
    job.details["reads"] = [paths.truth]  # prepared with the index: no input of its own
    job.details["judged"] = e.predict.checkpoint == "best" or e.train.patience > 0
    return job


class Training(Job):
    """The training of a fold. details: `judged_by`, the keys by which an epoch is called the best;
    `judged`, whether that decides anything.

    Hours are at stake. Where predict uses the last checkpoint and nothing stops early, the score
    only decides which epoch is copied to best.pt, and which numbers stand in log.csv. Then another
    score leaves a finished fold as it is. But the record keeps by what the epochs were judged: when
    predict.checkpoint becomes `best`, a best.pt that another score has chosen is stale. One that was
    not finished starts over: its best so far cannot be compared with what comes.
    """

    def changed(self, record: dict) -> str:
        then, judged_by = record["keys"], self.details["judged_by"]
        if not self.details["judged"] and record.get("ended"):
            same = judged_by
        else:  # records of older versions do not name all of these: nothing is known against them
            same = judged_by - then.keys()
        keys = {k: v for k, v in then.items() if k not in same}
        keys |= json.loads(json.dumps({k: self.keys[k] for k in same}))
        return super().changed(record | {"keys": keys})


def untuned(config: Config, *names: str) -> dict[str, Any]:
    """The first value of the lists of `evaluate` (by default of all), which make up the untuned
    decision: {'evaluate.threshold[0]': 0.5, …}. The others are only searched by evaluate."""
    lists = {name: tried for name, tried in config.competition.evaluate if isinstance(tried, list)}
    return {f"evaluate.{name}[0]": lists[name][0] for name in names or lists}


def predict_job(config: Config, paths: Paths) -> Job:
    e = config.experiment
    inputs: dict[str, Path | str] = {
        "the train images": rows_fingerprint(paths.index, "train"),
        "the train pixels": paths.images(e),
    }
    outputs = [paths.oof(config.name)]
    if has_test(paths):
        inputs |= {
            "the test images": rows_fingerprint(paths.index, "test"),
            "the test pixels": paths.images(e, "test"),
        }
        outputs.append(paths.test(config.name))
    if e.predict.weights == "auto":
        inputs["the truth"] = paths.truth
    made_by = dict.fromkeys(inputs, "prepare")
    for k in folds(config, paths):
        inputs[f"fold {k}"] = paths.checkpoint(config.name, k, e.predict.checkpoint)
        made_by[f"fold {k}"] = f"train --fold {k}"
    parts = [
        p
        for k in folds(config, paths)
        for p in (
            paths.part(config.name, k, "oof"),
            paths.part(config.name, k, "test"),
            paths.rounding(config.name, k),
        )
    ]
    return Job(
        "predict",
        config.name,
        paths,
        paths.record("predict", config.name),
        config.keys("image_size", "resize", "predict"),
        inputs,
        outputs,
        made_by=made_by,
        sources=[
            "src/stages/predict.py",
            "src/training/inference.py",
            "src/training/checkpoint.py",
            "src/parts/tta.py",
            "src/scoring/images.py",
            "src/parts/metrics.py",
        ],
        details={"extras": parts},
    )


def weights_used(config: Config, paths: Paths, fold: int) -> str:
    """'float16' or 'float32': how predict used this fold's weights; float32 as long as it has not decided."""
    setting = config.experiment.predict.weights
    return (
        ((predict_job(config, paths).record() or {}).get("weights") or {}).get(str(fold), "float32")
        if setting == "auto"
        else setting
    )


def member_folder(config: Config, paths: Paths, member: str) -> Path:
    """A member is the name of predictions in artifacts/predictions/, or a folder with oof.npz and test.npz."""
    folder = paths.predictions(member)
    beside = Path(member).expanduser()
    return beside if not folder.is_dir() and beside.is_dir() else folder


def ensemble_job(config: Config, paths: Paths) -> Job:
    inputs: dict[str, Path | str] = {}
    made_by = {}
    outputs = [paths.oof(config.name), paths.weights(config.name)]
    for member in config.ensemble.members:
        folder = member_folder(config, paths, member)
        inputs[f"{member} oof"] = folder / paths.oof(config.name).name
        if has_test(paths):
            inputs[f"{member} test"] = folder / paths.test(config.name).name
        if any(c.name == member for c in config.members):
            made_by |= {f"{member} oof": "predict", f"{member} test": "predict"}
    if has_test(paths):
        outputs.append(paths.test(config.name))
    inputs |= {
        "the truth": paths.truth,
        "folds.csv": paths.folds,
        "the train images": rows_fingerprint(paths.index, "train"),
    }
    keys = config.keys("members", "method", "rounds", "score", "data.classes") | untuned(
        config, "threshold"
    )
    return Job(
        "ensemble",
        config.name,
        paths,
        paths.record("ensemble", config.name),
        keys,
        inputs,
        outputs,
        made_by=made_by
        | {"the truth": "prepare", "folds.csv": "split", "the train images": "prepare"},
        sources=["src/stages/ensemble.py", "src/scoring/greedy.py", "src/parts/metrics.py"],
    )


def evaluate_job(config: Config, paths: Paths) -> Job:
    n = config.name
    inputs = {
        "oof.npz": paths.oof(n),
        "folds.csv": paths.folds,
        "the truth": paths.truth,
        "the train images": rows_fingerprint(paths.index, "train"),
    }
    made_by = {
        "oof.npz": "ensemble" if config.ensemble else "predict",
        "folds.csv": "split",
        "the truth": "prepare",
        "the train images": "prepare",
    }
    pictures = [paths.picture(n, p) for p in ("confusion", "typical", "worst", "reliability")]
    return Job(
        "evaluate",
        n,
        paths,
        paths.record("evaluate", n),
        config.keys("data.classes", "data.empty_class", "score", "evaluate"),
        inputs,
        [paths.metrics(n), paths.per_image(n), paths.decision(n), paths.html(n)],
        made_by=made_by,
        editable=[paths.decision(n)],
        sources=[
            "src/stages/evaluate.py",
            "src/parts/metrics.py",
            "src/scoring/images.py",
            "src/scoring/lecture.py",
            "src/parts/postprocess.py",
            "src/scoring/tuning.py",
        ],
        details={"extras": pictures},
    )


def submit_job(config: Config, paths: Paths) -> Job:
    n = config.name
    inputs = {
        "test.npz": paths.test(n),
        "decision.json": paths.decision(n),
        "metrics.json": paths.metrics(n),
        "the test images": rows_fingerprint(paths.index, "test"),
        "the sample of the submission": sample_of(config, paths),
        "the run lengths": json.dumps(train_runs(paths)),
    }
    made_by = {
        "test.npz": "ensemble" if config.ensemble else "predict",
        "decision.json": "evaluate",
        "metrics.json": "evaluate",
        "the test images": "prepare",
        "the run lengths": "prepare",
    }
    output = (
        paths.archive(n)
        if (form := glance_of(config, paths)) and form.masks
        else paths.submission(n)
    )
    return Job(
        "submit",
        n,
        paths,
        paths.record("submit", n),
        config.keys("data.classes", "data.empty_class", "data.sample_submission", "submission"),
        inputs,
        [output],
        made_by=made_by,
        sources=[
            "src/stages/submit.py",
            "src/submission/form.py",
            "src/submission/sample.py",
            "src/data/rle.py",
            "src/submission/writer.py",
            "src/parts/postprocess.py",
        ],
    )


def study_job(config: Config, paths: Paths) -> Job:
    inputs: dict[str, Path | str] = {}
    for c in config.members:
        inputs |= {
            f"{c.name} metrics.json": paths.metrics(c.name),
            f"{c.name} per_image.csv": paths.per_image(c.name),
        }
    keys = {
        "cells": {label: [c.name for c in made] for label, made in config.cells.items()}
    } | config.keys("score", "evaluate.bootstrap", "data.classes")
    outputs = [
        paths.study(config.name, f) for f in ("table.md", "table.csv", "plot.png", "report.html")
    ]
    return Job(
        "study",
        config.name,
        paths,
        paths.record("study", config.name),
        keys,
        inputs,
        outputs,
        made_by=dict.fromkeys(inputs, "evaluate"),
        sources=["src/stages/study.py", "src/scoring/compare.py"],
    )
