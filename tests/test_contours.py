"""Maps of a mask's contour, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from src.core.settings import Loss
from src.parts import losses


def row(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def test_distance_to_the_contour_in_image_sides():
    expected = np.array([1.5, 0.5, 0.5, 0.5, 0.5, 1.5, 2.5]) / 7
    for mask in (
        row(0, 0, 1, 1, 0, 0, 0),
        row(0, 0, 1, 1, 0, 0, 0).astype(np.uint8),
        row(0.4, 0.3, 0.6, 1, 0, 0, 0),
    ):
        assert losses.contour_distance(mask, Loss())[0] == pytest.approx(expected)
    square = np.zeros((7, 7), np.uint8)
    square[3, 3] = 1
    assert losses.contour_distance(square, Loss())[0, 0] == pytest.approx((math.sqrt(18) - 0.5) / 7)
    for mask in (np.zeros((5, 5), np.uint8), np.ones((5, 5), np.uint8)):
        assert (losses.contour_distance(mask, Loss()) == 1).all()


@pytest.mark.parametrize(
    "mask, d",
    [
        (
            row(0, 0, 1, 1, 0, 0, 0),
            [1.5, 0.5, 0.5, 0.5, 0.5, 1.5, 2.5],
        ),  # one part: its own contour
        (row(1, 0, 0, 1), [0.5 + 2.5, 0.5 + 1.5, 0.5 + 1.5, 0.5 + 2.5]),
        (
            row(1, 0, 1, 0, 1),
            [0.5 + 1.5, 0.5 + 0.5, 0.5 + 1.5, 0.5 + 0.5, 0.5 + 1.5],
        ),  # three: the nearest two
        (row(0, 0, 0), [np.inf] * 3),
    ],
)
def test_border_weights_by_hand(mask, d):
    expected = 1 + 10 * np.exp(-(np.array(d) ** 2) / (2 * 2**2))
    assert losses.border_weights(mask, Loss(border=(10, 2)))[0] == pytest.approx(expected)
