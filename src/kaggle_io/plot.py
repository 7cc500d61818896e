"""The picture of the submissions: CV score against leaderboard."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from src.kaggle_io.log import Row, is_scored
from src.report.figures import LINES, canvas, plain, save

MOST = 20  # rows that fit beside the picture
# points from a point to its number; neighbours in order of CV take different ones
PLACES = [(9, 7), (-9, -7), (-9, 7), (9, -7), (0, 12), (0, -12), (17, 0), (-17, 0)]


def draw(rows: list[Row], slug: str, file: Path) -> bool:
    """CV with its interval against the public score (and, hollow, the private one), numbered as in
    the table; the line is where both are equal. False, and nothing drawn, where no row has both."""
    numbered = {n: r for n, r in enumerate(rows, 1) if is_scored(r)}
    if not numbered:
        return False
    figure = canvas(11.5, 5.4)
    axes = figure.add_subplot()
    names = ("cv", "cv_low", "cv_high", "public", "private")
    values = [[getattr(r, name) for name in names] for r in numbered.values()]
    cv, low, high, public, private = np.array(values, dtype=float).T  # None becomes nan
    best = int(public.argmax())
    reach = np.nan_to_num(np.stack([cv - low, high - cv]) + 0 * (low + high)).clip(0)
    axes.errorbar(
        cv, public, xerr=reach, fmt="none", ecolor="#b8c4cc", elinewidth=1.2, capsize=2.5, zorder=1
    )
    size, colour = np.full(len(cv), 45), np.full(len(cv), LINES[0])
    size[best], colour[best] = 95, LINES[1]
    axes.scatter(cv, public, s=size, color=colour, zorder=3, label="public score")
    has_private = ~np.isnan(private)
    if has_private.any():
        axes.vlines(cv, public, private, color="#bbbbbb", linewidth=0.8, zorder=1)
        style = {"s": 38, "facecolor": "white", "edgecolor": LINES[0], "zorder": 2}
        axes.scatter(cv, private, **style, label="private score")
    _limit(axes, cv, public, np.concatenate([public, private[has_private]]))
    axes.set(
        xlabel="CV score, leave-one-fold-out, with its 95 % interval",
        ylabel="leaderboard",
        title=plain(slug),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _list_beside(axes, numbered, list(numbered)[best])
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(1.0, -0.02), fontsize=9)
    for place, (n, row) in enumerate(sorted(numbered.items(), key=lambda pair: pair[1].cv)):
        axes.annotate(
            str(n),
            (row.cv, row.public),
            PLACES[place % len(PLACES)],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            color="#222222",
            zorder=4,
        )
    save(figure, file)
    return True


def _limit(axes, cv: np.ndarray, public: np.ndarray, scores: np.ndarray) -> None:
    """The line where both scores are equal, and limits that hold it, unless the points would shrink
    to one for its sake."""
    gap, middle = float(np.median(public - cv)), float(np.median(cv))
    label = "public = CV"
    if abs(gap) <= max(2 * np.ptp(scores), 0.05):
        scores = np.append(scores, middle)
    else:
        label += f": outside, about {abs(gap):.3f} {'higher' if gap < 0 else 'lower'}"
    margin = max(0.08 * np.ptp(scores), 0.005)
    left, right = axes.get_xlim()
    half = max(right - left, 0.01) / 2
    axes.set(
        xlim=((left + right) / 2 - half, (left + right) / 2 + half),
        ylim=(scores.min() - margin, scores.max() + margin),
    )
    style = {"color": "#999999", "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 0}
    axes.axline((middle, middle), slope=1, **style, label=label)


def _list_beside(axes, numbered: dict[int, Row], best: int) -> None:
    """File and scores of each number, of more than MOST the best, in a column beside the axes."""
    shown, head = list(numbered), "CV → public, * highest"
    if len(shown) > MOST:
        shown = sorted(shown, key=lambda n: -numbered[n].public)[:MOST]
        head += f", of {len(numbered)} the best {MOST}"
    names = {
        n: plain(re.sub("[.](csv|zip)$", "", numbered[n].file), "monospace", 26) for n in shown
    }
    width = max(map(len, names.values()))
    lines = [head]
    for n, name in names.items():
        scores = f"{numbered[n].cv:.3f} → {numbered[n].public:.3f}{' *' if n == best else ''}"
        lines.append(f"{n:>3}  {name:<{width}}  {scores}")
    style = {"fontsize": 8.5, "family": "monospace", "va": "top", "linespacing": 1.5}
    axes.text(1.02, 1, "\n".join(lines), transform=axes.transAxes, **style)
