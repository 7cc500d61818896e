"""train: one network for one experiment × fold.

READS   prepared/index.csv, images_S.npy, masks_S.npy, truth.npz, folds.csv, and pre-trained encoder weights
WRITES  models/<experiment>/fold<k>/ last.pt best.pt log.csv curves.png stage.json
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from src.config.load import Config
from src.core.console import InputError, Interrupts, StageError, Stopped, header, say, short, warn
from src.core.device import amp_dtype, memory_advice, out_of_memory, pick_device, worker_count
from src.core.freshness import Job
from src.core.paths import Paths
from src.data.rle import Truth
from src.data.tables import how_to_mend_folds, open_store, read_folds, read_index, read_labels
from src.parts import augment, building, losses, models, sampling
from src.parts.network import Network
from src.parts.tta import TTA
from src.scoring.images import score_predictions
from src.training.batches import EpochSampler, Images, loader
from src.training.checkpoint import (
    is_intact,
    load_checkpoint,
    restore,
    save_checkpoint,
    save_weights,
)
from src.training.inference import infer, to_predictions
from src.training.loop import Loop, optimiser_for, rate
from src.training.runlog import BadSteps, Clock, epoch_line, since_best, write_log

BAD_IN_A_ROW = 10


def run(job: Job, config: Config, paths: Paths) -> None:
    """Train, or go on with, one fold. Raises Stopped on Ctrl+C or SIGTERM, after saving."""
    header(
        "train",
        f"{config.name} fold {job.fold}",
        list(dict.fromkeys(i.file for i in job.inputs)),
        [paths.fold(config.name, job.fold)],
    )
    facts: dict = {}
    with job.running(facts):
        try:
            found, asked_to_stop = train(job, config, paths)
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise memory_advice(config.experiment, config.file) from error
            raise
        facts |= found
    if (
        asked_to_stop
    ):  # during the very last validation: this fold is finished, the next one is not begun
        raise Stopped(f"{job.title} is finished")


def train(job: Job, config: Config, paths: Paths) -> tuple[dict, bool]:
    """What the record keeps, and whether it was asked to stop at the very end."""
    e, fold, classes = config.experiment, job.fold, config.competition.data.classes
    t = e.train
    last, best = (
        paths.checkpoint(config.name, fold, "last"),
        paths.checkpoint(config.name, fold, "best"),
    )
    device = pick_device()
    dtype = amp_dtype(t.amp, device)

    # the fold's images
    of = FoldImages.load(config, paths, fold)
    strength = augment.build(t.augment) if t.augment != "none" else None
    plan = EpochSampler(
        len(of.seen),
        t.batch_size,
        t.accumulate,
        t.seed,
        fold,
        sampling.draw(t, of.labels[of.seen], config.competition.data),
    )
    shares = np.eye(len(classes), dtype=np.float32)[of.labels[of.seen]]
    batches = loader(
        Images(of.images, of.masks, of.seen, shares, strength, losses.maps(e), augment.mix(t)),
        plan,
        worker_count(t.workers, device),
        device,
    )

    # the network and everything that moves with it
    torch.manual_seed(t.seed * 1000 + fold)
    saved = load_checkpoint(last)
    if saved and saved["history"] and not is_intact(best):
        warn(f"{short(best)} is {'damaged' if best.is_file() else 'gone'}: this fold starts over")
        saved = None
    net = building.build(e, len(classes), pretrained=saved is None).to(
        device, memory_format=torch.channels_last
    )
    if saved is None:
        building.try_views(net, {v: TTA[v].do for v in e.predict.tta if v != "identity"}, e.model)
    if hasattr(net.body, "fit"):  # learns without gradients, or nothing
        return fit(net, of, config, paths, fold, device, dtype), False
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    optimiser = optimiser_for(
        net.parameter_groups(
            t.lr, t.lr / 3 if t.encoder_lr is None else t.encoder_lr, t.weight_decay
        ),
        t,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    frequencies = losses.Frequencies.of(
        torch.from_numpy(of.labels[of.seen]), len(classes), e.loss, device
    )
    loop = Loop(
        net,
        ema,
        optimiser,
        scaler,
        partial(losses.total, classes=frequencies, settings=e.loss),
        plan,
        batches,
        t,
        device,
        dtype,
        partial(net.freeze, t),
    )
    judged = ema if t.ema else net  # what is validated is what is kept
    state = {"epoch": 0, "step": 0, "history": [], "best": None, "sums": {}, "bad": 0.0}
    say(
        f"  {len(of.seen)} images to train on, {len(of.held_out)} to validate on; {models.title(e.model)}, "
        f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters; {device.type}, {str(dtype).removeprefix('torch.')}"
    )
    if saved:
        state |= restore(saved, net, ema, optimiser, scaler, last, fold)
        say(f"  goes on from epoch {state['epoch']}, step {state['step']} of {plan.steps}")

    bad = BadSteps(device, state["bad"], BAD_IN_A_ROW)
    clock = Clock(job, plan.steps, t.epochs, state["epoch"], device)
    with Interrupts() as interrupts:
        while state["epoch"] < t.epochs and not (
            t.patience and since_best(state["history"]) >= t.patience
        ):
            began, first = time.time(), state["step"]
            for finite in loop.steps(state["epoch"], first, state["sums"]):
                state["step"] += 1
                if bad.too_many(finite):
                    raise diverged(
                        f"the loss was not finite {BAD_IN_A_ROW} steps in a row (epoch {state['epoch'] + 1}, step {state['step']})",
                        last,
                        t.lr,
                    )
                clock.tick()
                if interrupts.asked:
                    state |= {
                        "sums": {k: v.item() for k, v in loop.sums.items()},
                        "bad": bad.count(),
                    }
                    save_checkpoint(last, net, judged, optimiser, scaler, state)
                    clock.draw(paths.curves(config.name, fold), state["history"], final=True)
                    raise Stopped(
                        f"saved at epoch {state['epoch'] + 1}, step {state['step']} of {plan.steps}"
                    )
            skipped = int(loop.sums["skipped"].item())
            training = time.time() - began
            if bad.count() >= BAD_IN_A_ROW or skipped and not loop.is_finite():
                raise diverged(
                    f"the loss or the network's weights are no longer finite (epoch {state['epoch'] + 1})",
                    last,
                    t.lr,
                )

            found = validate(judged, of, config, device, dtype)
            row = {
                "epoch": state["epoch"] + 1,
                "lr": t.lr
                * rate(
                    (state["epoch"] + 1) * plan.steps - 1,
                    t.epochs * plan.steps,
                    t.warmup,
                    t.schedule,
                ),
            } | {k: (v / plan.steps).item() for k, v in loop.sums.items()}
            row |= found | {"skipped": skipped}
            row |= {
                "images_per_second": round(
                    (plan.steps - first) * plan.accumulate * plan.size / training, 1
                ),
                "seconds": round(time.time() - began, 2),
            }
            better = state["best"] is None or row["score"] > state["best"]
            state |= {
                "epoch": row["epoch"],
                "step": 0,
                "sums": {},
                "bad": bad.count(),
                "history": [*state["history"], row],
                "best": row["score"] if better else state["best"],
            }
            if better:
                save_weights(best, judged, row["epoch"], row["score"])
            save_checkpoint(last, net, judged, optimiser, scaler, state)
            write_log(paths.log(config.name, fold), state["history"])
            clock.draw(paths.curves(config.name, fold), state["history"])
            say(epoch_line(row, t.epochs, better))
            if interrupts.asked and state["epoch"] < t.epochs:
                raise Stopped(f"saved after epoch {state['epoch']}")
    if len(state["history"]) < t.epochs:
        say(f"  stopped early: no better score for {t.patience} epochs")
    write_log(paths.log(config.name, fold), state["history"])
    clock.draw(paths.curves(config.name, fold), state["history"], final=True)
    return finish(config, state["history"], device, dtype), interrupts.asked


@dataclass
class FoldImages:
    """One fold's rows of the index and of the pixel store: those that it learns from, and those held out."""

    index: pd.DataFrame
    labels: np.ndarray  # (N) int
    seen: np.ndarray
    held_out: np.ndarray
    images: Path
    masks: Path
    truths: Truth  # of those held out

    @classmethod
    def load(cls, config: Config, paths: Paths, fold: int) -> FoldImages:
        e, classes = config.experiment, config.competition.data.classes
        index = read_index(paths, "train")
        folds = read_folds(paths, index["id"])
        labels = read_labels(paths, index, classes)
        seen, held_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(seen) < 2 or not len(held_out):
            raise InputError(
                f"fold {fold} leaves {len(seen)} images to train on and "
                f"{len(held_out)} to validate on",
                short(paths.folds),
                how_to_mend_folds(),
                code="fold_empty",
            )
        images, masks = (
            paths.images(e),
            paths.masks(e),
        )
        for file in (
            images,
            masks,
        ):  # read where they are needed, in other processes too: what is wrong is said here
            open_store(file, len(index), e.image_size)
        return cls(
            index,
            labels,
            seen,
            held_out,
            images,
            masks,
            Truth.load(paths.truth).subset(index["id"].iloc[held_out]),
        )


def validate(
    net: torch.nn.Module, of: FoldImages, config: Config, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """The one score, and every metric, on the fold's held-out images."""
    e, rows = config.experiment, of.index.iloc[of.held_out]
    mask, proba = infer(
        net,
        np.load(of.images, mmap_mode="r"),
        of.held_out,
        [TTA["identity"]],
        device,
        dtype,
        2 * e.train.batch_size,
    )
    said = to_predictions(
        mask,
        proba,
        rows["id"].to_numpy(),
        rows[["height", "width"]].to_numpy(),
        e.resize,
        config.competition.data.classes,
    )
    found = score_predictions(said, of.labels[of.held_out], of.truths, config.competition)
    return {k: float(v) for k, v in found.items() if k != "per_image"}


def fit(
    net: Network,
    of: FoldImages,
    config: Config,
    paths: Paths,
    fold: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict:
    """In place of epochs, for a network whose body has `fit` (parts/fitted.py): once over the images, as they are stored. What the record keeps."""
    e, began = config.experiment, time.time()
    say(
        f"  {len(of.seen)} images to fit on, {len(of.held_out)} to validate on; {e.model.arch}; {device.type}"
    )
    pixels, groups = np.load(of.images, mmap_mode="r"), of.index["group"].to_numpy(np.int64)

    def batches():
        for rows in np.array_split(of.seen, math.ceil(len(of.seen) / e.train.batch_size)):
            batch = torch.from_numpy(pixels[rows]).to(device)
            batch = batch[:, None] if batch.ndim == 3 else batch.permute(0, 3, 1, 2)
            yield (
                (batch.float() - net.mean) / net.std,
                torch.from_numpy(of.labels[rows]),
                torch.from_numpy(groups[rows]),
            )

    net.eval()
    net.body.fit(batches())
    seconds = time.time() - began
    row = {"epoch": 1} | validate(net, of, config, device, dtype)
    row |= {
        "images_per_second": round(len(of.seen) / max(seconds, 1e-3), 1),
        "seconds": round(time.time() - began, 2),
        "skipped": 0,
    }
    for which in ("best", "last"):
        save_weights(paths.checkpoint(config.name, fold, which), net, 1, row["score"])
    write_log(paths.log(config.name, fold), [row])
    return finish(config, [row], device, dtype)


def diverged(what: str, last: Path, lr: float) -> StageError:
    kept = f"The last good checkpoint is kept in {short(last)}. " if last.is_file() else ""
    return StageError(
        f"{what}. {kept}Lower the rates (--set train.lr={lr / 3:.1g}) or use --set "
        "train.amp=float32",
        code="diverged",
    )


def finish(config: Config, history: list[dict], device: torch.device, dtype: torch.dtype) -> dict:
    """The last words of a fold, and what its record keeps."""
    which = config.experiment.predict.checkpoint
    best = max(history, key=lambda r: r["score"])
    used = history[-1] if which == "last" else best
    say(
        f"  predict uses the {which} checkpoint: epoch {used['epoch']}, score {used['score']:.4f} (the best was epoch {best['epoch']}, {best['score']:.4f})"
    )
    return {
        "score": used["score"],
        "summary": f"{len(history)} epochs, score {used['score']:.4f}",
        "epochs": len(history),
        "device": device.type,
        "amp": str(dtype).removeprefix("torch."),
        "train_seconds": round(sum(r["seconds"] for r in history), 1),
    }
