"""bench: how fast are training, prediction and the stages? Alternating repeats, medians.

./run.sh bench train predict --config configs/cpu.yaml --set model.encoder_weights=none
    the training loop (loader, augmentation, averaging, sums) ÷ a bare loop of the same network,
    loss and optimiser on one resident batch; predict's loop ÷ a bare forward pass. On generated
    images; on the GPU where there is one.
./run.sh bench stages --config configs/cpu.yaml --data DIR [--work DIR]
    seconds of prepare (all of the data, in a temporary folder), and of evaluate, ensemble and
    submit, of the command line's answers and of an up-to-date run, on what a finished run left in
    --work; nothing of it is changed.
./run.sh bench greedy --config configs/cpu.yaml --data DIR [--work DIR]
    seconds of greedy selection over six members, made from that run's predictions by adding smooth
    noise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from src.config.load import Config
from src.core.console import InputError, nearest, say
from src.core.device import amp_dtype, autocast, pick_device
from src.core.disk import write_json
from src.core.paths import COMPETITION, ROOT, Paths
from src.data.predictions import Predictions
from src.parts import models
from src.parts.tta import TTA
from src.pipeline.training import make_loop
from src.training.batches import to_tensor
from src.training.inference import predict_proba

STEPS = 12  # steps (or batches) of one repeat
REPEATS = 5
MEMBERS = 6


def run(given: argparse.Namespace, config: Config, paths: Paths) -> int:
    """given: `what` (a list of BENCHMARKS), `sets` and, optionally, `steps` and `repeats`."""
    steps = getattr(given, "steps", None) or STEPS
    repeats = getattr(given, "repeats", None) or REPEATS
    if unknown := [what for what in given.what if what not in BENCHMARKS] or not given.what:
        what = f"unknown benchmark '{unknown[0]}'" if given.what else "bench needs a word"
        known = nearest(given.what[0] if given.what else "", BENCHMARKS)
        raise InputError(what, "command line", known, code="usage")
    for what in given.what:
        if what in ("train", "predict"):
            compare_loops(what, config, steps, repeats)
        else:
            words = [w for s in given.sets for w in ("--set", s)] + ["--data", str(paths.data)]
            with tempfile.TemporaryDirectory(dir=paths.work) as folder:
                BENCHMARKS[what](config, paths, Path(folder), words, repeats)
    return 0


# ------------------------------------------------------------------------------ in this process


def compare_loops(what: str, config: Config, steps: int, repeats: int) -> None:
    """Images/s of the real loop and of a bare one, in turns, after one warm-up each; the median of
    the ratios of neighbours, since machines drift."""
    e, device = config.experiment, pick_device()
    net = models.build(e, len(config.competition.data.classes), pretrained=False)
    net = net.to(device, memory_format=torch.channels_last)
    if hasattr(net.body, "fit"):
        todo = "Choose another config"
        what = f"{e.model.arch} learns without steps to time"
        raise InputError(what, "model.arch", todo, code="not_by_gradients")
    t, batch = e.train, e.predict_batch_size
    count = steps * (batch if what == "predict" else t.batch_size * t.accumulate)
    setting = f"{models.title(e.model)}, {e.image_size} px, batch {batch}, "
    setting += f"{amp_dtype(t.amp, device)}, {device.type}"
    if what == "train":
        setting = setting.replace(f"batch {batch}", f"batch {t.batch_size}")
        setting += f", augment {t.augment}"
    with tempfile.TemporaryDirectory() as folder:
        images, masks, labels = generate(Path(folder), config, count)
        pair = BENCHMARKS[what](net, config, images, masks, labels, device)

        def rate(work: Callable[[], None]) -> float:
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return count / (time.perf_counter() - started)

        for work in pair:
            rate(work)
        pairs = [tuple(rate(work) for work in pair) for _ in range(repeats)]
    real, bare = (statistics.median(rates) for rates in zip(*pairs))
    ratios = sorted(one / other for one, other in pairs)
    say(
        f"{what:<8} {real:8.1f} img/s   bare {bare:8.1f} img/s   ratio "
        f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}, {repeats} pairs)"
        f"   {setting}"
    )


def train(net, config: Config, images: Path, masks: Path, labels: np.ndarray, device):
    """One epoch of the training loop, and as many steps on one batch."""
    loop = make_loop(net, config, images, masks, np.arange(len(labels)), labels, 0, device)
    loop.sampler.set_epoch(0)
    pixels, target = next(iter(loop.loader))
    pixels, target = pixels.to(device), {k: v.to(device) for k, v in target.items()}

    def real() -> None:
        for _ in loop.steps(0):
            loop.bad_so_far.item()

    def bare() -> None:
        net.train()
        for _ in range(loop.sampler.steps * loop.sampler.accumulate):
            with autocast(device, loop.dtype):
                output = loop.forward(pixels)
            loop.scaler.scale(loop.loss(output, target)["loss"]).backward()
            loop.scaler.step(loop.optimiser)
            loop.scaler.update()
            loop.optimiser.zero_grad(set_to_none=True)

    return real, bare


def predict(net, config: Config, images: Path, masks: Path, labels: np.ndarray, device):
    """predict's loop, one view, and as many forward passes of one batch."""
    e = config.experiment
    pixels, dtype = np.load(images, mmap_mode="r"), amp_dtype(e.train.amp, device)
    rows, batch = range(len(labels)), e.predict_batch_size
    resident = to_tensor(np.array(pixels[:batch])).to(device)
    net.eval()

    def real() -> None:
        predict_proba(net, pixels, rows, [TTA["identity"]], device, dtype, batch)

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(len(rows) // batch):
            with autocast(device, dtype):
                net(resident)

    return real, bare


def generate(folder: Path, config: Config, count: int) -> tuple[Path, Path, np.ndarray]:
    """A pixel store of noise: speed does not depend on what is in the images."""
    random, size = np.random.default_rng(0), config.experiment.image_size
    colour = (3,) if config.competition.data.channels == 3 else ()
    masks = np.zeros((count, size, size), np.uint8)
    masks[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    images = random.integers(0, 256, (count, size, size, *colour), dtype=np.uint8)
    for name, pixels in (("images", images), ("masks", masks)):
        np.save(folder / f"{name}.npy", pixels)
    labels = random.integers(0, len(config.competition.data.classes), count)
    return folder / "images.npy", folder / "masks.npy", labels


# ---------------------------------------------------------------------------------- whole processes


def stages(config: Config, paths: Paths, folder: Path, words: list[str], repeats: int) -> None:
    """As a user starts them, on a copy of what lies in --work."""
    common = ["--config", str(config.file), *words, "--work"]
    fresh, copied = folder / "fresh", folder / "copied"
    fresh.mkdir()
    report("--help", ["--help"], repeats)
    report("prepare", ["prepare", *common, str(fresh), "--force"], repeats)
    if not paths.html(config.name).is_file():
        say(
            "no finished run in --work: evaluate, ensemble, submit, status and an up-to-date run "
            "are left out"
        )
        return
    copy_artifacts(paths, copied, paths.old.name)
    if paths.submissions.is_dir():
        shutil.copytree(paths.submissions, copied / "submissions")
    there = [*common, str(copied)]
    timed(there, must_end_well=False)
    for stage in (["ensemble"] if config.ensemble else []) + ["evaluate", "submit"]:
        report(stage, [stage, *there, "--force"], repeats)
    report("status", ["status", *there], repeats)
    report("up-to-date run", there, repeats)


def greedy(config: Config, paths: Paths, folder: Path, words: list[str], repeats: int) -> None:
    """Members that err in different places."""
    random = np.random.default_rng(0)
    if not paths.oof(config.name).is_file():
        todo = f"./run.sh --config {config.file} makes one"
        raise InputError("no finished run", str(paths.work), todo, code="not_finished")
    copy_artifacts(paths, folder, "models", "predictions", paths.old.name)
    shutil.copy(config.file.parent / COMPETITION, folder)
    files = [f for f in (paths.oof(config.name), paths.test(config.name)) if f.is_file()]
    members = [folder / f"m{k}" for k in range(MEMBERS)]
    for member in members:
        for file in files:
            found = Predictions.load(file, config.competition.data.classes)
            size = found.mask.shape[1:]
            coarse = random.normal(0, 0.25, (len(found), 12, 12)).astype(np.float32)
            noise = np.stack([cv2.resize(c, size) for c in coarse])
            mask = np.clip(found.mask.astype(np.float32) + noise, 0, 1).astype(np.float16)
            label = np.clip(found.label + random.normal(0, 0.15, found.label.shape), 1e-3, None)
            label = (label / label.sum(1, keepdims=True)).astype(np.float32)
            Predictions(found.ids, mask, label, found.classes).save(member / file.name)
    ensemble = folder / "six.yaml"  # JSON is YAML
    write_json(ensemble, {"members": [str(member) for member in members], "method": "greedy"})
    line = ["ensemble", "--config", str(ensemble), *words, "--work", str(folder), "--force"]
    report(f"greedy, {MEMBERS} members", line, repeats)


def copy_artifacts(paths: Paths, work: Path, *left_out: str) -> None:
    ignore = shutil.ignore_patterns(*left_out)
    shutil.copytree(paths.artifacts, work / paths.artifacts.name, ignore=ignore)


def report(name: str, words: list[str], repeats: int) -> None:
    seconds = [timed(words) for _ in range(repeats)]
    say(
        f"{name:<16} {statistics.median(seconds):6.2f} s   "
        f"({min(seconds):.2f} to {max(seconds):.2f}, {repeats} runs)"
    )


def timed(words: list[str], must_end_well: bool = True) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "src", *words],
        cwd=ROOT,
        env=os.environ | {"CALLED_FROM": os.getcwd()},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode and must_end_well:
        what = f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}"
        raise InputError(what, code="command_failed")
    return time.perf_counter() - started


BENCHMARKS = {"train": train, "predict": predict, "stages": stages, "greedy": greedy}
