"""The picture of what was sent: CV score against leaderboard."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from src.kaggle_io.log import Row
from src.report.figures import LINES, canvas, plain, save

MOST = 20  # rows that fit beside the picture


def draw(rows: list[Row], slug: str, file: Path) -> bool:
    """CV with its interval against the public score (and, hollow, the private one), numbered as in the table; the line is where both are equal.
    False, and nothing drawn, where no row has both."""
    numbered = [(n, r) for n, r in enumerate(rows, 1) if r.cv is not None and r.public is not None]
    if not numbered:
        return False
    axes = (figure := canvas(11.5, 5.4)).add_subplot()
    cv, public = (np.array([getattr(r, name) for _, r in numbered]) for name in ("cv", "public"))
    private = np.array([math.nan if r.private is None else r.private for _, r in numbered])
    best = int(public.argmax())
    reach = [
        [r.cv - r.cv_low, r.cv_high - r.cv] if None not in (r.cv_low, r.cv_high) else [0, 0]
        for _, r in numbered
    ]
    axes.errorbar(
        cv,
        public,
        xerr=np.maximum(np.transpose(reach), 0),
        fmt="none",
        ecolor="#b8c4cc",
        elinewidth=1.2,
        capsize=2.5,
        zorder=1,
    )
    axes.scatter(
        cv,
        public,
        s=[95 if i == best else 45 for i in range(len(cv))],
        color=[LINES[i == best] for i in range(len(cv))],
        zorder=3,
        label="public score",
    )
    if not np.isnan(private).all():
        axes.vlines(cv, public, private, color="#bbbbbb", linewidth=0.8, zorder=1)
        axes.scatter(
            cv,
            private,
            s=38,
            facecolor="white",
            edgecolor=LINES[0],
            zorder=2,
            label="private score",
        )
    shown = np.concatenate([public, private[~np.isnan(private)]])
    gap, middle = float(np.median(public - cv)), float(np.median(cv))
    if near := abs(gap) <= max(
        2 * np.ptp(shown), 0.05
    ):  # else the points would shrink to one for the sake of the line
        shown = np.append(shown, middle)
    margin = max(0.08 * np.ptp(shown), 0.005)
    axes.set(xlim=_wide(*axes.get_xlim(), 0.01), ylim=(shown.min() - margin, shown.max() + margin))
    line = axes.axline(
        (middle, middle), slope=1, color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=0
    )
    line.set_label(
        "public = CV"
        if near
        else f"public = CV: outside, about {abs(gap):.3f} {'higher' if gap < 0 else 'lower'}"
    )
    axes.set(
        xlabel="CV score, leave-one-fold-out, with its 95 % interval",
        ylabel="leaderboard",
        title=plain(slug),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    listed = (
        numbered
        if len(numbered) <= MOST
        else sorted(numbered, key=lambda pair: -pair[1].public)[:MOST]
    )
    names = [plain(re.sub("[.](csv|zip)$", "", r.file), "monospace", 26) for _, r in listed]
    texts = [
        f"{n:>3}  {name:<{max(map(len, names))}}  {r.cv:.3f} → {r.public:.3f}"
        + (" *" if r is numbered[best][1] else "")
        for name, (n, r) in zip(names, listed)
    ]
    head = f"CV → public, * highest{f', of {len(numbered)} the best {MOST}' if len(numbered) > MOST else ''}"
    axes.text(
        1.02,
        1,
        "\n".join([head, *texts]),
        transform=axes.transAxes,
        fontsize=8.5,
        family="monospace",
        va="top",
        linespacing=1.5,
    )
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(1.0, -0.02), fontsize=9)
    figure.draw_without_rendering()  # settles the layout, by which the numbers are placed
    _number(axes, cv, public, private, [str(n) for n, _ in numbered])
    save(figure, file)
    return True


def _wide(low: float, high: float, least: float) -> tuple[float, float]:
    middle, half = (low + high) / 2, max(high - low, least) / 2
    return middle - half, middle + half


def _number(axes, x: np.ndarray, y: np.ndarray, others: np.ndarray, texts: list[str]) -> None:
    """Each point's number beside it, at the first of eight places that no point, no hollow one and no earlier number takes."""
    at_y = np.concatenate([y, others])
    points = (
        axes.transData.transform(np.column_stack([[*x, *x], at_y])[~np.isnan(at_y)])
        * 72
        / axes.figure.dpi
    )
    places = [(9, 7), (-9, 7), (9, -7), (-9, -7), (0, 12), (0, -12), (17, 0), (-17, 0)]
    taken = list(points)
    for point, at, text in zip(points, zip(x, y), texts):
        free = [
            min(np.abs((point + place - other) / (9, 8)).max() for other in taken)
            for place in places
        ]
        place = next(
            (p for p, room in zip(places, free) if room >= 1), places[int(np.argmax(free))]
        )
        taken.append(point + place)
        axes.annotate(
            text,
            at,
            place,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            color="#222222",
            zorder=4,
        )
