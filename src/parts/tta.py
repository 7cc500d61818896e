"""Test-time views. To add one: a View in TTA, then predict.tta names it. `undo(do(x)) = x` on a mask, exactly for flips, up to interpolation for scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from src.core.console import InputError, nearest

Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class View:
    """do: images (B,C,S,S) -> what the network sees. undo: its mask probabilities -> (B,1,S,S), S given."""

    do: Transform
    undo: Callable[[torch.Tensor, int], torch.Tensor]


def scaled(factor: float) -> View:
    """The image enlarged or shrunk to a multiple of 32 pixels, which every encoder takes."""

    def do(images: torch.Tensor) -> torch.Tensor:
        given = images.shape[-1]
        size = max(32, round(given * factor / 32) * 32)
        if (
            size == given
        ):  # a small image: one step of 32 pixels, or the view would be the identity again
            size += 32 if factor > 1 or given == 32 else -32
        return F.interpolate(
            images.float(), (size, size), mode="bilinear", align_corners=False, antialias=factor < 1
        )

    return View(
        do,
        lambda mask, size: F.interpolate(mask, (size, size), mode="bilinear", align_corners=False),
    )


TTA = {
    "identity": View(lambda x: x, lambda mask, size: mask),
    "hflip": View(lambda x: x.flip(-1), lambda mask, size: mask.flip(-1)),
    "scale_0.85": scaled(0.85),
    "scale_1.15": scaled(1.15),
    "scale_1.3": scaled(1.3),
}


def check(names: list[str]) -> None:
    for name in names:
        if name not in TTA:
            raise InputError(
                f"unknown view '{name}'", "predict.tta", nearest(name, TTA), code="unknown_part"
            )
