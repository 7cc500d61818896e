"""Test-time augmentation. To add a view: a View in TTA, then predict.tta names it.
`undo(do(x)) = x` on a mask, exactly for flips, up to interpolation for scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from src.config.names import check_known


@dataclass(frozen=True)
class View:
    """do: images (B,C,S,S) -> what the network sees. undo: its mask probabilities, and S ->
    (B,1,S,S)."""

    do: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor, int], Tensor]


def scaled(factor: float) -> View:
    """The image enlarged or shrunk to a multiple of 32 pixels, which every encoder takes."""

    def do(images: Tensor) -> Tensor:
        given = images.shape[-1]
        size = max(32, round(given * factor / 32) * 32)
        if size == given:
            # a small image: one step of 32 pixels, or the view would be the identity again
            size += 32 if factor > 1 or given == 32 else -32
        return _resized(images.float(), size, antialias=factor < 1)

    return View(do, _resized)


def _resized(images: Tensor, size: int, antialias: bool = False) -> Tensor:
    return F.interpolate(
        images, (size, size), mode="bilinear", align_corners=False, antialias=antialias
    )


TTA = {
    "identity": View(lambda images: images, lambda mask, size: mask),
    "hflip": View(lambda images: images.flip(-1), lambda mask, size: mask.flip(-1)),
    "scale_0.85": scaled(0.85),
    "scale_1.15": scaled(1.15),
    "scale_1.3": scaled(1.3),
}


def check(names: list[str]) -> None:
    for name in names:
        check_known(name, TTA, "view", "predict.tta")
