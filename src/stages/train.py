"""train: one network for one experiment × fold.

READS   prepared/index.csv, images_S.npy, masks_S.npy, truth.npz, folds.csv, and pre-trained encoder
        weights
WRITES  models/<experiment>/fold<k>/ last.pt best.pt log.csv curves.png stage.json
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from src.config.load import Config
from src.core.console import InputError, Interrupts, StageError, Stopped, header, say, short, warn
from src.core.device import amp_dtype, memory_advice, out_of_memory, pick_device
from src.core.freshness import Job
from src.core.paths import CONFIGS, Paths
from src.data.rle import Truth
from src.data.tables import how_to_mend_folds, open_store, read_folds, read_index, read_labels
from src.parts import building, models
from src.parts.network import Network
from src.parts.tta import TTA
from src.pipeline.networks import predict_images
from src.pipeline.training import make_loop
from src.scoring.images import score_predictions
from src.training.batches import to_tensor
from src.training.checkpoint import (
    is_intact,
    load_checkpoint,
    restore,
    save_checkpoint,
    save_weights,
)
from src.training.loop import lr_factor
from src.training.runlog import Clock, RunLog, epoch_line

BAD_IN_A_ROW = 10  # steps whose loss or gradients are not finite, before training gives up
SMALL_CONFIG = CONFIGS / "cpu.yaml"


def run(job: Job, config: Config, paths: Paths) -> None:
    """Train one fold, or go on with it. Raises Stopped on Ctrl+C or SIGTERM, after saving."""
    header(
        "train",
        f"{config.name} fold {job.fold}",
        job.reads,
        [paths.fold(config.name, job.fold)],
    )
    facts: dict = {}
    with job.running(facts):
        try:
            result, stop = train(job, config, paths)
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise memory_advice(config.experiment, config.file) from error
            raise
        facts |= result
    if stop:
        raise Stopped(f"{job.title} is finished")


def train(job: Job, config: Config, paths: Paths) -> tuple[dict, bool]:
    """Returns what the record keeps, and whether a stop was requested during the last validation:
    this fold is then finished, and the next one does not start."""
    e, t, fold = config.experiment, config.experiment.train, job.fold
    last = paths.checkpoint(config.name, fold, "last")
    best = paths.checkpoint(config.name, fold, "best")
    log = RunLog(paths.log(config.name, fold), paths.curves(config.name, fold))
    device = pick_device()
    data = FoldData.load(config, paths, fold)

    # the network: pre-trained, or as an earlier run left it
    torch.manual_seed(t.seed * 1000 + fold)
    saved = resumable(last, best)
    net = building.build(e, len(config.competition.data.classes), pretrained=saved is None)
    net = net.to(device, memory_format=torch.channels_last)
    if saved is None:
        tried = {name: TTA[name].do for name in e.predict.tta if name != "identity"}
        building.try_views(net, tried, e.model)
    if hasattr(net.body, "fit"):  # it learns without gradients, or not at all
        return fit(net, data, config, paths, fold, device), False
    labels = data.labels[data.seen]
    loop = make_loop(net, config, data.images, data.masks, data.seen, labels, fold, device)
    say(
        f"  {len(data.seen)} images to train on, {len(data.held_out)} to validate on; "
        f"{models.title(e.model)}, {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M "
        f"parameters; {device.type}, {number_format(config, device)}"
    )
    state = {"epoch": 0, "step": 0, "history": [], "best": None, "sums": {}, "bad": 0.0}
    steps = loop.sampler.steps
    if saved:
        state |= restore(saved, loop, last, fold)
        say(f"  goes on from epoch {state['epoch']}, step {state['step']} of {steps}")
    loop.bad_in_a_row += state["bad"]

    clock = Clock(job, steps, t.epochs, state["epoch"], small_config_hint(config, device))
    with Interrupts() as interrupts:
        while state["epoch"] < t.epochs and not out_of_patience(state["history"], t.patience):
            epoch, first, started = state["epoch"], state["step"], time.time()
            for _ in loop.steps(epoch, first, state["sums"]):
                state["step"] += 1
                if loop.bad_so_far >= BAD_IN_A_ROW:
                    what = f"the loss was not finite {BAD_IN_A_ROW} steps in a row"
                    raise diverged(f"{what} (epoch {epoch + 1}, step {state['step']})", last, t.lr)
                clock.tick()
                if interrupts.asked:
                    state["sums"] = {k: v.item() for k, v in loop.sums.items()}
                    state["bad"] = loop.bad_in_a_row.item()
                    save_checkpoint(last, loop, state)
                    log.write(state["history"], final=True)
                    raise Stopped(f"saved at epoch {epoch + 1}, step {state['step']} of {steps}")
            skipped, bad = int(loop.sums["skipped"].item()), loop.bad_in_a_row.item()
            seconds = time.time() - started
            if bad >= BAD_IN_A_ROW or skipped and not loop.is_finite():
                what = "the loss or the network's weights are no longer finite"
                raise diverged(f"{what} (epoch {epoch + 1})", last, t.lr)

            images = (steps - first) * loop.sampler.accumulate * loop.sampler.batch_size
            row = {
                "epoch": epoch + 1,
                "lr": t.lr * lr_factor((epoch + 1) * steps - 1, t.epochs * steps, t),
                **{name: (total / steps).item() for name, total in loop.sums.items()},
                **validate(loop.ema, data, config, device),
                "skipped": skipped,
                "images_per_second": round(images / seconds, 1),
                "seconds": round(time.time() - started, 2),
            }
            better = state["best"] is None or row["score"] > state["best"]
            if better:
                state["best"] = row["score"]
                save_weights(best, loop.ema, row["epoch"], row["score"])
            state["history"] = [*state["history"], row]
            state |= {"epoch": epoch + 1, "step": 0, "sums": {}, "bad": bad}
            save_checkpoint(last, loop, state)
            log.write(state["history"])
            say(epoch_line(row, t.epochs, better))
            if interrupts.asked and state["epoch"] < t.epochs:
                raise Stopped(f"saved after epoch {state['epoch']}")
    if state["epoch"] < t.epochs:
        say(f"  stopped early: no better score for {t.patience} epochs")
    log.write(state["history"], final=True)
    return finish(config, state["history"], device), interrupts.asked


def resumable(last: Path, best: Path) -> dict | None:
    """The checkpoint to go on from; None where the fold starts from the beginning."""
    saved = load_checkpoint(last)
    if saved and saved["history"] and not is_intact(best):
        warn(f"{short(best)} is {'damaged' if best.is_file() else 'gone'}: this fold starts over")
        return None
    return saved


@dataclass
class FoldData:
    """The train images' rows in the index and in the pixel store: those that a fold learns from,
    and those held out."""

    index: pd.DataFrame
    labels: np.ndarray  # (N) int
    seen: np.ndarray
    held_out: np.ndarray
    images: Path
    masks: Path
    truths: Truth  # of those held out

    @classmethod
    def load(cls, config: Config, paths: Paths, fold: int) -> FoldData:
        index = read_index(paths, "train")
        folds = read_folds(paths, index["id"])
        labels = read_labels(paths, index, config.competition.data.classes)
        seen, held_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(seen) < 2 or not len(held_out):
            raise InputError(
                f"fold {fold} leaves {len(seen)} images to train on and "
                f"{len(held_out)} to validate on",
                paths.folds,
                how_to_mend_folds(),
                code="fold_empty",
            )
        images, masks = paths.images(config.experiment), paths.masks(config.experiment)
        for file in (images, masks):  # other processes read them: fail here instead
            open_store(file, len(index), config.experiment.image_size)
        truths = Truth.load(paths.truth).subset(index["id"].iloc[held_out])
        return cls(index, labels, seen, held_out, images, masks, truths)


def validate(
    net: torch.nn.Module, data: FoldData, config: Config, device: torch.device
) -> dict[str, float]:
    """The one score, and every metric, on the fold's held-out images, without test-time
    augmentation."""
    images, rows = np.load(data.images, mmap_mode="r"), data.held_out
    predictions = predict_images(net, config, images, data.index, rows, device, ["identity"])
    scores = score_predictions(predictions, data.labels[rows], data.truths, config.competition)
    return {name: float(value) for name, value in scores.items() if name != "per_image"}


def fit(
    net: Network,
    data: FoldData,
    config: Config,
    paths: Paths,
    fold: int,
    device: torch.device,
) -> dict:
    """In place of epochs, for a network whose body has `fit` (parts/fitted.py): once over the
    images, as they are stored. Returns what the record keeps."""
    e, started = config.experiment, time.time()
    say(
        f"  {len(data.seen)} images to fit on, {len(data.held_out)} to validate on; "
        f"{e.model.arch}; {device.type}"
    )
    pixels, groups = np.load(data.images, mmap_mode="r"), data.index["group"].to_numpy(np.int64)

    def batches():
        for rows in np.array_split(data.seen, math.ceil(len(data.seen) / e.train.batch_size)):
            images = (to_tensor(pixels[rows]).to(device).float() - net.mean) / net.std
            yield images, torch.from_numpy(data.labels[rows]), torch.from_numpy(groups[rows])

    net.eval()
    net.body.fit(batches())
    seconds = time.time() - started
    row = {"epoch": 1} | validate(net, data, config, device)
    row["images_per_second"] = round(len(data.seen) / max(seconds, 1e-3), 1)
    row["seconds"] = round(time.time() - started, 2)
    row["skipped"] = 0
    for which in ("best", "last"):
        save_weights(paths.checkpoint(config.name, fold, which), net, 1, row["score"])
    RunLog(paths.log(config.name, fold), paths.curves(config.name, fold)).write([row])
    return finish(config, [row], device)


def out_of_patience(history: list[dict], patience: int) -> bool:
    """Whether the best score is `patience` epochs old (0: never)."""
    scores = [row["score"] for row in history]
    return bool(patience and scores) and len(scores) - 1 - scores.index(max(scores)) >= patience


def small_config_hint(config: Config, device: torch.device) -> str:
    if device.type != "cpu" or config.file.resolve() == SMALL_CONFIG:
        return ""
    return (
        "  that is long: for a machine without a GPU there is "
        f"./run.sh --config {SMALL_CONFIG.relative_to(CONFIGS.parent)}"
    )


def number_format(config: Config, device: torch.device) -> str:
    return str(amp_dtype(config.experiment.train.amp, device)).removeprefix("torch.")


def diverged(what: str, last: Path, lr: float) -> StageError:
    kept = f"The last good checkpoint is kept in {short(last)}. " if last.is_file() else ""
    return StageError(
        f"{what}. {kept}Lower the rates (--set train.lr={lr / 3:.1g}) or use --set "
        "train.amp=float32",
        code="diverged",
    )


def finish(config: Config, history: list[dict], device: torch.device) -> dict:
    """Name the checkpoint that predict uses; returns what the record keeps."""
    which = config.experiment.predict.checkpoint
    best = max(history, key=lambda row: row["score"])
    used = history[-1] if which == "last" else best
    say(
        f"  predict uses the {which} checkpoint: epoch {used['epoch']}, score {used['score']:.4f} "
        f"(the best was epoch {best['epoch']}, {best['score']:.4f})"
    )
    return {
        "score": used["score"],
        "summary": f"{len(history)} epochs, score {used['score']:.4f}",
        "epochs": len(history),
        "device": device.type,
        "amp": number_format(config, device),
        "train_seconds": round(sum(row["seconds"] for row in history), 1),
    }
