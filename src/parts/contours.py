"""Maps of a mask's contour for the losses that need one. They are made in the loader, one mask at a time, so that the GPU never waits for them."""

from __future__ import annotations

import cv2
import numpy as np

from src.core.settings import Loss


def _to_contour(inside: np.ndarray) -> np.ndarray:
    """How far every pixel's centre lies from the contour, in pixels (S,S) float32: ½ on both sides of it. S in an empty or a full mask, which has none."""
    if inside.all() or not inside.any():
        return np.full(inside.shape, max(inside.shape), np.float32)
    return sum(_to_zero(side) for side in (inside, ~inside)) - np.float32(0.5)


def _to_zero(side: np.ndarray) -> np.ndarray:
    """The distance of every pixel (S,S) to the nearest that is False, float32, the same bits in
    every run: OpenCV's last digit goes by where in memory it works. Squares are whole numbers;
    its error leaves no doubt which, up to S = 1024."""
    found = cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.sqrt(np.rint(found * found))


def contour_distance(mask: np.ndarray, settings: Loss) -> np.ndarray:
    """Distance of every pixel to the mask's contour in image sides, (S,S) float32; 1 in an empty or a full mask. mask: (S,S), lesion from ½ on."""
    return _to_contour(mask >= 0.5) / np.float32(max(mask.shape))


def border_weights(mask: np.ndarray, settings: Loss) -> np.ndarray:
    """U-Net's weights 1 + w_0·exp(−(d1 + d2)² / 2σ²), (S,S) float32, with loss.border = (w_0, σ in pixels of image_size); d1 and d2: distance to the contours
    of the nearest and the second nearest part (Ronneberger et al., 2015, eq. 2, with w_c = 1: class balance is left to dice or tversky).

    The paper means gaps between cells, and a lone lesion has none: there d2 is taken as 0, so that its own contour is stressed. An empty mask weighs 1
    everywhere. mask: (S,S), lesion from ½ on.
    """
    w_0, sigma = settings.border
    count, parts = cv2.connectedComponents((mask >= 0.5).astype(np.uint8))
    if count == 1:
        return np.ones(mask.shape, np.float32)
    distances = np.stack([_to_contour(parts == part) for part in range(1, count)])
    d = np.partition(distances, 1, axis=0)[:2].sum(0) if count > 2 else distances[0]
    return (1 + w_0 * np.exp(-(d**2) / (2 * sigma**2))).astype(np.float32)
