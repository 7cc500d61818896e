"""Losses. To add one: a function in MASK_LOSSES or LABEL_LOSSES, then name it under loss.mask or loss.label with its weight."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from src.core.config import Loss
from src.core.console import InputError, nearest


def dice(logits: torch.Tensor, target: torch.Tensor, settings: Loss) -> torch.Tensor:
    """1 − soft Dice of each image, averaged over images (Milletari et al., V-Net, 2016, eq. 3, with plain sums in the denominator).

    The added 1 pixel makes an empty image with an empty prediction cost nothing. Pooled over the batch, as smp does, a false positive on a
    normal image would cost nothing either.
    """
    p = torch.sigmoid(logits)
    axes = (1, 2, 3)
    return (1 - (2 * (p * target).sum(axes) + 1) / (p.sum(axes) + target.sum(axes) + 1)).mean()


def bce(logits: torch.Tensor, target: torch.Tensor, settings: Loss) -> torch.Tensor:
    """Binary cross-entropy per pixel."""
    return F.binary_cross_entropy_with_logits(logits, target)


def focal(logits: torch.Tensor, target: torch.Tensor, settings: Loss) -> torch.Tensor:
    """(1 − p_t)^γ · cross-entropy per pixel (Lin et al., Focal Loss, 2017, eq. 4)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return ((1 - torch.exp(-cross_entropy)) ** settings.focal_gamma * cross_entropy).mean()


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, settings: Loss) -> torch.Tensor:
    return F.cross_entropy(logits, target, weight, label_smoothing=settings.label_smoothing)


def label_focal(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, settings: Loss) -> torch.Tensor:
    """(1 − p_t)^γ · cross-entropy over classes, the class weights being its α (Lin et al., 2017, eq. 5)."""
    log_p = F.log_softmax(logits, 1)
    p_t = log_p.gather(1, target[:, None])[:, 0].exp()
    each = F.cross_entropy(logits, target, weight, reduction="none", label_smoothing=settings.label_smoothing)
    total = weight[target].sum() if weight is not None else len(target)
    return ((1 - p_t) ** settings.focal_gamma * each).sum() / total


MASK_LOSSES = {"dice": dice, "bce": bce, "focal": focal}  # (logits (B,1,H,W), target (B,1,H,W) of 0 and 1, settings) -> scalar
LABEL_LOSSES = {"cross_entropy": cross_entropy, "focal": label_focal}  # (logits (B,C), target (B), class weights (C) or None, settings) -> scalar


def total(output: dict[str, torch.Tensor], mask: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None, settings: Loss) -> dict[str, torch.Tensor]:
    """λ·mask + (1−λ)·label as `loss`, with its two parts; always in float32."""
    target = mask.float()
    of_mask = sum(w * MASK_LOSSES[n](output["mask"].float(), target, settings) for n, w in settings.mask.items())
    of_label = sum(w * LABEL_LOSSES[n](output["label"].float(), label, weight, settings) for n, w in settings.label.items())
    return {"loss": settings.balance * of_mask + (1 - settings.balance) * of_label, "mask_loss": of_mask, "label_loss": of_label}


def class_weights(setting: str | list[float], labels: torch.Tensor, classes: int, device: torch.device) -> torch.Tensor | None:
    """`balanced`: inverse class frequency, 1 on average over the images."""
    if setting == "none":
        return None
    if setting == "balanced":
        return len(labels) / (classes * torch.bincount(labels, minlength=classes).clamp(min=1).float()).to(device)
    if len(setting) != classes:
        raise InputError(f"loss.class_weights has {len(setting)} values for {classes} classes", "loss.class_weights")
    return torch.tensor(setting, dtype=torch.float32, device=device)


def check(settings: Loss) -> None:
    """Raises InputError for a loss that does not exist."""
    for key, named, known in (("loss.mask", settings.mask, MASK_LOSSES), ("loss.label", settings.label, LABEL_LOSSES)):
        for name in named:
            if name not in known:
                raise InputError(f"unknown loss '{name}'", key, nearest(name, known))
        if not named or sum(named.values()) <= 0:
            raise InputError("at least one loss with a weight above 0 is needed", key)
