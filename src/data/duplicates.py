"""Near-duplicates: the same lesion in another crop, with other marks, or mirrored. Random folds
would put them on both sides.

Two images are twins when their 64×64 thumbnails correlate over a threshold, as they are or with one
of them flipped; groups are the connected components of twins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from src.data.images import scaled

SIDE = 64
# images whose correlations are in memory at the same time: 2 × 34 MB of thumbnails and
# 3 × 17 MB of correlations
BLOCK = 2048
# the axes of (N,64,64) along which the second image is flipped: none, horizontally, vertically
FLIPS = ((), (2,), (1,))


@dataclass
class Pairs:
    """Twins: rows first[i] and second[i], the second one flipped by FLIPS[flip[i]]."""

    first: np.ndarray
    second: np.ndarray
    flip: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


def thumbnail(image: np.ndarray) -> np.ndarray:
    """image (H,W) or (H,W,3) uint8 -> (64,64) uint8 grey."""
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return scaled(grey, SIDE, SIDE)


def find_pairs(thumbs: np.ndarray, n_train: int, threshold: float) -> Pairs:
    """thumbs (N,64,64) uint8, the first n_train of them train images -> twins among train images
    and between train and test images.

    In blocks, so that 50,000 images need neither an N×N matrix nor all thumbnails as floats. A
    constant image is nobody's twin.
    """
    found = [np.zeros((3, 0), np.int64)]
    for start in range(0, n_train, BLOCK):
        left = _normalised(thumbs[start : min(start + BLOCK, n_train)])
        for other in range(start, len(thumbs), BLOCK):
            right = thumbs[other : other + BLOCK]
            # correlation is the same whichever of the two is flipped
            by_flip = np.stack([left @ _normalised(np.flip(right, axes)).T for axes in FLIPS])
            i, j = np.nonzero(by_flip.max(0) > threshold)
            once = start + i < other + j  # each pair
            i, j = i[once], j[once]
            found.append(np.stack([start + i, other + j, by_flip[:, i, j].argmax(0)]))
    return Pairs(*np.concatenate(found, axis=1))


def groups(n: int, pairs: Pairs) -> np.ndarray:
    """The group of each of n images, (n) int, numbered by first appearance."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(pairs), bool), (pairs.first, pairs.second)), shape=(n, n))
    return connected_components(links, directed=False)[1]  # scipy numbers them so


def contradicting_masks(masks: np.ndarray, pairs: Pairs, least: float = 0.5) -> Iterator[int]:
    """The numbers of the pairs whose masks (N,64,64) bool, the flip undone, have a Dice below
    `least` where both show a lesion. Pairs with a row outside of `masks` (a test image) are
    passed over."""
    for number, (a, b, flip) in enumerate(zip(pairs.first, pairs.second, pairs.flip)):
        if max(a, b) >= len(masks):
            continue
        one, two = masks[a], np.flip(masks[b : b + 1], FLIPS[flip])[0]
        if one.any() and two.any() and 2 * (one & two).sum() < least * (one.sum() + two.sum()):
            yield number


def _normalised(thumbs: np.ndarray) -> np.ndarray:
    """(N,64,64) -> (N,4096) float32 of zero mean and unit length, so that a product is a
    correlation; a constant image becomes zeros."""
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(length > 1e-3, length, np.inf)
