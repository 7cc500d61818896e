"""Class heads. To add one: a function (channels, classes, dropout) -> nn.Module in HEADS. Its
forward takes the deepest features (B,channels,h,w) of a network, of any h and w, and returns the
logits (B,classes)."""

from __future__ import annotations

import torch
from torch import nn


def output_layer(channels: int, classes: int) -> nn.Linear:
    """Initialised as smp initialises it."""
    layer = nn.Linear(channels, classes)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def linear(channels: int, classes: int, dropout: float) -> nn.Module:
    """The mean over positions, and one layer: what smp's own head does, under the same names."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), output_layer(channels, classes)
    )


def mlp(channels: int, classes: int, dropout: float) -> nn.Module:
    """The mean over positions, and two layers with 256 units between them."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(channels, 256),
        nn.ReLU(),
        nn.Dropout(dropout),
        output_layer(256, classes),
    )


class Attention(nn.Module):
    """A weighted mean over positions, z = Σ a_k·h_k with a = softmax(wᵀ·tanh(V·h_k)), and one layer
    (Ilse et al., Attention-based Deep Multiple Instance Learning, 2018, eq. 7 and 8): a small
    lesion is not diluted by the tissue around it."""

    def __init__(self, channels: int, classes: int, dropout: float):
        super().__init__()
        self.score = nn.Sequential(
            nn.Conv2d(channels, 128, 1), nn.Tanh(), nn.Conv2d(128, 1, 1, bias=False)
        )
        self.answer = nn.Sequential(nn.Dropout(dropout), output_layer(channels, classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        weight = self.score(features).flatten(1).float().softmax(1).to(features.dtype)
        return self.answer((features.flatten(2) * weight[:, None]).sum(2))


HEADS = {"linear": linear, "mlp": mlp, "attention": Attention}
