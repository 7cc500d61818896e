"""Reading images and masks of any kind, and the two ways of making them square. Everything after
this module sees plain numpy arrays.

Pixels are taken as stored: an EXIF orientation is ignored, since contests count run lengths on the
stored pixels.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from src.data.decode import decode

# the work is spread over processes: threads below them only get in each other's way
cv2.setNumThreads(0)

# a mask may have this share of its pixels in the middle half of its range: blurred edges, JPEG
# ringing
GREY_ZONE = 0.05
MASK_JPEG_LEVEL = 127
BAND = 1024  # rows that are scaled at a time


def read_image(path: Path, channels: int = 1) -> np.ndarray:
    """uint8 (H,W) for one channel, (H,W,3) RGB for three.

    More than 8 bits are scaled by the image's own range, its minimum to 0 and its maximum to 255 (a
    constant image becomes 0): 12-bit data in a 16-bit file would otherwise be black. Transparency
    is ignored. Raises ValueError with a short reason for a file that cannot be read in full, holds
    several frames, or values like NaN.
    """
    pixels, _, _ = decode(path)
    if pixels.dtype != np.uint8:
        pixels = _to_bytes(pixels)
    if channels == 3:
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """The range of the values, all of them finite, onto 0 to 255: uint8 of the same shape."""
    low, high = pixels.min(), pixels.max()
    scale = 255.0 / (float(high) - float(low)) if high > low else 0.0
    if not np.isfinite(scale):
        raise ValueError("its values are too near to each other")
    # float32 holds 24 bits: enough for 16-bit values, and for float32 of a usual range
    exact = pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 and 1e-30 < scale < 1e30
    real = np.float32 if exact else np.float64
    made = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), BAND):  # all floats at once would be many times its size
        band = (pixels[top : top + BAND].astype(real) - real(low)) * real(scale)
        made[top : top + BAND] = band.round().clip(0, 255)
    return made


def read_mask(path: Path) -> tuple[np.ndarray, bool]:
    """(mask (H,W) bool, whether the file really is a mask of two values).

    - A colour counts by its brightest channel, so a red lesion on black is a lesion.
    - Alpha is ignored (BUSI has masks with an opaque one), unless the colours are constant and only
      alpha carries a shape.
    - One value: lesion everywhere if it is not 0. Two values: the higher one is the lesion, be it 1
      or 255.
    - More values: cut in the middle of the range (a JPEG: at 127, its noise has no meaningful
      range), and it still passes as two-valued when the pixels in the middle half of the range are
      at most 5 % of all and nowhere fill 5×5 pixels, as blurred edges and JPEG noise do not. A
      photograph or a map of several classes does not pass.

    Raises ValueError like read_image.
    """
    pixels, alpha, lossy = decode(path)
    plane = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    if alpha is not None and alpha.min() != alpha.max() and pixels.min() == pixels.max():
        plane = alpha
    low, high = plane.min(), plane.max()
    if low == high and not lossy:
        # red beside green has the same brightest channel
        one_colour = pixels.ndim == 2 or bool((pixels == pixels[:1, :1]).all())
        return np.full(plane.shape, bool(high)), one_colour
    if not lossy and not ((plane != low) & (plane != high)).any():
        return plane == high, True
    if lossy:
        low, high = 0, 255
    low, span = float(low), float(high) - float(low)
    middle = (plane > low + span / 4) & (plane < low + span * 3 / 4)
    eroded = cv2.erode(middle.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0)
    two_valued = middle.mean() <= GREY_ZONE and not eroded.any()
    return plane > (MASK_JPEG_LEVEL if lossy else low + span / 2), bool(two_valued)


# --------------------------------------------------------------------------- making it square


def content(height: int, width: int, size: int, mode: str) -> tuple[int, int, int, int]:
    """Where an image of height×width lies in its size×size square: top, left, height, width."""
    if mode == "stretch":
        return 0, 0, size, size
    scale = size / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    return (size - inner_height) // 2, (size - inner_width) // 2, inner_height, inner_width


def resize(
    image: np.ndarray, size: int, mode: str = "stretch", is_mask: bool = False
) -> np.ndarray:
    """image (H,W) or (H,W,3) uint8, or a mask (H,W) of two values -> size×size, uint8; masks hold 0
    and 1. Letterbox bars are black."""
    top, left, height, width = content(*image.shape[:2], size, mode)
    if is_mask:
        # by the share of lesion in a pixel, cut at one half: nearest neighbours would shift edges
        share = scaled((image > 0).astype(np.uint8) * 255, height, width)
        inner = (share > 127).astype(np.uint8)
    else:
        inner = scaled(np.ascontiguousarray(image, dtype=np.uint8), height, width)
    square = np.zeros((size, size, *image.shape[2:]), np.uint8)
    square[top : top + height, left : left + width] = inner
    return square


def restore(prob: np.ndarray, height: int, width: int, mode: str = "stretch") -> np.ndarray:
    """Undo `resize` for a map of probabilities (S,S) of an image that was height×width: the whole
    image, stretched to S×S, float32.

    This is the form in which Predictions hold masks whatever the experiment's `resize`, so that
    they can be averaged.
    """
    size = len(prob)
    top, left, inner_height, inner_width = content(height, width, size, mode)
    inner = np.asarray(prob, np.float32)[top : top + inner_height, left : left + inner_width]
    return scaled(inner, size, size)


def scaled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """image -> height×width: averaged over areas along an axis that shrinks, linear along one that
    grows."""
    small = min(image.shape[0], height), min(image.shape[1], width)
    if image.shape[:2] != small:
        image = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
    if small != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image
