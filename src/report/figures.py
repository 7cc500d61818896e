"""The pictures of reports, drawn without a screen and without matplotlib's global state.

matplotlib is imported on first use: it takes half a second.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from src.core.console import short, warn
from src.core.disk import replacing
from src.data.images import read_image

# blue and orange, RGB: distinguishable with every kind of colour vision
TRUE_COLOUR, PRED_COLOUR = (64, 200, 255), (255, 150, 30)
LINES = ["#0b7fab", "#d95f02", "#5a6b2f", "#7b4ea3", "#b0305c", "#444444", "#00897b", "#a67c00"]
TILE = 360  # px: the longer side of one image among the worst
COLUMNS = 4  # of a sheet of tiles
BINS = 10  # of probabilities, in the reliability diagram


def save(figure, path: Path) -> None:
    """A figure as PNG, replaced atomically."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight", facecolor="white")


def canvas(width: float, height: float):
    """A matplotlib Figure of this many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain(name: object, family: str | None = None, most: int = 40) -> str:
    """A name (of an image, a class, a file), spelled so that matplotlib draws it as it is.

    $ would begin a formula, and a leading _ would keep it out of a legend. A character that the
    font lacks is drawn as its number, \\u826f, without a warning for each. A name longer than
    `most` loses its middle. family: a font's, such as monospace; None: the default.
    """
    text = str(name)
    if len(text) > most:
        text = text[: most // 2] + "…" + text[-(most - most // 2 - 1) :]
    text = "".join(c if _is_drawn(c, family) else _number_of(c) for c in text)
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def plain_lines(text: str) -> str:
    """The same for several lines."""
    return "\n".join(plain(line, most=60) for line in text.split("\n"))


def _is_drawn(character: str, family: str | None) -> bool:
    is_letter = not unicodedata.category(character).startswith(("C", "Zl", "Zp"))
    return is_letter and ord(character) in _letters(family)


def _number_of(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) > 0xFF else f"\\x{ord(character):02x}"


@functools.lru_cache(maxsize=8)
def _letters(family: str | None) -> frozenset[int]:
    """Those of the fonts that matplotlib draws with."""
    from matplotlib import font_manager, rcParams

    families = [family] if family else rcParams["font.family"]
    fonts = {font_manager.findfont(font_manager.FontProperties(family=[f])) for f in families}
    return frozenset(c for font in fonts for c in font_manager.get_font(font).get_charmap())


def confusion_matrix(table: np.ndarray, classes: list[str]):
    """(C,C) counts, rows = truth -> figure: counts, and the share of each row in colour and in per
    cent."""
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = max(3.6, 1.15 * len(classes) + 1.2)
    figure = canvas(side + 0.4, side)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*table.shape):
        colour = "white" if share[i, j] > 0.55 else "#222222"
        style = {"ha": "center", "va": "center", "color": colour}
        axes.text(j, i - 0.1, str(table[i, j]), fontsize=14, **style)
        axes.text(j, i + 0.22, f"{100 * share[i, j]:.0f} %", fontsize=9, **style)
    names = [plain(name) for name in classes]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names, rotation=90, va="center")
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def reliability(truth: np.ndarray, probs: np.ndarray, classes: list[str]):
    """truth (N) int, probs (N,C) -> figure: how often images that are given a probability of a
    class are of that class, and how many images are given it.

    Also returns the expected calibration error of the most probable class (Guo et al. 2017, eq. 3).
    """
    figure = canvas(5.4, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, zorder=0)
    for c, name in enumerate(classes):
        mean, rate, n = binned(probs[:, c], truth == c)
        colour = LINES[c % len(LINES)]
        area = 6 + 110 * np.sqrt(n / len(truth))
        upper.plot(mean, rate, color=colour, linewidth=1.4, label=plain(name))
        upper.scatter(mean, rate, s=area, color=colour, linewidth=0, alpha=0.85)
    upper.set(ylabel="share that is of the class", ylim=(-0.04, 1.04), xlim=(-0.02, 1.02))
    upper.legend(frameon=False, loc="upper left")
    top = probs.max(1)
    mean, rate, n = binned(top, truth == probs.argmax(1))
    error = float((n * np.abs(rate - mean)).sum() / len(truth))
    title = f"calibration error {error:.3f}   (larger points: more images)"
    upper.set_title(title, fontsize=9, color="#555555")
    lower.hist(top, bins=np.linspace(0, 1, 2 * BINS + 1), color="#888888")
    lower.set_xlabel("probability given to the class")
    lower.set_ylabel("images, by their\nmost probable class")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure, error


def binned(probability: np.ndarray, right: np.ndarray) -> list[np.ndarray]:
    """Equal bins from 0 to 1, the empty ones left out: mean probability, share that is right, and
    count of each."""
    number = np.minimum((probability * BINS).astype(int), BINS - 1)
    n = np.bincount(number, minlength=BINS)
    used = np.flatnonzero(n)
    means = [np.bincount(number, values, BINS)[used] / n[used] for values in (probability, right)]
    return [*means, n[used]]


class Tile(NamedTuple):
    picture: np.ndarray  # (h,w,3) RGB uint8
    caption: str  # up to three lines


def tiles(file: Path, channels: int, answers: Iterable[tuple], side: int = TILE) -> list[Tile]:
    """An image once for each answer (true mask (H,W) bool or None, predicted mask likewise,
    caption). One that cannot be read has no tiles, and a warning: a report without one picture is
    better than none."""
    try:
        image = read_image(file, channels)
    except (OSError, ValueError) as problem:
        warn(f"{short(file)} is not shown: {problem}")
        return []
    return [Tile(outlined(image, true, pred, side), caption) for true, pred, caption in answers]


def outlined(
    image: np.ndarray, true: np.ndarray | None, pred: np.ndarray | None, side: int = TILE
) -> np.ndarray:
    """image (H,W) or (H,W,3) uint8 with the contours of two masks (H,W) bool -> (h,w,3) RGB, the
    longer side `side` px."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    colours = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = cv2.resize(colours, size, interpolation=interpolation)
    # the thin line lies on the thick one where both agree
    for mask, colour, thickness in ((true, TRUE_COLOUR, 4), (pred, PRED_COLOUR, 2)):
        if mask is not None:
            small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, outlines, -1, colour, thickness, cv2.LINE_AA)
    return picture


def sheet(shown: list[Tile], title: str = "true outline blue, predicted orange"):
    """A figure of small pictures, each with its caption."""
    rows = -(-len(shown) // COLUMNS)
    figure = canvas(3.1 * COLUMNS, 3.15 * rows + 0.4)
    figure.suptitle(title, fontsize=12, color="#444444")
    for axes, tile in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, shown):
        axes.imshow(tile.picture)
        axes.set_title(plain_lines(tile.caption), fontsize=9)
    for axes in figure.axes:
        axes.axis("off")
    return figure


def middles(n: int, shares: int) -> np.ndarray:
    """The middles of this many equal shares of n ranks: good and bad as they come."""
    return np.linspace(0, n - 1, 2 * shares + 1).astype(int)[1::2]


def png(picture: np.ndarray) -> bytes:
    """(h,w,3) RGB uint8 -> the bytes of a PNG."""
    colours = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", colours, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()
