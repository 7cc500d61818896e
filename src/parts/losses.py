"""Losses. To add one: a function in MASK_LOSSES, MAP_LOSSES or LABEL_LOSSES (below the functions;
the comment above each dict gives the signature), then name it under loss.mask or loss.label with
its weight. It must be finite, with finite gradients, on an empty mask, a full one, and one mixed
from two images, with values between 0 and 1 (tests/test_losses.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.config.names import check_known
from src.core.console import InputError
from src.core.settings import Experiment, Loss

# ----------------------------------------- of masks: overlap, per image or per batch (loss.pooled)


def _axes(settings: Loss) -> tuple[int, ...]:
    return (0, 1, 2, 3) if settings.pooled else (1, 2, 3)


def _tversky(logits: Tensor, target: Tensor, settings: Loss, fp: float, fn: float) -> Tensor:
    """1 − TP / (TP + fp·FP + fn·FN) of each image (B), or of the batch (one value), with half a
    pixel added to both TPs (Salehi et al., Tversky loss, 2017).

    The half pixel makes an empty image with an empty prediction cost nothing and one with a false
    positive nearly 1. TP = min(p, t), not p·t: the same for a mask of 0 and 1, and for a mixed one
    lowest where p = t (Wang et al., Dice semimetric losses, 2023).
    """
    p, axes = torch.sigmoid(logits), _axes(settings)
    wrong = fp * F.relu(p - target).sum(axes) + fn * F.relu(target - p).sum(axes)
    return wrong / (torch.minimum(p, target).sum(axes) + wrong + 0.5)


def dice(logits: Tensor, target: Tensor, settings: Loss) -> Tensor:
    """1 − soft Dice, (2·TP + 1) / (|p| + |t| + 1), averaged over images (Milletari et al., V-Net,
    2016, eq. 3, with plain sums in the denominator).

    Pooled, it is the lecture's and smp's DiceLoss("binary"), except for the added 1 and a batch
    without any lesion, which costs nothing there. A false positive on a normal image then costs no
    more than the same pixels beside another image's lesion.
    """
    return _tversky(logits, target, settings, 0.5, 0.5).mean()


def jaccard(logits: Tensor, target: Tensor, settings: Loss) -> Tensor:
    """1 − soft IoU, averaged over images."""
    return _tversky(logits, target, settings, 1, 1).mean()


def tversky(logits: Tensor, target: Tensor, settings: Loss) -> Tensor:
    """loss.tversky weighs false positives and false negatives; ½ and ½ is Dice. With no weight on
    false positives an empty image costs nothing."""
    return _tversky(logits, target, settings, *settings.tversky).mean()


def focal_tversky(logits: Tensor, target: Tensor, settings: Loss) -> Tensor:
    """Each image's Tversky loss to the power of loss.tversky_gamma (Abraham & Khan, 2019, eq. 4:
    1/γ = 3/4). The power is taken per image, unlike smp's, and its slope, infinite at 0, is cut off
    at a loss of 1e-6."""
    each = _tversky(logits, target, settings, *settings.tversky)
    return (each.clamp(min=1e-6) ** settings.tversky_gamma).mean()


def generalised_dice(logits: Tensor, target: Tensor, settings: Loss) -> Tensor:
    """1 − 2·Σ w·TP / Σ w·(|p| + |t|) over lesion and background, w = 1 / (pixels of the class)²
    (Sudre et al., 2017).

    Where an image has no pixel of a class, w would be infinite: that class is weighted like the
    other, as in MONAI, so that a false positive on an empty image costs its share of the image's
    area. Unlike MONAI's default, nothing is added to numerator and denominator: with 448² pixels,
    1e-5 outweighs the background.
    """
    p, axes = torch.sigmoid(logits), _axes(settings)
    pixels = target.numel() if settings.pooled else target[0].numel()
    predicted, truth, wrong = p.sum(axes), target.sum(axes), (p - target).abs().sum(axes)
    lesion, background = (
        (pixels / torch.where(size < 0.5, pixels, size)) ** 2 for size in (truth, pixels - truth)
    )
    both = lesion * (predicted + truth) + background * (2 * pixels - predicted - truth)
    return ((lesion + background) * wrong / both).mean()


def lovasz(logits: Tensor, target: Tensor, settings: Loss) -> Tensor:
    """Lovász hinge, a convex surrogate of 1 − IoU, averaged over images (Berman et al., 2018,
    Alg. 1).

    It is 0 only where every logit is beyond ±1. On an empty mask it is max(0, 1 + the highest
    logit): a false positive costs more than 1, but only its highest pixel has a gradient; add bce.
    A mixed pixel counts by its share, one of ½ has no gradient.
    """
    from segmentation_models_pytorch.losses import LovaszLoss  # here: smp takes seconds to import

    return LovaszLoss("binary", per_image=not settings.pooled)(logits, target)


# --------------------------------------------------------------------------- of masks: per pixel


def bce(logits: Tensor, target: Tensor, settings: Loss) -> Tensor:
    """Binary cross-entropy per pixel."""
    return F.binary_cross_entropy_with_logits(logits, target)


def _focus(cross_entropy: Tensor, settings: Loss) -> Tensor:
    """(1 − p_t)^γ; the slope of a γ below 1, infinite where p_t = 1, is cut off."""
    return (1 - torch.exp(-cross_entropy)).clamp(min=1e-6) ** settings.focal_gamma


def focal(logits: Tensor, target: Tensor, settings: Loss) -> Tensor:
    """(1 − p_t)^γ · cross-entropy per pixel (Lin et al., Focal Loss, 2017, eq. 4)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (_focus(cross_entropy, settings) * cross_entropy).mean()


# ------------------------------- of masks: by a map (S,S) of the contour, which the loader makes,
# one mask at a time, so that the GPU never waits for it


def _to_contour(inside: np.ndarray) -> np.ndarray:
    """How far every pixel's centre lies from the contour, in pixels (S,S) float32: ½ on both sides
    of it; S in an empty or a full mask, which has none."""
    if inside.all() or not inside.any():
        return np.full(inside.shape, max(inside.shape), np.float32)
    return distance_to_zero(inside) + distance_to_zero(~inside) - np.float32(0.5)


def distance_to_zero(side: np.ndarray) -> np.ndarray:
    """The distance of every pixel (S,S) to the nearest that is False, float32, with the same bits
    in every run: OpenCV's last digit depends on where in memory it works. Squares are whole
    numbers; its error leaves no doubt which, up to S = 1024."""
    distance = cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.sqrt(np.rint(distance * distance))


def contour_distance(mask: np.ndarray, settings: Loss) -> np.ndarray:
    """Distance of every pixel to the mask's contour in image sides, (S,S) float32; 1 in an empty or
    a full mask. mask: (S,S), lesion from ½ on."""
    return _to_contour(mask >= 0.5) / np.float32(max(mask.shape))


def border_weights(mask: np.ndarray, settings: Loss) -> np.ndarray:
    """U-Net's weights 1 + w_0·exp(−(d1 + d2)² / 2σ²), (S,S) float32, with loss.border = (w_0, σ in
    pixels of image_size); d1 and d2: distance to the contours of the nearest and the second nearest
    component (Ronneberger et al., 2015, eq. 2, with w_c = 1: class balance is left to dice or
    tversky).

    The paper means gaps between cells, and a lone lesion has none: there d2 is taken as 0, so that
    its own contour is stressed. An empty mask weighs 1 everywhere. mask: (S,S), lesion from ½ on.
    """
    w_0, sigma = settings.border
    count, components = cv2.connectedComponents((mask >= 0.5).astype(np.uint8))
    if count == 1:
        return np.ones(mask.shape, np.float32)
    distances = np.stack([_to_contour(components == k) for k in range(1, count)])
    d = np.partition(distances, 1, axis=0)[:2].sum(0) if count > 2 else distances[0]
    return (1 + w_0 * np.exp(-(d**2) / (2 * sigma**2))).astype(np.float32)


def border(logits: Tensor, target: Tensor, weight: Tensor, settings: Loss) -> Tensor:
    """Cross-entropy per pixel, weighted by border_weights (Ronneberger et al., U-Net, 2015, eq. 1).
    On an empty mask it is bce."""
    return (weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).mean()


def boundary(logits: Tensor, target: Tensor, distance: Tensor, settings: Loss) -> Tensor:
    """|p − t| · distance to the contour in image sides, averaged over pixels.

    For a mask of 0 and 1 it is the boundary loss Σ p·φ (Kervadec et al., 2019, eq. 5), φ negative
    inside, plus the constant −Σ t·φ (eq. 4 has it), without which it could go below 0, where
    learned task weights run away. An empty mask's contour counts as one image side away. Weak
    alone: add dice.
    """
    return (distance * (torch.sigmoid(logits) - target).abs()).mean()


def hausdorff(logits: Tensor, target: Tensor, distance: Tensor, settings: Loss) -> Tensor:
    """(p − t)² · (distance to the true contour in image sides)², averaged over pixels.

    The one-sided form, α = 2, of the distance-transform loss of Karimi & Salcudean, Reducing the
    Hausdorff Distance, 2019: it needs no distances of the prediction. An empty mask's contour
    counts as one image side away.
    """
    return (distance * (torch.sigmoid(logits) - target)).square().mean()


# ------------------------------------------------------------------------------------- of labels


@dataclass(frozen=True)
class Frequencies:
    """Of the classes among the training images: their share (C), and the weight (C) that
    loss.class_weights gives them, or None."""

    share: Tensor
    weight: Tensor | None = None

    @classmethod
    def of(cls, labels: Tensor, classes: int, settings: Loss, device: torch.device) -> Frequencies:
        """labels (N) int. `balanced`: inverse class frequency, 1 on average over the images."""
        counts, weight = torch.bincount(labels, minlength=classes).float(), None
        if settings.class_weights == "balanced":
            weight = len(labels) / (classes * counts.clamp(min=1))
        elif settings.class_weights != "none":
            weight = torch.tensor(settings.class_weights, dtype=torch.float32)
            if len(weight) != classes:
                raise InputError(
                    f"loss.class_weights has {len(weight)} values for {classes} classes",
                    "loss.class_weights",
                    code="invalid_value",
                )
        share = (counts / len(labels)).to(device)
        return cls(share, None if weight is None else weight.to(device))


def _weighted(each: Tensor, target: Tensor, classes: Frequencies) -> Tensor:
    """Losses of every class (B,C), summed by the image's share of the class and the class's weight,
    averaged over images by their weight."""
    weight = target if classes.weight is None else target * classes.weight
    return (each * weight).sum() / weight.sum()


def cross_entropy(logits: Tensor, target: Tensor, classes: Frequencies, settings: Loss) -> Tensor:
    """Cross-entropy with loss.label_smoothing and loss.class_weights, as torch weighs them."""
    log_p, smooth = F.log_softmax(logits, 1), settings.label_smoothing
    spread = torch.ones_like(log_p) if classes.weight is None else classes.weight.expand_as(log_p)
    # as in torch: smoothing spreads over the weighted classes
    uniform = (-log_p * spread).mean(1).sum() / (target * spread).sum()
    return (1 - smooth) * _weighted(-log_p, target, classes) + smooth * uniform


def label_focal(logits: Tensor, target: Tensor, classes: Frequencies, settings: Loss) -> Tensor:
    """(1 − p_t)^γ · cross-entropy over classes, the class weights being its α (Lin et al., 2017,
    eq. 5), of shares smoothed by loss.label_smoothing."""
    log_p = F.log_softmax(logits, 1)
    target = (1 - settings.label_smoothing) * target + settings.label_smoothing / target.shape[1]
    return _weighted(_focus(-log_p, settings) * -log_p, target, classes)


def balanced_softmax(
    logits: Tensor, target: Tensor, classes: Frequencies, settings: Loss
) -> Tensor:
    """Cross-entropy of logits + log share of the class among the training images (Ren et al.,
    Balanced Meta-Softmax, 2020, eq. 4).

    So the bare logits, which predict uses, answer as for equally frequent classes. Class weights or
    train.sampling=balanced would correct a second time.
    """
    return cross_entropy(logits + classes.share.clamp(min=1e-6).log(), target, classes, settings)


# (logits (B,1,H,W), mask (B,1,H,W) from 0 to 1, settings) -> scalar
MASK_LOSSES = {
    "dice": dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "generalised_dice": generalised_dice,
    "lovasz": lovasz,
    "bce": bce,
    "focal": focal,
}
# name -> (loss (logits, mask, map (B,1,H,W), settings) -> scalar,
#          maker of the map (mask (S,S) uint8, or float where mixed, settings) -> (S,S) float32)
MAP_LOSSES = {
    "border": (border, border_weights),
    "boundary": (boundary, contour_distance),
    "hausdorff": (hausdorff, contour_distance),
}
# (logits (B,C), shares of the classes (B,C), Frequencies, settings) -> scalar
LABEL_LOSSES = {
    "cross_entropy": cross_entropy,
    "focal": label_focal,
    "balanced_softmax": balanced_softmax,
}


def maps(experiment: Experiment) -> dict[str, Callable]:
    """The maps that the loader makes of every mask (S,S) for the losses that are used."""
    makers = {name: maker for name, (_, maker) in MAP_LOSSES.items()}
    used = experiment.loss.mask.keys() & makers if experiment.task != "class" else ()
    return {name: partial(makers[name], settings=experiment.loss) for name in sorted(used)}


def of_masks(logits: Tensor, target: dict[str, Tensor], settings: Loss) -> Tensor:
    """The weighted sum of loss.mask; target: the mask and the maps."""
    logits, mask = logits.float(), target["mask"].float()
    total = 0
    for name, weight in settings.mask.items():
        if name in MAP_LOSSES:
            loss = MAP_LOSSES[name][0](logits, mask, target[name], settings)
        else:
            loss = MASK_LOSSES[name](logits, mask, settings)
        total = total + weight * loss
    return total


def deep(output: dict[str, Tensor], target: dict[str, Tensor], settings: Loss) -> Tensor:
    """of_masks at full size, and at the lower resolutions of `deep` where a network gives them:
    each level counts half of the one above, sum 1 (Isensee et al., nnU-Net, 2021)."""
    total, weights = of_masks(output["mask"], target, settings), 1.0
    maps = {k: v.float() for k, v in target.items() if v.ndim == 4}
    for level, logits in enumerate(output.get("deep", ()), 1):
        size = logits.shape[-2:]
        small = {k: F.interpolate(v, size, mode="nearest") for k, v in maps.items()}
        total = total + 0.5**level * of_masks(logits, small, settings)
        weights += 0.5**level
    return total / weights


def total(
    output: dict, target: dict[str, Tensor], classes: Frequencies, settings: Loss
) -> dict[str, Tensor]:
    """λ·mask + (1−λ)·label as `loss`, with its two terms; always in float32. Where the network
    gives only one of the answers, that term alone.

    output: "mask" and "label" logits, and what else a network has: "deep" (a list of mask logits at
    lower resolutions), "extra_loss" (added), "log_variance" (2): learned task weights,
    Σ exp(−s)·loss + s/2 (Kendall et al. 2018, eq. 10).
    """
    terms = {}
    if "mask" in output:
        terms["mask_loss"] = deep(output, target, settings)
    if "label" in output:
        logits = output["label"].float()
        terms["label_loss"] = sum(
            weight * LABEL_LOSSES[name](logits, target["label"], classes, settings)
            for name, weight in settings.label.items()
        )
    mask, label = terms.get("mask_loss"), terms.get("label_loss")
    if mask is None or label is None:
        loss = label if mask is None else mask
    elif settings.mask_weight == "uncertainty":
        s = output["log_variance"]
        loss = torch.exp(-s[0]) * mask + torch.exp(-s[1]) * label + 0.5 * s.sum()
    else:
        loss = settings.mask_weight * mask + (1 - settings.mask_weight) * label
    return {"loss": loss + output.get("extra_loss", 0.0)} | terms


def check(experiment: Experiment) -> None:
    """Raises InputError for a loss that does not exist and for weights that cannot be."""
    settings = experiment.loss
    for key, named, known in (
        ("loss.mask", settings.mask, [*MASK_LOSSES, *MAP_LOSSES]),
        ("loss.label", settings.label, LABEL_LOSSES),
    ):
        for name in named:
            check_known(name, known, "loss", key)
        if not named or sum(named.values()) <= 0:
            raise InputError(
                "at least one loss with a weight above 0 is needed", key, code="invalid_value"
            )
    if not isinstance(settings.class_weights, str) and min(settings.class_weights, default=0) <= 0:
        raise InputError(
            "class weights must be above 0", "loss.class_weights", code="invalid_value"
        )
