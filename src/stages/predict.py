"""predict: probabilities for the train images by the fold that did not see them, and for the test images by all folds.

READS   prepared/index.csv, truth.npz, images_S.npy, images_S_test.npy, folds.csv, models/<experiment>/fold<k>/last.pt or best.pt
WRITES  predictions/<experiment>/ oof.npz test.npz stage.json (and, until it is finished, one part per fold)

predict.weights auto: a fold's weights are rounded to float16 where that moves no score of its held-out images by more than STEADY. Scores are of the very
weights that are used from then on, here and in a bundle; stage.json says which.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from src.config.load import Config
from src.core.console import InputError, header, progress, say, short
from src.core.device import amp_dtype, pick_device
from src.core.disk import move, read_json, remove, write_json
from src.core.freshness import Job
from src.core.paths import Paths
from src.core.settings import Classes
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.data.tables import how_to_mend_folds, open_store, read_folds, read_index, read_labels
from src.parts import building
from src.parts.postprocess import Decision
from src.parts.tta import TTA
from src.pipeline.jobs import folds as folds_to_use
from src.scoring.images import measure
from src.training.checkpoint import load_weights, round_weights
from src.training.inference import enough_memory, infer, mean_of_folds, to_predictions

STEADY = 1e-4
SCORES = ("dice", "iou", "accuracy", "macro_f1", "auc")


def run(job: Job, config: Config, paths: Paths) -> None:
    e, name = config.experiment, config.name
    classes = config.competition.data.classes
    train, test = read_index(paths, "train"), read_index(paths, "test")
    fold_of = read_folds(paths, train["id"])
    folds = folds_to_use(config, paths)
    header("predict", name, [paths.fold(name, k) for k in folds], job.outputs)
    say(
        f"  {e.predict.checkpoint} checkpoints of {len(folds)} folds; views {', '.join(e.predict.tta)}; {len(train)} train and {len(test)} test images"
    )
    device = pick_device(exact=True)
    dtype = amp_dtype(e.train.amp, device)
    views = [TTA[v] for v in e.predict.tta]
    tables = {"oof": train} | ({"test": test} if len(test) else {})
    files = {of: paths.images(e, "train" if of == "oof" else "test") for of in tables}
    stores = {of: open_store(files[of], len(tables[of]), e.image_size) for of in tables}
    rows = {k: {"oof": np.flatnonzero(fold_of == k), "test": np.arange(len(test))} for k in folds}
    if empty := [k for k in folds if not len(rows[k]["oof"])]:
        raise InputError(
            f"fold {empty[0]} has no images",
            short(paths.folds),
            how_to_mend_folds(),
            code="fold_empty",
        )
    batch = e.predict.batch_size or 2 * e.train.batch_size

    with job.running(facts := {}):
        seen, spent = 0, 0.0
        with progress(
            sum(len(rows[k][of]) for k in folds for of in stores), f"predict {name}"
        ) as bar:
            for k in folds:
                net, chosen = None, paths.rounding(name, k)
                kind = rounding(chosen) or e.predict.weights
                for of, images in stores.items():
                    part = paths.part(name, k, of)
                    if kind == "auto" or not is_intact(part, classes):
                        if net is None:
                            net = building.build(e, len(classes), pretrained=False)
                            load_weights(
                                paths.checkpoint(name, k, e.predict.checkpoint),
                                net,
                                "float16" if kind == "float16" else "float32",
                                k,
                            )
                            net = net.to(device, memory_format=torch.channels_last)
                        ask = partial(
                            one_part,
                            net=net,
                            images=images,
                            rows=rows[k][of],
                            table=tables[of],
                            views=views,
                            config=config,
                            device=device,
                            dtype=dtype,
                            batch=batch,
                        )
                        started = time.perf_counter()
                        ask(part, advance=bar.update)
                        seen, spent = (
                            seen + len(views) * len(rows[k][of]),
                            spent + time.perf_counter() - started,
                        )
                        if kind == "auto":
                            kind, moved = rounded(
                                part, net, ask, train.iloc[rows[k][of]], paths, config
                            )
                            write_json(chosen, {"weights": kind, "moved": moved})
                    else:
                        bar.update(len(rows[k][of]))
        join_folds(
            [paths.part(name, k, "oof") for k in folds],
            paths.oof(name),
            train["id"].to_numpy(),
            classes,
        )
        if len(test):
            mean_of_folds([paths.part(name, k, "test") for k in folds], classes).save(
                paths.test(name)
            )
        facts["summary"] = f"{len(folds)} folds, views {', '.join(e.predict.tta)}"
        facts["weights"] = {
            k: rounding(paths.rounding(name, k)) or e.predict.weights for k in folds
        }
        facts["pace"] = (
            spent / seen if seen else None
        )  # seconds per image and view: infer plans by it
        for part in job.extras:
            remove(part)


def rounding(file: Path) -> str:
    """What an earlier run has decided of a fold's weights; '' where it has not, or not readably:
    then it is decided anew."""
    try:
        found = read_json(file)
        return found["weights"] if found["weights"] in ("float16", "float32") else ""
    except (OSError, InputError, RecursionError, KeyError, TypeError):
        return ""


def is_intact(part: Path, classes: list[str]) -> bool:
    """Whether an earlier run has left this part, and left it readable."""
    try:
        return bool(len(Predictions.load(part, classes)))
    except InputError:
        return False


def one_part(
    part: Path,
    net,
    images,
    rows,
    table,
    views,
    config: Config,
    device,
    dtype,
    batch: int,
    advance=lambda n: None,
) -> None:
    """One fold's answers for some rows, written to `part`: what is there when a run is stopped need not be done again."""
    with enough_memory(batch, images.shape[1]):
        mask, label = infer(net, images, rows, views, device, dtype, batch, advance)
    sizes = table[["height", "width"]].to_numpy()[rows]
    to_predictions(
        mask,
        label,
        table["id"].to_numpy()[rows],
        sizes,
        config.experiment.resize,
        config.competition.data.classes,
    ).save(part)


def rounded(
    part: Path, net, ask, held_out, paths: Paths, config: Config
) -> tuple[str, float | None]:
    """('float16', how far scores moved) where they hardly do: `part` then holds these predictions, and `net` these weights; else ('float32', …), and all is as
    it was. The decision is the plainest one, so that no setting of evaluate or score changes what is predicted."""
    exact = {k: v.clone() for k, v in net.state_dict().items()}
    halves = round_weights(exact, net, "float16")
    if all(halves[k] is v for k, v in exact.items()):  # nothing to round
        return "float32", None
    other = part.with_suffix(".float16")
    try:
        net.load_state_dict(halves)
        ask(other)
        classes = config.competition.data.classes
        labels, truths = (
            read_labels(paths, held_out, classes),
            Truth.load(paths.truth).subset(held_out["id"]),
        )
        # the plainest decision, which has no rule between mask and class: no empty class is asked for
        before, after = (
            measure(Predictions.load(f, classes), labels, truths, Decision(), Classes(classes))
            for f in (part, other)
        )
        moved = max(
            abs(after[s] - before[s]) for s in SCORES if s in before and np.isfinite(before[s])
        )
        if moved <= STEADY:
            move(other, part)
            return "float16", moved
        net.load_state_dict(exact)
        return "float32", moved
    finally:
        remove(other)


def join_folds(parts: list[Path], target: Path, ids: np.ndarray, classes: list[str]) -> None:
    """The folds' held-out images together, in the index's order (a hold-out has only some of them)."""
    found = [Predictions.load(p, classes) for p in parts]
    mask, label = (
        None if answers[0] is None else np.concatenate(answers)
        for answers in ([f.mask for f in found], [f.label for f in found])
    )
    all_ = Predictions(np.concatenate([f.ids for f in found]), mask, label, classes)
    there = set(all_.ids)
    all_.select([i for i in ids if i in there]).save(target)
