"""How run lengths count, found out on the real images: never silently wrong."""

import itertools

import cv2
import numpy as np
import pytest

from src.core.settings import Submission
from src.data import rle
from src.data.images import read_mask
from src.data.rle_dialect import detect


@pytest.fixture
def lesions(shared):
    """Every fifth lesion image of the real ones, with its mask."""
    files = [
        f
        for label in ("benign", "malignant")
        for f in sorted((shared / "train" / label).glob("*).png"))
    ]
    return [(f, read_mask(f.with_name(f"{f.stem}_mask.png"))[0]) for f in files[::5]]


@pytest.mark.parametrize(
    "order, first, relative", list(itertools.product(("column", "row"), (0, 1), (False, True)))
)
def test_all_ways_of_counting(lesions, order, first, relative):
    found = detect(
        [[rle.encode(mask, order, first, "", relative)] for _, mask in lesions],
        [f for f, _ in lesions],
        Submission(),
        several=False,
    )
    assert (found["order"], found["relative"], found["size"]) == (
        order,
        relative,
        None,
    ) and "order" not in found["assumed"]
    assert found["first"] == first or "first" in found["assumed"]


@pytest.mark.parametrize("order", ["column", "row"])
def test_masks_of_one_size_for_all_images_and_their_order_by_the_pictures(lesions, order):
    """512x512 looks alike in both orders: what is under the masks decides."""
    masks = [
        cv2.resize(mask.astype(np.uint8), (512, 512), interpolation=cv2.INTER_NEAREST)
        for _, mask in lesions
    ]
    found = detect(
        [[rle.encode(mask, order, 0, "")] for mask in masks],
        [f for f, _ in lesions],
        Submission(),
        several=False,
    )
    assert (found["order"], found["size"], found["relative"]) == (
        order,
        [512, 512],
        False,
    ) and "order" not in found["assumed"]
