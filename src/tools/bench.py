"""Benchmarks: `python -m src.tools.bench WHAT …`, alternating repeats in one process, medians.

python -m src.tools.bench train predict --config configs/cpu.yaml --set model.encoder_weights=none
    the training loop (loader, augmentation, EMA, sums) ÷ a bare loop of the same network, loss and optimiser on one resident batch;
    predict's loop ÷ a bare forward pass. On generated images; on the GPU where there is one.
python -m src.tools.bench stages --config configs/cpu.yaml --data DIR [--work DIR]
    seconds of prepare (all of the data, anew, in a temporary folder), and of evaluate, ensemble and submit, of the command line's answers and of an
    up-to-date run, on what a finished run left in --work; nothing of it is changed.
python -m src.tools.bench greedy --config configs/cpu.yaml --data DIR [--work DIR]
    seconds of greedy selection over six members, made from that run's predictions by adding smooth noise.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from src.config.load import Config, load
from src.core.console import InputError, error_line, say
from src.core.paths import COMPETITION, CONFIGS, ROOT, Paths

REPEATS = 5


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m src.tools.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="+", choices=["train", "predict", "stages", "greedy"])
    parser.add_argument("--config", type=Path, default=CONFIGS / "cpu.yaml")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--data", type=Path, default=ROOT / "input")
    parser.add_argument("--work", type=Path, default=ROOT)
    parser.add_argument("--steps", type=int, default=12, help="steps (or batches) of one repeat")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    given = parser.parse_args(words)
    try:
        config = load(given.config, given.sets)
        for what in given.what:
            {"train": train_ratio, "predict": predict_ratio, "stages": stages, "greedy": greedy}[
                what
            ](config, given)
    except InputError as error:
        print(error_line(error), file=sys.stderr)
        return 2
    return 0


def train_ratio(config: Config, given: argparse.Namespace) -> None:
    """Images/s of the real loop and of a bare one, in turns."""
    import torch

    from src.core.device import amp_dtype, autocast, pick_device, worker_count
    from src.parts import augment, building, losses, models
    from src.training.batches import EpochSampler, Images, loader
    from src.training.loop import Loop, optimiser_for
    from src.training.runlog import BadSteps

    e, classes = config.experiment, config.competition.data.classes
    t, device = e.train, pick_device()
    dtype = amp_dtype(t.amp, device)
    with tempfile.TemporaryDirectory() as folder:
        images, masks, labels = generated(
            Path(folder),
            e.image_size,
            given.steps * t.batch_size * t.accumulate,
            len(classes),
            config.competition.data.channels,
        )
        plan = EpochSampler(len(labels), t.batch_size, t.accumulate, 0, 0)
        stream = loader(
            Images(
                images,
                masks,
                np.arange(len(labels)),
                np.eye(len(classes), dtype=np.float32)[labels],
                augment.build(t.augment),
                losses.maps(e),
                augment.mix(t),
            ),
            plan,
            worker_count(t.workers, device),
            device,
        )
        net = building.build(e, len(classes), pretrained=False).to(
            device, memory_format=torch.channels_last
        )
        if hasattr(net.body, "fit"):
            raise InputError(
                f"{e.model.arch} learns without steps to time",
                "model.arch",
                "Choose another config",
                code="not_by_gradients",
            )
        optimiser = optimiser_for(net.parameter_groups(t.lr, t.lr, t.weight_decay), t)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        loss = partial(
            losses.total,
            classes=losses.Frequencies(torch.ones(len(classes), device=device) / len(classes)),
            settings=e.loss,
        )
        loop = Loop(
            net,
            copy.deepcopy(net).eval().requires_grad_(False),
            optimiser,
            scaler,
            loss,
            plan,
            stream,
            t,
            device,
            dtype,
            partial(net.freeze, t),
        )
        bad = BadSteps(device, 0, 10**9)
        plan.set_epoch(0, 0)
        images, target = next(iter(stream))
        resident = images.to(device), {k: v.to(device) for k, v in target.items()}

        def whole() -> None:
            for finite in loop.steps(0):
                bad.too_many(finite)

        def bare() -> None:
            net.train()
            for _ in range(plan.steps * plan.accumulate):
                with autocast(device, dtype):
                    output = loop.forward(resident[0])
                scaler.scale(loss(output, resident[1])["loss"]).backward()
                scaler.step(optimiser)
                scaler.update()
                optimiser.zero_grad(set_to_none=True)

        compare(
            "train",
            whole,
            bare,
            len(labels),
            device,
            given.repeats,
            f"{models.title(e.model)}, {e.image_size} px, batch {t.batch_size}, {dtype}, {device.type}, augment {t.augment}",
        )


def predict_ratio(config: Config, given: argparse.Namespace) -> None:
    """Images/s of predict's loop and of bare forward passes, in turns; one view each."""
    import torch

    from src.core.device import amp_dtype, autocast, pick_device
    from src.parts import building, models
    from src.parts.tta import TTA
    from src.training.inference import infer

    e, classes = config.experiment, config.competition.data.classes
    device = pick_device()
    dtype = amp_dtype(e.train.amp, device)
    batch = e.predict.batch_size or 2 * e.train.batch_size
    with tempfile.TemporaryDirectory() as folder:
        images, _, labels = generated(
            Path(folder),
            e.image_size,
            given.steps * batch,
            len(classes),
            config.competition.data.channels,
        )
        pixels = np.load(images, mmap_mode="r")
        net = (
            building.build(e, len(classes), pretrained=False)
            .to(device, memory_format=torch.channels_last)
            .eval()
        )
        first = np.array(pixels[:batch])
        resident = torch.from_numpy(
            np.ascontiguousarray(first[:, None] if first.ndim == 3 else first.transpose(0, 3, 1, 2))
        ).to(device)

        def whole() -> None:
            infer(net, pixels, range(len(labels)), [TTA["identity"]], device, dtype, batch)

        @torch.inference_mode()
        def bare() -> None:
            for _ in range(given.steps):
                with autocast(device, dtype):
                    net(resident)

        compare(
            "predict",
            whole,
            bare,
            len(labels),
            device,
            given.repeats,
            f"{models.title(e.model)}, {e.image_size} px, batch {batch}, {dtype}, {device.type}",
        )


def compare(
    name: str,
    whole: Callable[[], None],
    bare: Callable[[], None],
    images: int,
    device,
    repeats: int,
    setting: str,
) -> None:
    """Both in turns, after one warm-up each; the median of the ratios of neighbours, since machines drift."""
    import torch

    def rate(work: Callable[[], None]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return images / (time.perf_counter() - began)

    rate(bare), rate(whole)
    pairs = [(rate(whole), rate(bare)) for _ in range(repeats)]
    ratios = sorted(w / b for w, b in pairs)
    say(
        f"{name:<8} {statistics.median(w for w, _ in pairs):8.1f} img/s   bare {statistics.median(b for _, b in pairs):8.1f} img/s   ratio {statistics.median(ratios):.3f} "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f}, {repeats} pairs)   {setting}"
    )


def generated(
    folder: Path, size: int, count: int, classes: int, channels: int
) -> tuple[Path, Path, np.ndarray]:
    """A pixel store of noise: speed does not depend on what is in the pictures."""
    random = np.random.default_rng(0)
    images = random.integers(
        0, 256, (count, size, size, *((3,) if channels == 3 else ())), dtype=np.uint8
    )
    masks = np.zeros((count, size, size), np.uint8)
    masks[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    np.save(folder / "images.npy", images)
    np.save(folder / "masks.npy", masks)
    return folder / "images.npy", folder / "masks.npy", random.integers(0, classes, count)


def stages(config: Config, given: argparse.Namespace) -> None:
    """Whole processes, as a user starts them, on a copy of what lies in --work."""
    common = [
        "--config",
        str(given.config),
        *(w for s in given.sets for w in ("--set", s)),
        "--data",
        str(given.data),
    ]
    source = Paths(given.work.resolve(), given.data.resolve())
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        fresh, copied = Path(folder) / "fresh", Path(folder) / "copied"
        fresh.mkdir()
        rows = [
            ("--help", ["--help"]),
            ("prepare", ["prepare", *common, "--work", str(fresh), "--force"]),
        ]
        if source.html(config.name).is_file():
            shutil.copytree(
                source.artifacts,
                copied / "artifacts",
                ignore=shutil.ignore_patterns(source.old.name),
            )
            if source.submissions.is_dir():
                shutil.copytree(source.submissions, copied / "submissions")
            there = [*common, "--work", str(copied)]
            if config.ensemble:
                rows.append(("ensemble", ["ensemble", *there, "--force"]))
            rows += [
                ("evaluate", ["evaluate", *there, "--force"]),
                ("submit", ["submit", *there, "--force"]),
                ("status", ["status", *there]),
                ("up-to-date run", there),
            ]
            timed(there, quiet=True)
        else:
            say(
                "no finished run in --work: evaluate, ensemble, submit, status and an up-to-date run are left out"
            )
        for name, words in rows:
            report(name, words, given.repeats)


def greedy(config: Config, given: argparse.Namespace) -> None:
    """Six members that err in different places."""
    import cv2

    from src.data.predictions import Predictions

    source, random = Paths(given.work.resolve(), given.data.resolve()), np.random.default_rng(0)
    if not source.oof(config.name).is_file():
        raise InputError(
            "no finished run",
            str(given.work),
            f"./run.sh --config {given.config} makes one",
            code="not_finished",
        )
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        home = Path(folder)
        shutil.copytree(
            source.artifacts,
            home / source.artifacts.name,
            ignore=shutil.ignore_patterns("models", "predictions", source.old.name),
        )
        shutil.copy(given.config.parent / COMPETITION, home)
        for member in range(6):
            for file in (source.oof(config.name), source.test(config.name)):
                if file.is_file():
                    found = Predictions.load(file, config.competition.data.classes)
                    size = found.mask.shape[1]
                    noise = np.stack(
                        [
                            cv2.resize(
                                random.normal(0, 0.25, (12, 12)).astype(np.float32), (size, size)
                            )
                            for _ in found.ids
                        ]
                    )
                    label = np.clip(
                        found.label + random.normal(0, 0.15, found.label.shape), 1e-3, None
                    )
                    mask = np.clip(found.mask.astype(np.float32) + noise, 0, 1).astype(np.float16)
                    Predictions(
                        found.ids,
                        mask,
                        (label / label.sum(1, keepdims=True)).astype(np.float32),
                        found.classes,
                    ).save(home / f"m{member}" / file.name)
        (home / "six.yaml").write_text(
            f"members: [{', '.join(str(home / f'm{m}') for m in range(6))}]\nmethod: greedy\n",
            encoding="utf-8",
        )
        words = [
            "ensemble",
            "--config",
            str(home / "six.yaml"),
            "--data",
            str(given.data),
            "--work",
            str(home),
            "--force",
        ]
        report("greedy, 6 members", words, given.repeats)


def report(name: str, words: list[str], repeats: int) -> None:
    seconds = [timed(words, quiet=False) for _ in range(repeats)]
    say(
        f"{name:<16} {statistics.median(seconds):6.2f} s   ({min(seconds):.2f} to {max(seconds):.2f}, {len(seconds)} runs)"
    )


def timed(words: list[str], quiet: bool) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "src", *words],
        cwd=ROOT,
        env=os.environ | {"CALLED_FROM": os.getcwd()},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode and not quiet:
        raise InputError(
            f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}",
            code="command_failed",
        )
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
