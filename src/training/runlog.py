"""What a training run reports: log.csv, curves.png, a line an epoch, and how long it will take."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import torch

from src.core.console import duration, say
from src.core.disk import replacing
from src.core.freshness import Job

COLUMNS = [
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
LONG = 2 * 3600  # seconds: training that takes longer on a CPU gets a hint at the small config
REDRAWN = 10  # seconds: drawing the curves costs as much as a small epoch


class Clock:
    """Says once, after the first steps, how long this fold and all that are left will take.

    hint: what to add where that is long on a CPU.
    """

    WARM, TIMED = 2, 8  # steps

    def __init__(self, job: Job, steps: int, epochs: int, epochs_done: int, hint: str = ""):
        self.job, self.steps, self.hint = job, steps, hint
        self.epochs, self.epochs_left = epochs, epochs - epochs_done
        self.ticks, self.since = 0, 0.0
        self.last = min(self.WARM + self.TIMED, max(self.WARM + 1, steps))

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks == self.WARM:
            self.since = time.time()
        elif self.ticks == self.last:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # once in a run: queued work has not been done yet
            self._say((time.time() - self.since) / (self.ticks - self.WARM))

    def _say(self, seconds_per_step: float) -> None:
        epoch = seconds_per_step * self.steps * 1.1  # validation is about a tenth of it
        fold, folds = epoch * self.epochs_left, self.job.folds_left
        everything = fold + epoch * self.epochs * (folds - 1)
        line = f"  about {duration(epoch)} an epoch, {duration(fold)} for this fold"
        if folds > 1:
            line += f", {duration(everything)} for all {folds} folds left to train at this speed"
        say(line)
        if self.hint and everything > LONG:
            say(self.hint)


class RunLog:
    """log.csv and, for a network that learns epoch by epoch, curves.png of a fold."""

    def __init__(self, log: Path, curves: Path):
        self.log, self.curves, self.drawn = log, curves, 0.0

    def write(self, history: list[dict], final: bool = False) -> None:
        """`final`: draw the curves, too, however short ago that was done."""
        if not history:
            return
        table = pd.DataFrame(history).reindex(columns=COLUMNS)
        with replacing(self.log) as file:
            table.to_csv(file, index=False, float_format="%.6g", lineterminator="\r\n")
        if "loss" in history[0] and (final or time.time() - self.drawn >= REDRAWN):
            self.drawn = time.time()
            draw_curves(self.curves, history)


def epoch_line(row: dict, epochs: int, better: bool) -> str:
    metrics = [n for n in ("dice", "accuracy", "macro_f1") if n in row]
    shown = "  ".join(f"{name.replace('_', ' ')} {row[name]:.4f}" for name in metrics)
    star = "*" if better else " "
    seconds = f"{row['seconds']:.{0 if row['seconds'] >= 10 else 1}f}"
    skipped = f"  {row['skipped']} steps skipped: loss not finite" if row["skipped"] else ""
    return (
        f"  epoch {row['epoch']:3d}/{epochs}  loss {row['loss']:.4f}  score {row['score']:.4f}"
        f"{star} {shown}  {row['images_per_second']:.1f} img/s  {seconds} s{skipped}"
    )


def draw_curves(path: Path, history: list[dict]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs, marker = [row["epoch"] for row in history], "o" if len(history) < 4 else ""
    for axes, title, names in (
        (left, "training loss", ("loss", "mask_loss", "label_loss")),
        (right, "validation", ("score", "dice", "accuracy", "macro_f1")),
    ):
        for name in names:
            if name in history[0]:
                values = [row[name] for row in history]
                axes.plot(epochs, values, marker=marker, label=name.replace("_", " "))
        axes.set(title=title, xlabel="epoch")
        axes.legend(frameon=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    # with learned task weights the loss can go below 0
    left.set_ylim(min(0, *(row["loss"] for row in history)), None)
    right.set_ylim(None, 1)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
