"""Augmentations. To add a set: a function in AUGMENTS that returns a list of albumentations
transforms, then train.augment names it. To add a way of mixing the images of a batch: a function in
MIXES, then train.mix names it.

No vertical flips: the probe is at the top, what lies below is deeper, and shadows fall downwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from src.config.names import check_known
from src.core.settings import Train

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for its newest version on import
import albumentations as A  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402

BLACK = {"border_mode": cv2.BORDER_CONSTANT}  # what comes in from outside of the image


def affine(
    scale: tuple[float, float], shift: float, rotate: float, shear: float, p: float
) -> A.Affine:
    """`shift` as a share of the side, `rotate` and `shear` in degrees: at most, to either side."""
    return A.Affine(
        scale=scale,
        translate_percent=(-shift, shift),
        rotate=(-rotate, rotate),
        shear=(-shear, shear),
        p=p,
        **BLACK,
    )


def holes(side: float, p: float) -> A.CoarseDropout:
    """One to four black boxes, their sides up to this share of the image's."""
    sides = (0.05, side)
    return A.CoarseDropout((1, 4), hole_height_range=sides, hole_width_range=sides, fill=0, p=p)


def none() -> list:
    return []


def light() -> list:
    return [
        A.HorizontalFlip(p=0.5),
        affine((0.9, 1.1), shift=0.05, rotate=5, shear=0, p=0.7),
        A.RandomBrightnessContrast(0.15, 0.15, p=0.5),
    ]


def medium() -> list:
    return [
        A.HorizontalFlip(p=0.5),
        affine((0.8, 1.25), shift=0.1, rotate=12, shear=6, p=0.8),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.6),
        A.RandomGamma((75, 135), p=0.4),
    ]


def strong() -> list:
    noise = A.MultiplicativeNoise((0.85, 1.15), elementwise=True)
    return [
        A.HorizontalFlip(p=0.5),
        affine((0.7, 1.4), shift=0.15, rotate=20, shear=10, p=0.9),
        A.ElasticTransform(alpha=40, sigma=8, p=0.25, **BLACK),
        A.RandomBrightnessContrast(0.3, 0.3, p=0.7),
        A.RandomGamma((65, 150), p=0.5),
        A.OneOf([A.GaussianBlur((3, 5)), noise], p=0.3),
        holes(0.2, p=0.3),
    ]


class Shadow(A.ImageOnlyTransform):
    """An acoustic shadow: below a random point a column that widens with depth, with soft edges,
    and darkens downwards. The mask is left as it is."""

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        height, width = params["shape"][:2]
        # albumentations' own generator: it is what set_random_seed seeds
        uniform = self.py_random.uniform
        top = uniform(0.1, 0.7) * height
        middle = uniform(0, 1) * width
        half = uniform(0.02, 0.1) * width
        slope = uniform(0, 0.15)
        depth = uniform(0.05, 0.3) * height
        strength = uniform(0.3, 0.8)
        below = np.arange(height)[:, None] - top
        aside = np.abs(np.arange(width)[None] - middle)
        across = np.clip((half + slope * below.clip(min=0) - aside) / (0.04 * width) + 0.5, 0, 1)
        return {"light": (1 - strength * across * np.clip(below / depth, 0, 1)).astype(np.float32)}

    def apply(self, img: np.ndarray, light: np.ndarray, **params) -> np.ndarray:
        return np.rint(img * (light[..., None] if img.ndim == 3 else light)).astype(img.dtype)


def ultrasound() -> list:
    """What varies from scan to scan: pressure and angle of the probe, gain, speckle, shadows."""
    return [
        A.HorizontalFlip(p=0.5),
        affine((0.8, 1.25), shift=0.1, rotate=12, shear=6, p=0.8),
        A.ElasticTransform(alpha=40, sigma=8, p=0.2, **BLACK),
        A.GridDistortion(num_steps=5, distort_limit=0.2, p=0.2, **BLACK),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.4),
        A.RandomGamma((65, 150), p=0.5),
        A.MultiplicativeNoise((0.8, 1.2), elementwise=True, p=0.4),
        Shadow(p=0.3),
        holes(0.15, p=0.2),
    ]


AUGMENTS = {
    "none": none,
    "light": light,
    "medium": medium,
    "strong": strong,
    "ultrasound": ultrasound,
}


def build(name: str) -> A.Compose:
    """Call it with image (H,W,C) uint8 and mask (H,W) uint8, after set_random_seed: the caller
    seeds every sample, so that what an image gets depends on seed, epoch and image alone, not on
    the number of workers (left alone, albumentations repeats itself across workers and epochs)."""
    return A.Compose(AUGMENTS[name](), strict=True)


# images (B,S,S,C) uint8, masks (B,S,S) uint8 and labels (B,C) float32 with rows of sum 1
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
ALPHA = 0.4  # of mixup's Beta distribution: the paper's upper end for ImageNet


def mixup(batch: Batch, random: np.random.Generator) -> Batch:
    """Every image faded into another of the batch: pixels, mask and label by the same share, drawn
    from Beta(α, α) (Zhang et al., mixup, 2018)."""
    n = len(batch[0])
    partner = random.permutation(n)
    share = random.beta(ALPHA, ALPHA, n).astype(np.float32)

    def faded(x: np.ndarray) -> np.ndarray:
        own = share.reshape(-1, *[1] * (x.ndim - 1))
        return own * x + (1 - own) * x[partner]

    images, masks, labels = map(faded, batch)
    return np.rint(images).astype(np.uint8), masks, labels


def cutmix(batch: Batch, random: np.random.Generator) -> Batch:
    """A box of another image of the batch pasted over the same place, so at the same depth; its
    area uniform from 0 to 1 (Yun et al., CutMix, 2019, eq. 2).

    The label follows the lesion that is seen, not the box's area: a malignant image is no less
    malignant for a box of normal tissue beside its lesion, and a box that misses the lesion brings
    nothing malignant. Each image's share is its share of the visible lesion pixels. Where none is
    visible: by area (as in the paper) if neither image had a lesion, all for the one that had none,
    and no box where both had one.
    """
    originals = batch
    images, masks, labels = (x.copy() for x in batch)
    side = masks.shape[-1]
    for i, partner in enumerate(random.permutation(len(images))):
        half = side * np.sqrt(random.uniform()) / 2
        centre = random.uniform(0, side, 2)
        top, left = np.rint(np.clip(centre - half, 0, side)).astype(int)
        bottom, right = np.rint(np.clip(centre + half, 0, side)).astype(int)
        box = np.s_[top:bottom, left:right]
        lesion, pasted = originals[1][i].astype(bool), originals[1][partner].astype(bool)
        own = lesion.sum() - lesion[box].sum()
        theirs = pasted[box].sum()
        if own + theirs:
            share = theirs / (own + theirs)
        elif lesion.any() and pasted.any():
            continue
        elif lesion.any() or pasted.any():
            share = float(lesion.any())
        else:
            share = (bottom - top) * (right - left) / side**2
        images[i][box] = originals[0][partner][box]
        masks[i][box] = originals[1][partner][box]
        labels[i] = (1 - share) * originals[2][i] + share * originals[2][partner]
    return images, masks, labels


# (batch, generator) -> the batch, masks float32 where they are faded
MIXES = {"mixup": mixup, "cutmix": cutmix}


def mix(settings: Train) -> Callable[[Batch, np.random.Generator], Batch] | None:
    """What is done to every batch; None for nothing."""
    if settings.mix == "none":
        return None
    # not a lambda: it must reach other processes
    return partial(_sometimes, name=settings.mix, share=settings.mix_share)


def _sometimes(batch: Batch, random: np.random.Generator, name: str, share: float) -> Batch:
    return MIXES[name](batch, random) if random.uniform() < share else batch


def check(settings: Train) -> None:
    check_known(settings.augment, AUGMENTS, "augmentation", "train.augment")
    check_known(settings.mix, ("none", *MIXES), "way of mixing", "train.mix")
