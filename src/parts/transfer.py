"""Which parameters belong to which stage of an encoder, for train.freeze."""

from __future__ import annotations

import torch
from torch import nn


def encoder_stages(encoder: nn.Module, image_size: int) -> list[set[str]]:
    """For each feature map that comes out of an encoder, in order, the names of the parameters it was made with, by the graph that autograd keeps.
    A map made with none is no stage: smp hands on the image itself, and an empty map where a transformer has no such resolution."""
    names = {id(p): name for name, p in encoder.named_parameters()}
    trainable = {p: p.requires_grad for p in encoder.parameters()}
    training = {module: module.training for module in encoder.modules()}
    encoder.eval()
    for p in trainable:
        p.requires_grad_(True)
    with torch.enable_grad():
        features = encoder(
            torch.zeros(1, 3, image_size, image_size, device=next(iter(trainable)).device)
        )
    for p, was in trainable.items():
        p.requires_grad_(was)
    for module, was in training.items():
        module.training = was
    if isinstance(features, (tuple, list)) and isinstance(features[0], (tuple, list)):
        features = features[0]  # a ViT's, beside its class tokens
    used = [
        {names[p] for p in behind(f) if p in names}
        for f in (features if isinstance(features, (tuple, list)) else [features])
    ]
    return [names for names in used if names]


def behind(output: torch.Tensor) -> set[int]:
    """The ids of the trainable parameters that a tensor was computed with."""
    found, seen, todo = set(), set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found |= {id(node.variable)} if hasattr(node, "variable") else set()
            todo += [before for before, _ in node.next_functions]
    return found
