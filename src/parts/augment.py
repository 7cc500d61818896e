"""Augmentations. To add a set: a function in AUGMENTS that returns a list of albumentations transforms, then train.augment names it.

No vertical flips: the probe is at the top, what lies below is deeper, and shadows fall downwards.
"""
from __future__ import annotations

import os

from src.core.console import InputError, nearest

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for its newest version on import
import albumentations as A  # noqa: E402
import cv2  # noqa: E402


def none() -> list:
    return []


def light() -> list:
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(scale=(0.9, 1.1), translate_percent=(-0.05, 0.05), rotate=(-5, 5), p=0.7, border_mode=cv2.BORDER_CONSTANT),
        A.RandomBrightnessContrast(0.15, 0.15, p=0.5),
    ]


def medium() -> list:
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(scale=(0.8, 1.25), translate_percent=(-0.1, 0.1), rotate=(-12, 12), shear=(-6, 6), p=0.8, border_mode=cv2.BORDER_CONSTANT),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.6),
        A.RandomGamma((75, 135), p=0.4),
    ]


def strong() -> list:
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(scale=(0.7, 1.4), translate_percent=(-0.15, 0.15), rotate=(-20, 20), shear=(-10, 10), p=0.9, border_mode=cv2.BORDER_CONSTANT),
        A.ElasticTransform(alpha=40, sigma=8, p=0.25, border_mode=cv2.BORDER_CONSTANT),
        A.RandomBrightnessContrast(0.3, 0.3, p=0.7),
        A.RandomGamma((65, 150), p=0.5),
        A.OneOf([A.GaussianBlur((3, 5)), A.MultiplicativeNoise((0.85, 1.15), elementwise=True)], p=0.3),
        A.CoarseDropout(num_holes_range=(1, 4), hole_height_range=(0.05, 0.2), hole_width_range=(0.05, 0.2), fill=0, p=0.3),
    ]


AUGMENTS = {"none": none, "light": light, "medium": medium, "strong": strong}


def build(name: str) -> A.Compose:
    """Call it with image (H,W,C) uint8 and mask (H,W) uint8, after set_random_seed: the caller seeds every sample, so that what an image gets
    depends on seed, epoch and image alone, not on the number of workers (left alone, albumentations repeats itself across workers and epochs)."""
    return A.Compose(AUGMENTS[name](), strict=True)


def check(name: str) -> None:
    if name not in AUGMENTS:
        raise InputError(f"unknown augmentation '{name}'", "train.augment", nearest(name, AUGMENTS))
