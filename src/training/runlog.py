"""What a training run tells while it runs: how long it will take, log.csv, curves.png; and when to give up."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import torch

from src.core.console import duration, say
from src.core.disk import replacing
from src.core.freshness import Job

LOG = [
    "epoch",
    "loss",
    "mask_loss",
    "label_loss",
    "lr",
    "score",
    "dice",
    "iou",
    "accuracy",
    "macro_f1",
    "images_per_second",
    "seconds",
    "skipped",
]
HOURS = 2 * 3600  # a plan longer than this, without a GPU, names the small config


class Clock:
    """Says once, after the first steps, how long this fold and the whole plan will take; draws the curves now and then."""

    WARM, TIMED = 2, 8

    def __init__(self, job: Job, steps: int, epochs: int, epochs_done: int, device: torch.device):
        self.job, self.device = job, device
        self.steps, self.epochs_left, self.epochs = steps, epochs - epochs_done, epochs
        self.ticks, self.since, self.drawn = 0, 0.0, 0.0

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks == self.WARM:
            self.since = time.time()
        elif self.ticks == min(self.WARM + self.TIMED, max(self.WARM + 1, self.steps)):
            if self.device.type == "cuda":
                torch.cuda.synchronize()  # once in a run: queued work is no measure
            self._tell((time.time() - self.since) / (self.ticks - self.WARM))

    def _tell(self, seconds: float) -> None:
        epoch = seconds * self.steps * 1.1  # validation is about a tenth of it
        left = self.job.folds_left
        plan = epoch * (self.epochs_left + self.epochs * (left - 1))
        say(
            f"  about {duration(epoch)} an epoch, {duration(epoch * self.epochs_left)} for this fold"
            + (
                f", {duration(plan)} for all {left} folds left to train at this speed"
                if left > 1
                else ""
            )
        )
        if self.device.type == "cpu" and plan > HOURS and self.job.name != "cpu":
            say(
                "  that is long: for a machine without a GPU there is ./run.sh --config configs/cpu.yaml"
            )

    def draw(self, path: Path, history: list[dict], final: bool = False) -> None:
        """curves.png, at most every ten seconds and at the end: drawing costs as much as a small epoch."""
        if not final and time.time() - self.drawn < 10 or not history:
            return
        self.drawn = time.time()
        draw_curves(path, history)


class BadSteps:
    """Counts non-finite steps in a row on the device, and reads the count one step late, so that a GPU is never waited for."""

    def __init__(self, device: torch.device, in_a_row: int, limit: int):
        self.row = torch.tensor(float(in_a_row), device=device)
        self.limit, self.waiting = limit, None

    def too_many(self, finite: torch.Tensor) -> bool:
        self.row = (self.row + 1) * ~finite
        if self.row.device.type == "cpu":
            return self.row.item() >= self.limit
        over = False
        if self.waiting and self.waiting[1].query():
            over, self.waiting = self.waiting[0].item() >= self.limit, None
        if self.waiting is None:
            host = torch.empty((), pin_memory=True)
            host.copy_(self.row, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self.waiting = (host, event)
        return over

    def count(self) -> float:
        return self.row.item()


def write_log(path: Path, history: list[dict]) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, LOG, restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            for row in history
        )


def since_best(history: list[dict]) -> int:
    """Epochs since the best score."""
    scores = [row["score"] for row in history]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def epoch_line(row: dict, epochs: int, better: bool) -> str:
    shown = "  ".join(
        f"{name.replace('_', ' ')} {row[name]:.4f}"
        for name in ("dice", "accuracy", "macro_f1")
        if name in row
    )
    skipped = f"  {row['skipped']} steps skipped: loss not finite" if row["skipped"] else ""
    return (
        f"  epoch {row['epoch']:3d}/{epochs}  loss {row['loss']:.4f}  score {row['score']:.4f}{'*' if better else ' '} {shown}  "
        f"{row['images_per_second']:.1f} img/s  {row['seconds']:.{0 if row['seconds'] >= 10 else 1}f} s{skipped}"
    )


def draw_curves(path: Path, history: list[dict]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs, dot = [row["epoch"] for row in history], "o" if len(history) < 4 else ""
    for name in ("loss", "mask_loss", "label_loss"):
        if name in history[0]:
            left.plot(
                epochs, [row[name] for row in history], marker=dot, label=name.replace("_", " ")
            )
    for name in ("score", "dice", "accuracy", "macro_f1"):
        if name in history[0]:
            right.plot(
                epochs, [row[name] for row in history], marker=dot, label=name.replace("_", " ")
            )
    left.set(
        title="training loss",
        xlabel="epoch",
        ylim=(min(0, *(row["loss"] for row in history)), None),
    )  # a learned balance can go below 0
    right.set(title="validation", xlabel="epoch", ylim=(None, 1))
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
