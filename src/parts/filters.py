"""Filters of every image, once, at its original size, before prepare resizes it. To add one: a
function (grey (H,W) uint8, **options) -> (H,W) uint8 in FILTERS; its keyword arguments are what
filter_options may name. It raises ValueError for an option out of range."""

from __future__ import annotations

import inspect

import cv2
import numpy as np

from src.config.names import check_known
from src.core.console import InputError, nearest
from src.core.settings import Experiment

MOST = 1000  # of any option: tiles and windows of more would take minutes an image


def none(grey: np.ndarray) -> np.ndarray:
    return grey


def equalise(grey: np.ndarray) -> np.ndarray:
    """Histogram equalisation: grey levels become their rank, so that all are about equally
    frequent."""
    return cv2.equalizeHist(grey)


def clahe(grey: np.ndarray, clip: float = 2.0, tiles: float = 10) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994, p.
    474): each of tiles×tiles tiles is equalised by a histogram cut at `clip` times its mean height,
    and the tiles are blended."""
    if not 0 < clip <= MOST:
        raise ValueError(f"clip is {clip:g}, it must be over 0 and at most {MOST}")
    side = _integer("tiles", tiles, 1)
    return cv2.createCLAHE(float(clip), (side, side)).apply(grey)


def despeckle(grey: np.ndarray, window: float = 7, noise: float = 0.0) -> np.ndarray:
    """The filter of local statistics for multiplicative noise (Lee, IEEE PAMI 2(2), 1980, pp.
    165-168, its linearised case of a noise of mean 1).

    With m, v mean and variance in the window (pixels, odd) and s the noise's coefficient of
    variation, the true variance is Q = (v − s²m²) / (1 + s²) and the answer m + k·(z − m),
    k = Q / (Q + s²m²): the mean where there is only speckle, the pixel itself on an edge.
    noise 0: s is the median of √v / m over the image.
    """
    side = _integer("window", window, 3)
    if side % 2 == 0:
        raise ValueError(f"window is {side}, it must be odd")
    if not 0 <= noise <= MOST:
        raise ValueError(f"noise is {noise:g}, it must be from 0 to {MOST}")
    z = grey.astype(np.float64)
    mean, square = (
        cv2.boxFilter(x, -1, (side, side), borderType=cv2.BORDER_REFLECT) for x in (z, z * z)
    )
    variance = np.maximum(square - mean * mean, 0)
    lit = mean > 0
    s = noise
    if not noise and lit.any():
        s = float(np.median(np.sqrt(variance[lit]) / mean[lit]))
    speckle = s**2 * mean**2
    true = np.maximum(variance - speckle, 0) / (1 + s**2)
    total = true + speckle
    gain = np.divide(true, total, out=np.ones_like(true), where=total > 0)
    return (mean + gain * (z - mean)).round().clip(0, 255).astype(np.uint8)


FILTERS = {"none": none, "equalise": equalise, "clahe": clahe, "despeckle": despeckle}


def apply(image: np.ndarray, name: str, options: dict[str, float]) -> np.ndarray:
    """image (H,W) or (H,W,3) RGB, uint8 -> the same shape. A colour image is filtered in its
    luminance (Y of YCrCb)."""
    if image.ndim == 2 or name == "none":
        return FILTERS[name](image, **options)
    planes = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    planes[..., 0] = FILTERS[name](np.ascontiguousarray(planes[..., 0]), **options)
    return cv2.cvtColor(planes, cv2.COLOR_YCrCb2RGB)


def check(experiment: Experiment) -> None:
    """Raises InputError for a filter or an option that does not exist, or a value that the filter
    does not take."""
    name, options = experiment.filter, experiment.filter_options
    check_known(name, FILTERS, "filter", "filter")
    known = list(inspect.signature(FILTERS[name]).parameters)[1:]
    for option in options:
        if option not in known:
            raise InputError(
                f"the filter {name} has no option '{option}'",
                "filter_options",
                nearest(option, known) if known else "It takes none: leave filter_options out",
                code="unknown_option",
            )
    try:
        apply(np.zeros((16, 16), np.uint8), name, options)
    except (ValueError, cv2.error) as error:
        raise InputError(
            f"the filter {name} cannot be used so: {error}", "filter_options", code="invalid_value"
        ) from None


def _integer(name: str, value: float, least: int) -> int:
    if not least <= value <= MOST or value != int(value):
        raise ValueError(f"{name} is {value:g}, it must be a whole number from {least} to {MOST}")
    return int(value)
