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
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from src.config.load import Config
from src.core.console import InputError, say
from src.core.device import amp_dtype, autocast, pick_device
from src.core.disk import write_json
from src.core.paths import COMPETITION, ROOT, Paths
from src.data.predictions import Predictions
from src.parts import building, models
from src.parts.tta import TTA
from src.pipeline.training import make_loop
from src.training.batches import to_tensor
from src.training.inference import predict_proba

STEPS = 12  # steps (or batches) of one repeat
REPEATS = 5
MEMBERS = 6  # of the ensemble
Loops = tuple[Callable[[], None], Callable[[], None]]  # the real one, the bare one


class Generated(NamedTuple):
    """Pixel stores of noise, and labels (N) int."""

    images: Path
    masks: Path
    labels: np.ndarray


def run(given: argparse.Namespace, config: Config, paths: Paths) -> int:
    """given: `what` (words of LOOPS and COMMANDS), `sets`, and `steps` and `repeats` or None."""
    repeats = given.repeats or REPEATS
    words = [w for s in given.sets for w in ("--set", s)] + ["--data", str(paths.data)]
    for what in given.what:
        if what in LOOPS:
            compare(what, config, given.steps or STEPS, repeats)
        else:
            with tempfile.TemporaryDirectory(dir=paths.work) as folder:
                COMMANDS[what](config, paths, Path(folder), words, repeats)
    return 0


# ------------------------------------------------------------------------------ in this process


def compare(what: str, config: Config, steps: int, repeats: int) -> None:
    """Images/s of the real loop and of a bare one, in turns, after one warm-up each; the median of
    the ratios of neighbours, since machines drift."""
    e, device = config.experiment, pick_device()
    net = building.build(e, len(config.competition.data.classes), pretrained=False)
    net = net.to(device, memory_format=torch.channels_last)
    if hasattr(net.body, "fit"):
        problem, todo = f"{e.model.arch} learns without steps to time", "Choose another config"
        raise InputError(problem, "model.arch", todo, code="not_by_gradients")
    dtype = amp_dtype(e.train.amp, device)
    batch = e.train.batch_size if what == "train" else e.predict_batch_size
    count = steps * batch * (e.train.accumulate if what == "train" else 1)
    with tempfile.TemporaryDirectory() as folder:
        real, bare = LOOPS[what](net, config, generate(Path(folder), config, count), device, dtype)

        def rate(work: Callable[[], None]) -> float:
            started = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return count / (time.perf_counter() - started)

        rates = [(rate(real), rate(bare)) for _ in range(repeats + 1)][1:]
    ratios = sorted(one / other for one, other in rates)
    real_rate, bare_rate = (statistics.median(column) for column in zip(*rates))
    setting = f"{models.title(e.model)}, {e.image_size} px, batch {batch}, {dtype}, {device.type}"
    if what == "train":
        setting += f", augment {e.train.augment}"
    say(
        f"{what:<8} {real_rate:8.1f} img/s   bare {bare_rate:8.1f} img/s   ratio "
        f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}, {repeats} pairs)"
        f"   {setting}"
    )


def train(net, config: Config, data: Generated, device, dtype) -> Loops:
    """One epoch of the training loop, and as many steps on one batch."""
    rows = np.arange(len(data.labels))
    loop = make_loop(net, config, data.images, data.masks, rows, data.labels, 0, device)
    loop.sampler.set_epoch(0)
    images, target = next(iter(loop.loader))
    images, target = images.to(device), {k: v.to(device) for k, v in target.items()}

    def real() -> None:
        for _ in loop.steps(0):
            loop.bad_so_far.item()

    def bare() -> None:
        net.train()
        for _ in range(loop.sampler.steps * loop.sampler.accumulate):
            with autocast(device, dtype):
                output = loop.forward(images)
            loop.scaler.scale(loop.loss(output, target)["loss"]).backward()
            loop.scaler.step(loop.optimiser)
            loop.scaler.update()
            loop.optimiser.zero_grad(set_to_none=True)

    return real, bare


def predict(net, config: Config, data: Generated, device, dtype) -> Loops:
    """predict's loop, one view, and as many forward passes of one batch."""
    images, rows = np.load(data.images, mmap_mode="r"), range(len(data.labels))
    batch = config.experiment.predict_batch_size
    resident = to_tensor(np.array(images[:batch])).to(device)
    net.eval()

    def real() -> None:
        predict_proba(net, images, rows, [TTA["identity"]], device, dtype, batch)

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(len(rows) // batch):
            with autocast(device, dtype):
                net(resident)

    return real, bare


def generate(folder: Path, config: Config, count: int) -> Generated:
    """A pixel store of noise: speed does not depend on what is in the images."""
    random, size = np.random.default_rng(0), config.experiment.image_size
    colour = (3,) if config.competition.data.channels == 3 else ()
    masks = np.zeros((count, size, size), np.uint8)
    masks[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    images = random.integers(0, 256, (count, size, size, *colour), dtype=np.uint8)
    for name, pixels in (("images", images), ("masks", masks)):
        np.save(folder / f"{name}.npy", pixels)
    labels = random.integers(0, len(config.competition.data.classes), count)
    return Generated(folder / "images.npy", folder / "masks.npy", labels)


# ---------------------------------------------------------------------------------- whole processes


def stages(config: Config, paths: Paths, folder: Path, words: list[str], repeats: int) -> None:
    """As a user starts them, on a copy of --work."""
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
    random, classes = np.random.default_rng(0), config.competition.data.classes
    if not paths.oof(config.name).is_file():
        todo = f"./run.sh --config {config.file} makes one"
        raise InputError("no finished run", str(paths.work), todo, code="not_finished")
    copy_artifacts(paths, folder, "models", "predictions", paths.old.name)
    shutil.copy(config.file.parent / COMPETITION, folder)
    members = [str(folder / f"m{k}") for k in range(MEMBERS)]
    files = [f for f in (paths.oof(config.name), paths.test(config.name)) if f.is_file()]
    for member, file in itertools.product(members, files):
        one = Predictions.load(file, classes)
        coarse = random.normal(0, 0.25, (len(one), 12, 12)).astype(np.float32)
        noise = np.stack([cv2.resize(c, one.mask.shape[1:]) for c in coarse])
        mask = np.clip(one.mask + noise, 0, 1).astype(np.float16)
        label = np.clip(one.label + random.normal(0, 0.15, one.label.shape), 1e-3, None)
        label = (label / label.sum(1, keepdims=True)).astype(np.float32)
        Predictions(one.ids, mask, label, classes).save(Path(member, file.name))
    ensemble = folder / "six.yaml"
    write_json(ensemble, {"members": members, "method": "greedy"})  # JSON is YAML
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


LOOPS = {"train": train, "predict": predict}
COMMANDS = {"stages": stages, "greedy": greedy}
