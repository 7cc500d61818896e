"""predict: probabilities for the train images by the fold that did not see them, and for the test
images by all folds.

READS   prepared/index.csv, truth.npz, images_S.npy, images_S_test.npy, folds.csv,
        models/<experiment>/fold<k>/last.pt or best.pt
WRITES  predictions/<experiment>/ oof.npz test.npz stage.json (and, until it is finished, one part
        per fold)

predict.weights auto: a fold's weights are rounded to float16 where that moves no score of its
held-out images by more than TOLERANCE. Scores are of the very weights that are used from then on,
here and in a bundle; stage.json says which.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from src.config.load import Config
from src.core.console import InputError, header, progress, say
from src.core.device import pick_device
from src.core.disk import read_json, remove, write_json
from src.core.freshness import Job
from src.core.paths import Paths
from src.core.settings import Classes
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.data.tables import how_to_mend_folds, open_store, read_folds, read_index, read_labels
from src.parts.network import Network
from src.parts.postprocess import Decision
from src.pipeline.jobs import folds as folds_to_use
from src.pipeline.networks import load_network, predict_images
from src.scoring.images import measure
from src.training.checkpoint import round_weights
from src.training.inference import mean_of_folds

TOLERANCE = 1e-4
SCORES = ("dice", "iou", "accuracy", "macro_f1", "auc")


def run(job: Job, config: Config, paths: Paths) -> None:
    e, name, classes = config.experiment, config.name, config.competition.data.classes
    train, test = read_index(paths, "train"), read_index(paths, "test")
    folds, fold_of = folds_to_use(config, paths), read_folds(paths, train["id"])
    header("predict", name, [paths.fold(name, k) for k in folds], job.outputs)
    tta = ", ".join(e.predict.tta)
    say(
        f"  {e.predict.checkpoint} checkpoints of {len(folds)} folds; views {tta}; "
        f"{len(train)} train and {len(test)} test images"
    )
    if empty := [k for k in folds if k not in fold_of]:
        what = f"fold {empty[0]} has no images"
        raise InputError(what, paths.folds, how_to_mend_folds(), code="fold_empty")
    device = pick_device(exact=True)
    images = {
        "oof": ImageSet(train, open_store(paths.images(e), len(train), e.image_size), fold_of)
    }
    if len(test):
        store = open_store(paths.images(e, "test"), len(test), e.image_size)
        images["test"] = ImageSet(test, store)
    with job.running(facts := {}):
        count, seconds = 0, 0.0
        total = sum(len(one.rows(k)) for k in folds for one in images.values())
        with progress(total, f"predict {name}") as bar:
            for k in folds:
                done = predict_fold(k, images, config, paths, device, bar.update)
                count, seconds = count + done[0], seconds + done[1]
        parts = [paths.part(name, k, "oof") for k in folds]
        join_folds(parts, train["id"].to_numpy(str), classes).save(paths.oof(name))
        if len(test):
            parts = [paths.part(name, k, "test") for k in folds]
            mean_of_folds(parts, classes).save(paths.test(name))
        facts["summary"] = f"{len(folds)} folds, views {tta}"
        facts["weights"] = {
            k: read_rounding(paths.rounding(name, k)) or e.predict.weights for k in folds
        }
        facts["pace"] = seconds / count if count else None  # infer plans by it
        for file in job.extras:
            remove(file)


@dataclass
class ImageSet:
    """Train or test images: their rows of the index and of the pixel store.

    fold_of (N): the fold that predicts each of them; None: every fold predicts all.
    """

    index: pd.DataFrame
    store: np.ndarray
    fold_of: np.ndarray | None = None

    def rows(self, fold: int) -> np.ndarray:
        if self.fold_of is None:
            return np.arange(len(self.index))
        return np.flatnonzero(self.fold_of == fold)


def predict_fold(
    fold: int,
    images: dict[str, ImageSet],
    config: Config,
    paths: Paths,
    device: torch.device,
    advance: Callable[[int], None],
) -> tuple[int, float]:
    """Write what one fold predicts, a part for 'oof' and one for 'test', unless an earlier run has.
    Returns how many images × views that were, and how many seconds they took."""
    e, classes = config.experiment, config.competition.data.classes
    decided = paths.rounding(config.name, fold)
    weights = read_rounding(decided) or e.predict.weights
    net, count, seconds = None, 0, 0.0
    for part, image_set in images.items():
        file, rows = paths.part(config.name, fold, part), image_set.rows(fold)
        if weights != "auto" and is_readable(file, classes):
            advance(len(rows))
            continue
        if net is None:
            checkpoint = paths.checkpoint(config.name, fold, e.predict.checkpoint)
            kind = "float16" if weights == "float16" else "float32"
            net = load_network(config, checkpoint, device, kind, fold)
        store, index = image_set.store, image_set.index
        ask = partial(predict_images, net, config, store, index, rows, device, e.predict.tta)
        started = time.perf_counter()
        predictions = ask(advance)
        count += len(e.predict.tta) * len(rows)
        seconds += time.perf_counter() - started
        if weights == "auto":
            weights, moved, predictions = try_rounding(
                net, predictions, ask, index.iloc[rows], config, paths
            )
            predictions.save(file)
            write_json(decided, {"weights": weights, "moved": moved})
        else:
            predictions.save(file)
    return count, seconds


def read_rounding(file: Path) -> str:
    """How an earlier run has decided to use a fold's weights: 'float16' or 'float32'; '' where it
    has not, or not readably: then it is decided again."""
    try:
        weights = read_json(file)["weights"]
    except (OSError, InputError, KeyError):
        return ""
    return weights if weights in ("float16", "float32") else ""


def is_readable(part: Path, classes: list[str]) -> bool:
    """Whether an earlier run has left this part intact."""
    try:
        return bool(len(Predictions.load(part, classes)))
    except InputError:
        return False


def try_rounding(
    net: Network,
    exact: Predictions,
    ask: Callable[[], Predictions],
    held_out: pd.DataFrame,
    config: Config,
    paths: Paths,
) -> tuple[str, float | None, Predictions]:
    """('float16', how far scores moved, the new predictions) where they hardly do, and `net` then
    has these weights; else ('float32', …, `exact`), and all is as it was. The decision is the
    default one, so that no setting of evaluate or score changes what is predicted."""
    state = {k: v.clone() for k, v in net.state_dict().items()}
    halves = round_weights(state, net, "float16")
    if all(halves[k] is v for k, v in state.items()):  # nothing to round
        return "float32", None, exact
    net.load_state_dict(halves)
    rounded = ask()
    classes = config.competition.data.classes
    labels = read_labels(paths, held_out, classes)
    truths = Truth.load(paths.truth).subset(held_out["id"])
    # the default decision has no rule between mask and class: it needs no empty class
    before, after = (
        measure(predictions, labels, truths, Decision(), Classes(classes))
        for predictions in (exact, rounded)
    )
    finite = [s for s in SCORES if s in before and np.isfinite(before[s])]
    moved = max(abs(after[s] - before[s]) for s in finite)
    if moved <= TOLERANCE:
        return "float16", moved, rounded
    net.load_state_dict(state)
    return "float32", moved, exact


def join_folds(parts: list[Path], ids: np.ndarray, classes: list[str]) -> Predictions:
    """The folds' held-out images together, in the index's order (a hold-out has only some)."""
    folds = [Predictions.load(part, classes) for part in parts]

    def joined(answer: str) -> np.ndarray | None:
        arrays = [getattr(fold, answer) for fold in folds]
        return None if arrays[0] is None else np.concatenate(arrays)

    everything = Predictions(joined("ids"), joined("mask"), joined("label"), classes)
    return everything.select(ids[np.isin(ids, everything.ids)])
