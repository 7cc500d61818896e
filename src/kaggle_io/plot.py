"""The picture of the submissions: CV score against leaderboard."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from src.kaggle_io.log import Row, is_scored
from src.report.figures import LINES, canvas, plain, save

MOST = 20  # rows that fit beside the picture
# points from a point to its number; neighbours in order of CV take different ones
PLACES = [(9, 7), (-9, -7), (-9, 7), (9, -7), (0, 12), (0, -12)]


def draw(rows: list[Row], slug: str, file: Path) -> bool:
    """CV with its interval against the public score (and, hollow, the private one), numbered as in
    the table; the line is where both are equal. False, and nothing drawn, where no row has both."""
    numbered = {n: row for n, row in enumerate(rows, 1) if is_scored(row)}
    if not numbered:
        return False
    figure = canvas(11.5, 5.4)
    axes = figure.add_subplot()
    names = ("cv", "cv_low", "cv_high", "public", "private")
    scores = np.array([[getattr(row, n) for n in names] for row in numbered.values()], dtype=float)
    cv, low, high, public, private = scores.T  # None becomes nan
    best = public == public.max()
    # no bar unless both ends are known
    reach = np.nan_to_num(np.abs([cv - low, high - cv] + 0 * (low + high)))
    axes.errorbar(cv, public, xerr=reach, fmt="none", ecolor="#b8c4cc", capsize=2.5, zorder=1)
    colours = np.where(best, LINES[1], LINES[0])
    axes.scatter(cv, public, s=45 + 50 * best, color=colours, zorder=3, label="public score")
    if not np.isnan(private).all():
        axes.vlines(cv, public, private, color="#bbbbbb", linewidth=0.8, zorder=1)
        axes.scatter(cv, private, color="white", edgecolor=LINES[0], label="private score")
    _draw_line(axes, cv, public, private)
    axes.set(
        xlabel="CV score, leave-one-fold-out, with its 95 % interval",
        ylabel="leaderboard",
        title=plain(slug),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    text = "\n".join(_list(numbered, public.max()))
    axes.text(1.02, 1, text, transform=axes.transAxes, size=8.5, family="monospace", va="top")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(1.0, -0.02), fontsize=9)
    style = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 9}
    for place, (n, row) in enumerate(sorted(numbered.items(), key=lambda pair: pair[1].cv)):
        axes.annotate(str(n), (row.cv, row.public), PLACES[place % len(PLACES)], **style)
    save(figure, file)
    return True


def _draw_line(axes, cv: np.ndarray, public: np.ndarray, private: np.ndarray) -> None:
    """The line where both scores are equal, and limits that hold it, unless the points would shrink
    to one for its sake."""
    gap, middle = float(np.median(public - cv)), float(np.median(cv))
    low, high = np.nanmin([public, private]), np.nanmax([public, private])
    label = "public = CV"
    if abs(gap) <= max(2 * (high - low), 0.05):
        low, high = min(low, middle), max(high, middle)
    else:
        label += f": outside, about {abs(gap):.3f} {'higher' if gap < 0 else 'lower'}"
    margin = max(0.08 * (high - low), 0.005)
    left, right = axes.get_xlim()
    spare = max(0.01 - (right - left), 0) / 2
    axes.set(xlim=(left - spare, right + spare), ylim=(low - margin, high + margin))
    axes.axline((middle, middle), slope=1, color="#999999", linestyle="--", zorder=0, label=label)


def _list(numbered: dict[int, Row], best: float) -> list[str]:
    """Lines with the file and the scores of each number, of more than MOST the best."""
    lines, shown = ["CV → public, * highest"], numbered
    if len(numbered) > MOST:
        lines[0] += f", of {len(numbered)} the best {MOST}"
        shown = sorted(numbered, key=lambda n: -numbered[n].public)[:MOST]
    files = [re.sub("[.](csv|zip)$", "", numbered[n].file) for n in shown]
    names = [plain(file, "monospace", 26) for file in files]
    width = max(map(len, names))
    for n, name in zip(shown, names):
        row = numbered[n]
        mark = " *" if row.public == best else ""
        lines.append(f"{n:>3}  {name:<{width}}  {row.cv:.3f} → {row.public:.3f}{mark}")
    return lines
