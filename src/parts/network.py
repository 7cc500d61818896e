"""The network that train and predict see, around one of parts/models.py."""

from __future__ import annotations

import torch
from torch import nn

from src.core.console import InputError
from src.core.settings import Experiment, Train


class Network(nn.Module):
    """Takes grey or RGB images (B,1|3,H,W), values 0…255 of any number format, and normalises them
    as the encoder's pre-training did. Mean and std travel in the checkpoint."""

    def __init__(
        self, body: nn.Module, mean: list[float], std: list[float], experiment: Experiment
    ):
        super().__init__()
        self.body, self.task, self.image_size = body, experiment.task, experiment.image_size
        if hasattr(body, "only"):
            body.only(self.task)
        if experiment.loss.mask_weight == "uncertainty" and self.task == "both":
            # of the mask's and the label's loss, learned
            self.log_variance = nn.Parameter(torch.zeros(2))
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))
        self.stages: list[set[str]] = []  # of the encoder, once train.freeze has asked for them
        self.frozen: set[str] = set()  # names of the encoder's parameters

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        # grey becomes three channels here, on the device
        images = (images.float() - self.mean) / self.std
        output = self.body(images.contiguous(memory_format=torch.channels_last))
        unasked = {"both": (), "mask": ("label",), "class": ("mask", "deep")}[self.task]
        output = {k: v for k, v in output.items() if k not in unasked}
        if self.training and hasattr(self, "log_variance"):
            output["log_variance"] = self.log_variance
        return output

    def freeze(self, settings: Train, epoch: int) -> None:
        """Freeze for this epoch what train.freeze and train.unfreeze_at name: weights, and running
        statistics of norm layers. To be called in training mode; raises InputError where the
        encoder has no such part."""
        if settings.freeze == "none":
            return
        over = settings.unfreeze_at is not None and epoch >= settings.unfreeze_at
        wanted = set() if over else self.freezable(settings.freeze)
        for name, p in self.body.encoder.named_parameters():
            if name in wanted and p.requires_grad:
                p.requires_grad_(False)
                self.frozen.add(name)
            elif name in self.frozen - wanted:  # what was never trainable is left so
                p.requires_grad_(True)
                self.frozen.remove(name)
        everything = bool(wanted) and settings.freeze == "encoder"
        for name, module in self.body.encoder.named_modules():
            own = {f"{name}.{p}".lstrip(".") for p, _ in module.named_parameters(recurse=False)}
            if hasattr(module, "running_mean") and own <= wanted and (own or everything):
                module.eval()

    def freezable(self, which: str | int) -> set[str]:
        """Names of the encoder's parameters that train.freeze means."""
        where = f"train.freeze: {which}"
        encoder = getattr(self.body, "encoder", None)
        if encoder is None:
            raise InputError(
                "this network has no encoder", where, "Set train.freeze=none", code="invalid_value"
            )
        if which == "encoder":
            return {name for name, _ in encoder.named_parameters()}
        self.stages = self.stages or encoder_stages(encoder, self.image_size)
        count = len(self.stages)
        if which > count:
            raise InputError(
                f"the encoder has {count} stages",
                where,
                f"Use 1 to {count}, or encoder for all of it",
                code="invalid_value",
            )
        return set().union(*self.stages[:which])

    def parameter_groups(self, lr: float, encoder_lr: float, weight_decay: float) -> list[dict]:
        """Encoder and the rest, each with and without weight decay (norms and biases without)."""
        encoder = {id(p) for p in getattr(self.body, "encoder", nn.Module()).parameters()}
        groups: dict[tuple[bool, bool], list] = {}
        for p in self.parameters():
            if p.requires_grad:
                groups.setdefault((id(p) in encoder, p.ndim > 1), []).append(p)
        return [
            {
                "params": params,
                "base_lr": encoder_lr if inside else lr,
                "lr": 0.0,
                "weight_decay": weight_decay if decay else 0.0,
            }
            for (inside, decay), params in groups.items()
        ]


def encoder_stages(encoder: nn.Module, image_size: int) -> list[set[str]]:
    """For each feature map of an encoder, in order, the names of the parameters behind it.

    A map without any is not a stage: smp passes on the image itself, and an empty map where a
    transformer has no such resolution.
    """
    names = {id(p): name for name, p in encoder.named_parameters()}
    trainable = {p: p.requires_grad for p in encoder.parameters()}
    training = {module: module.training for module in encoder.modules()}
    device = next(iter(trainable)).device
    encoder.eval().requires_grad_(True)
    with torch.enable_grad():
        features = encoder(torch.zeros(1, 3, image_size, image_size, device=device))
    for p, was in trainable.items():
        p.requires_grad_(was)
    for module, was in training.items():
        module.training = was
    maps = features if isinstance(features, (tuple, list)) else [features]
    if isinstance(maps[0], (tuple, list)):
        maps = maps[0]  # those of a ViT, beside its class tokens
    stages = [{names[p] for p in parameters_behind(one) if p in names} for one in maps]
    return [stage for stage in stages if stage]


def parameters_behind(output: torch.Tensor) -> set[int]:
    """The ids of the trainable parameters that a tensor was computed with, by autograd's graph."""
    found, seen, todo = set(), {None}, [output.grad_fn]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                found.add(id(node.variable))
            todo += [before for before, _ in node.next_functions]
    return found
