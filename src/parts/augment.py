"""Augmentations. To add a set: a function in AUGMENTS that returns a list of albumentations transforms, then train.augment names it. To add a way of mixing
the images of a batch: a function in MIXES, then train.mix names it.

No vertical flips: the probe is at the top, what lies below is deeper, and shadows fall downwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from src.core.console import InputError, nearest
from src.core.settings import Train

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for its newest version on import
import albumentations as A  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402


def none() -> list:
    return []


def light() -> list:
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            scale=(0.9, 1.1),
            translate_percent=(-0.05, 0.05),
            rotate=(-5, 5),
            p=0.7,
            border_mode=cv2.BORDER_CONSTANT,
        ),
        A.RandomBrightnessContrast(0.15, 0.15, p=0.5),
    ]


def medium() -> list:
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            scale=(0.8, 1.25),
            translate_percent=(-0.1, 0.1),
            rotate=(-12, 12),
            shear=(-6, 6),
            p=0.8,
            border_mode=cv2.BORDER_CONSTANT,
        ),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.6),
        A.RandomGamma((75, 135), p=0.4),
    ]


def strong() -> list:
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            scale=(0.7, 1.4),
            translate_percent=(-0.15, 0.15),
            rotate=(-20, 20),
            shear=(-10, 10),
            p=0.9,
            border_mode=cv2.BORDER_CONSTANT,
        ),
        A.ElasticTransform(alpha=40, sigma=8, p=0.25, border_mode=cv2.BORDER_CONSTANT),
        A.RandomBrightnessContrast(0.3, 0.3, p=0.7),
        A.RandomGamma((65, 150), p=0.5),
        A.OneOf(
            [A.GaussianBlur((3, 5)), A.MultiplicativeNoise((0.85, 1.15), elementwise=True)], p=0.3
        ),
        A.CoarseDropout(
            num_holes_range=(1, 4),
            hole_height_range=(0.05, 0.2),
            hole_width_range=(0.05, 0.2),
            fill=0,
            p=0.3,
        ),
    ]


class Shadow(A.ImageOnlyTransform):
    """An acoustic shadow: below a random point a column that widens with depth, with soft edges, and darkens downwards. The mask stays."""

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        height, width = params["shape"][:2]
        draw = (
            self.py_random.uniform
        )  # albumentations' own generator: it is what set_random_seed seeds
        top, middle = draw(0.1, 0.7) * height, draw(0, 1) * width
        half, slope, depth, strength = (
            draw(0.02, 0.1) * width,
            draw(0, 0.15),
            draw(0.05, 0.3) * height,
            draw(0.3, 0.8),
        )
        below, aside = np.arange(height)[:, None] - top, np.abs(np.arange(width)[None] - middle)
        across = np.clip((half + slope * below.clip(min=0) - aside) / (0.04 * width) + 0.5, 0, 1)
        return {"light": (1 - strength * across * np.clip(below / depth, 0, 1)).astype(np.float32)}

    def apply(self, img: np.ndarray, light: np.ndarray, **params) -> np.ndarray:
        return np.rint(img * (light[..., None] if img.ndim == 3 else light)).astype(img.dtype)


def ultrasound() -> list:
    """What varies from scan to scan: pressure and angle of the probe, gain, speckle, shadows."""
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            scale=(0.8, 1.25),
            translate_percent=(-0.1, 0.1),
            rotate=(-12, 12),
            shear=(-6, 6),
            p=0.8,
            border_mode=cv2.BORDER_CONSTANT,
        ),
        A.ElasticTransform(alpha=40, sigma=8, p=0.2, border_mode=cv2.BORDER_CONSTANT),
        A.GridDistortion(num_steps=5, distort_limit=0.2, p=0.2, border_mode=cv2.BORDER_CONSTANT),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.4),
        A.RandomGamma((65, 150), p=0.5),
        A.MultiplicativeNoise((0.8, 1.2), elementwise=True, p=0.4),
        Shadow(p=0.3),
        A.CoarseDropout(
            num_holes_range=(1, 4),
            hole_height_range=(0.05, 0.15),
            hole_width_range=(0.05, 0.15),
            fill=0,
            p=0.2,
        ),
    ]


AUGMENTS = {
    "none": none,
    "light": light,
    "medium": medium,
    "strong": strong,
    "ultrasound": ultrasound,
}


def build(name: str) -> A.Compose:
    """Call it with image (H,W,C) uint8 and mask (H,W) uint8, after set_random_seed: the caller seeds every sample, so that what an image gets
    depends on seed, epoch and image alone, not on the number of workers (left alone, albumentations repeats itself across workers and epochs)."""
    return A.Compose(AUGMENTS[name](), strict=True)


ALPHA = 0.4  # of mixup's Beta distribution: the paper's upper end for ImageNet


def mixup(
    images: np.ndarray, masks: np.ndarray, labels: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every image faded into another of the batch: pixels, mask and label by the same share, drawn from Beta(α, α) (Zhang et al., mixup, 2018)."""
    partner, share = (
        random.permutation(len(images)),
        random.beta(ALPHA, ALPHA, len(images)).astype(np.float32),
    )

    def faded(x: np.ndarray) -> np.ndarray:
        own = share.reshape(-1, *[1] * (x.ndim - 1))
        return own * x + (1 - own) * x[partner]

    return np.rint(faded(images)).astype(np.uint8), faded(masks), faded(labels)


def cutmix(
    images: np.ndarray, masks: np.ndarray, labels: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A box of another image of the batch pasted over the same place, so at the same depth; its area uniform from 0 to 1 (Yun et al., CutMix, 2019, eq. 2).

    The label follows the lesion that is seen, not the box's area: a malignant image is no less malignant for a box of normal tissue beside its lesion, and a
    box that misses the lesion brings nothing malignant. Each image's share is its share of the visible lesion pixels. Where none is visible: by area (the
    paper's way) if neither image had a lesion, all for the one that had none, and no box where both had one.
    """
    images, masks, labels = images.copy(), masks.copy(), labels.copy()
    whole, side = (images.copy(), masks.copy(), labels.copy()), masks.shape[-1]
    for i, partner in enumerate(random.permutation(len(images))):
        half = side * np.sqrt(random.uniform()) / 2
        (top, bottom), (left, right) = (
            np.rint(np.clip([centre - half, centre + half], 0, side)).astype(int)
            for centre in random.uniform(0, side, 2)
        )
        box = (i, slice(top, bottom), slice(left, right))
        theirs = whole[1][partner][box[1:]].astype(bool).sum()
        own = masks[i].astype(bool).sum() - masks[box].astype(bool).sum()
        had = masks[i].any(), whole[1][partner].any()
        if own + theirs == 0 and all(had):
            continue
        area = (bottom - top) * (right - left) / side**2
        share = theirs / (own + theirs) if own + theirs else float(had[0]) if any(had) else area
        for mixed, source in zip((images, masks), whole):
            mixed[box] = source[partner][box[1:]]
        labels[i] = (1 - share) * whole[2][i] + share * whole[2][partner]
    return images, masks, labels


# images (B,S,S,C) uint8, masks (B,S,S) uint8, labels (B,C) float32 with rows of sum 1, generator -> the same, masks float32 where they are faded
MIXES = {"mixup": mixup, "cutmix": cutmix}


def mix(settings: Train) -> Callable | None:
    """What ImageDataset does to a whole batch; None for nothing."""
    if settings.mix == "none":
        return None
    return partial(
        _sometimes, name=settings.mix, share=settings.mix_share
    )  # not a lambda: it must reach other processes


def _sometimes(
    images: np.ndarray,
    masks: np.ndarray,
    labels: np.ndarray,
    random: np.random.Generator,
    name: str,
    share: float,
):
    return (
        MIXES[name](images, masks, labels, random)
        if random.uniform() < share
        else (images, masks, labels)
    )


def check(settings: Train) -> None:
    if settings.augment not in AUGMENTS:
        raise InputError(
            f"unknown augmentation '{settings.augment}'",
            "train.augment",
            nearest(settings.augment, AUGMENTS),
            code="unknown_part",
        )
    if settings.mix not in ("none", *MIXES):
        raise InputError(
            f"unknown way of mixing '{settings.mix}'",
            "train.mix",
            nearest(settings.mix, ["none", *MIXES]),
            code="unknown_part",
        )
