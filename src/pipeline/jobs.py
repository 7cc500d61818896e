"""Each stage's settings, inputs and outputs, declared once: the driver, `status` and the stages
themselves go by it."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.config.load import Config
from src.core.console import InputError
from src.core.freshness import Input, Job
from src.core.paths import Paths, anchored, store_name
from src.data.tables import is_fold
from src.pipeline import inputs
from src.pipeline.inputs import has_test, index_ids, sample_of
from src.pipeline.records import read_runs
from src.submission.form import Form
from src.submission.infer_form import infer_form, preview_form

# a study runs all but the last for each of its cells, and then makes its table
STAGES = ["prepare", "split", "train", "predict", "ensemble", "evaluate", "submit"]


def plan(config: Config, paths: Paths) -> list[Job]:
    """Every job from the data to the submission (of a study: to its table), in order, as things
    stand now."""
    if config.study:
        jobs = {}
        for cell in config.members:
            jobs |= {job.title: job for job in plan(cell, paths) if job.stage != "submit"}
        return [*jobs.values(), study_job(config, paths)]
    stores = {store_name(c.experiment): c for c in config.experiments}
    jobs = [prepare_job(config, paths)]
    jobs += [store_job(c, paths) for c in stores.values()]
    jobs.append(split_job(config, paths))
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


# ------------------------------------------------------------- what is known before a stage runs


def form_of(config: Config, paths: Paths) -> Form:
    """The form of the submission, with all that prepare learned from the train table. Raises
    InputError where the sample leaves it open, or where one of the two is damaged."""
    sample, ids = sample_of(config, paths), index_ids(paths.index, "test")
    runs = read_runs(paths) if paths.report.is_file() else None
    return infer_form(sample, config.competition, ids, runs)


def train_runs(paths: Paths) -> dict | None:
    """What prepare learned about the run lengths of the train table; None where there are none."""
    try:
        return read_runs(paths)
    except InputError:  # not there, or damaged: an error where it matters, not in a plan
        return None


def preview_of(config: Config, paths: Paths) -> Form | None:
    sample, ids = sample_of(config, paths), index_ids(paths.index, "test")
    return preview_form(sample, config.competition, ids)


def unanswered(config: Config, paths: Paths) -> str:
    """The column that the sample asks for and no experiment here has a task for; ''."""
    if config.ensemble and len(config.experiments) < len(config.ensemble.members):
        return ""  # a team mate's predictions may answer anything
    tasks = {c.experiment.task for c in config.experiments}
    if tasks != {"mask"} and tasks != {"class"}:
        return ""
    form = preview_of(config, paths)
    return form.requested.get("label" if tasks == {"mask"} else "mask", "") if form else ""


def folds(config: Config, paths: Paths) -> list[int]:
    """The folds to train: those of folds.csv where that is up to date (users edit it), else those
    that split will make."""
    if split_job(config, paths).state().done:
        with (
            suppress(OSError, csv.Error),
            open(paths.folds, newline="", encoding="utf-8-sig", errors="replace") as lines,
        ):
            values = {(row.get("fold") or "").strip() for row in csv.DictReader(lines)}
            if values and all(map(is_fold, values)):  # else read_folds says what is wrong
                return sorted({int(v) for v in values} - {-1})
    split = config.competition.split
    return list(range(split.folds)) if split.scheme == "kfold" else [0]


def untuned(config: Config, *names: str) -> dict[str, Any]:
    """The first value of the lists of `evaluate` (by default of all), which make up the untuned
    decision: {'evaluate.threshold[0]': 0.5, …}. The others are only searched by evaluate."""
    lists = {name: tried for name, tried in config.competition.evaluate if isinstance(tried, list)}
    return {f"evaluate.{name}[0]": lists[name][0] for name in names or lists}


def weights_used(config: Config, paths: Paths, fold: int) -> str:
    """How predict used this fold's weights, 'float16' or 'float32' (also until it has decided)."""
    setting = config.experiment.predict.weights
    if setting != "auto":
        return setting
    record = predict_job(config, paths).record() or {}
    return (record.get("weights") or {}).get(str(fold), "float32")


def member_folder(config: Config, paths: Paths, member: str) -> Path:
    """A member is the name of predictions in artifacts/predictions/, or a folder of predictions."""
    folder = paths.predictions(member)
    beside = Path(member).expanduser()
    return beside if not folder.is_dir() and beside.is_dir() else folder


# ------------------------------------------------------------------------------------ the stages


def prepare_job(config: Config, paths: Paths) -> Job:
    """The index, which all experiments share; the stores of pixels are jobs of their own."""
    sample = inputs.sample(config, paths)
    # a CSV file is part of the data; a sample of another kind is not
    own = sample.exists() and sample.file.suffix.lower() != ".csv"
    keys = ["id", "name", "delimiter"]
    if (paths.data / config.competition.data.table).is_file():  # it may hold run lengths
        keys += ["order", "first_pixel", "relative_starts", "empty", "size"]
    return Job(
        "prepare",
        "",
        paths,
        keys=config.keys("data", *(f"submission.{key}" for key in keys)),
        inputs=[inputs.data(paths), *([sample] if own else [])],
        outputs=[paths.index, paths.report, paths.truth],
        sources="stages/prepare",
    )


def store_job(config: Config, paths: Paths) -> Job:
    """The pixels of one image size, resizing and filter."""
    e, test = config.experiment, inputs.images(paths, "test")
    return Job(
        "prepare",
        f"pixels_{store_name(e)}",
        paths,
        keys=config.keys("image_size", "resize", "filter", "filter_options", "data.channels"),
        inputs=[
            inputs.images(paths, "train"),
            test if test.exists() else Input(test.name, test.file, digest="none"),
            inputs.data(paths),
        ],
        outputs=[
            paths.images(e),
            paths.masks(e),
            *([paths.images(e, "test")] if test.exists() else []),
        ],
        sources="stages/prepare pipeline/store parts/filters",
        experiment=e,
    )


def split_job(config: Config, paths: Paths) -> Job:
    return Job(
        "split",
        "",
        paths,
        keys=config.keys("split"),
        inputs=[inputs.images(paths, "train")],
        outputs=[paths.folds],
        editable=[paths.folds],
        sources="stages/split",
    )


@dataclass(eq=False)
class Training(Job):
    """The training of a fold.

    `scored_by`: the settings that rank epochs. `score_matters`: whether the ranking decides which
    weights are used. Where predict uses the last checkpoint and nothing stops
    early, the score only decides which epoch is copied to best.pt, and which numbers are in
    log.csv. Hours are at stake, so another score then leaves a finished fold as it is. But the
    record keeps how the epochs were scored: when predict.checkpoint becomes `best`, a best.pt that
    another score has chosen is stale. An unfinished fold starts over: its best epoch so far cannot
    be compared with those to come.
    """

    scored_by: dict[str, Any] = field(default_factory=dict)
    score_matters: bool = True

    def changed(self, record: dict) -> str:
        then = record["keys"]
        if not self.score_matters and record.get("ended"):
            ignored = set(self.scored_by)
        else:  # those that a record of an older version lacks count as equal
            ignored = self.scored_by.keys() - then.keys()
        keys = {k: v for k, v in then.items() if k not in ignored}
        keys |= json.loads(json.dumps({k: self.keys[k] for k in ignored}))
        return super().changed(record | {"keys": keys})


def train_job(config: Config, paths: Paths, fold: int) -> Training:
    e, name = config.experiment, config.name
    scored_by = config.keys("score", "data.empty_class") | untuned(config)
    keys = config.keys("data.classes", "task", "image_size", "resize", "model", "loss", "train")
    weights = e.model.encoder_weights
    own_weights = (
        [Input("model.encoder_weights", anchored(weights))] if Path(weights).suffix else []
    )
    return Training(
        "train",
        name,
        paths,
        fold=fold,
        keys=keys | scored_by,
        inputs=[
            inputs.images(paths, "train"),
            inputs.folds_table(paths),
            Input("the pixels", paths.images(e), "prepare"),
            Input("the masks", paths.masks(e), "prepare"),
            *own_weights,
        ],
        also_reads=[paths.truth],  # made together with the index
        outputs=[
            paths.checkpoint(name, fold, "last"),
            paths.checkpoint(name, fold, "best"),
            paths.log(name, fold),
        ],
        extras=[paths.curves(name, fold), paths.onnx(name, fold)],
        sources="stages/train pipeline/training training/loop training/batches parts/pretrained "
        "parts/models parts/network parts/building parts/losses parts/augment parts/heads "
        "parts/monai_networks parts/fitted",
        scored_by=scored_by,
        score_matters=e.predict.checkpoint == "best" or e.train.patience > 0,
    )


def predict_job(config: Config, paths: Paths) -> Job:
    e, name, trained = config.experiment, config.name, folds(config, paths)
    reads = [
        inputs.images(paths, "train"),
        Input("the train pixels", paths.images(e), "prepare"),
    ]
    if has_test(paths):
        reads += [
            inputs.images(paths, "test"),
            Input("the test pixels", paths.images(e, "test"), "prepare"),
        ]
    if e.predict.weights == "auto":
        reads.append(inputs.truth(paths))
    for k in trained:
        checkpoint = paths.checkpoint(name, k, e.predict.checkpoint)
        reads.append(Input(f"fold {k}", checkpoint, f"train --fold {k}"))
    unfinished = []
    for k in trained:
        unfinished += [paths.part(name, k, "oof"), paths.part(name, k, "test")]
        unfinished.append(paths.rounding(name, k))
    return Job(
        "predict",
        name,
        paths,
        keys=config.keys("image_size", "resize", "predict"),
        inputs=reads,
        outputs=inputs.predictions(paths, name),
        extras=unfinished,
        sources="stages/predict pipeline/networks training/inference training/checkpoint parts/tta "
        "scoring/images parts/metrics",
    )


def ensemble_job(config: Config, paths: Paths) -> Job:
    name, own, reads = config.name, {c.name for c in config.members}, []
    for member in config.ensemble.members:
        folder, maker = member_folder(config, paths, member), "predict" if member in own else ""
        for file in inputs.predictions(paths, name):
            reads.append(Input(f"{member} {file.stem}", folder / file.name, maker))
    keys = config.keys("members", "method", "rounds", "score", "data.classes")
    return Job(
        "ensemble",
        name,
        paths,
        keys=keys | untuned(config, "threshold"),
        inputs=[
            *reads,
            inputs.truth(paths),
            inputs.folds_table(paths),
            inputs.images(paths, "train"),
        ],
        outputs=[*inputs.predictions(paths, name), paths.weights(name)],
        sources="stages/ensemble scoring/greedy parts/metrics",
    )


def evaluate_job(config: Config, paths: Paths) -> Job:
    name = config.name
    return Job(
        "evaluate",
        name,
        paths,
        keys=config.keys("data.classes", "data.empty_class", "score", "evaluate"),
        inputs=[
            Input("oof.npz", paths.oof(name), predictor(config)),
            inputs.folds_table(paths),
            inputs.truth(paths),
            inputs.images(paths, "train"),
        ],
        outputs=[
            paths.metrics(name),
            paths.per_image(name),
            paths.decision(name),
            paths.html(name),
        ],
        editable=[paths.decision(name)],
        extras=[paths.picture(name, p) for p in ("confusion", "typical", "worst", "reliability")],
        sources="stages/evaluate parts/metrics scoring/images scoring/lecture parts/postprocess "
        "scoring/tuning",
    )


def submit_job(config: Config, paths: Paths) -> Job:
    name, form = config.name, preview_of(config, paths)
    runs = json.dumps(train_runs(paths))
    return Job(
        "submit",
        name,
        paths,
        keys=config.keys(
            "data.classes", "data.empty_class", "data.sample_submission", "submission"
        ),
        inputs=[
            Input("test.npz", paths.test(name), predictor(config)),
            Input("decision.json", paths.decision(name), "evaluate"),
            Input("metrics.json", paths.metrics(name), "evaluate"),
            inputs.images(paths, "test"),
            inputs.sample(config, paths),
            Input("the run lengths", paths.report, "prepare", runs),
        ],
        outputs=[paths.archive(name) if form and form.masks else paths.submission(name)],
        sources="stages/submit submission/sample submission/rows submission/columns "
        "submission/mask_format submission/infer_form submission/form submission/writer "
        "submission/verify data/rle parts/postprocess",
    )


def predictor(config: Config) -> str:
    """The stage that makes this config's predictions."""
    return "ensemble" if config.ensemble else "predict"


def study_job(config: Config, paths: Paths) -> Job:
    name, reads = config.name, []
    for cell in config.members:
        for file in (paths.metrics(cell.name), paths.per_image(cell.name)):
            reads.append(Input(f"{cell.name} {file.name}", file, "evaluate"))
    cells = {label: [c.name for c in seeds] for label, seeds in config.cells.items()}
    return Job(
        "study",
        name,
        paths,
        keys={"cells": cells} | config.keys("score", "evaluate.bootstrap", "data.classes"),
        inputs=reads,
        outputs=[
            paths.study_table(name),
            paths.study_csv(name),
            paths.study_plot(name),
            paths.study_html(name),
        ],
        sources="stages/study scoring/compare",
    )
