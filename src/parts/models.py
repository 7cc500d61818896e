"""Networks. To add one: a function (Model settings, number of classes, weights) -> nn.Module in MODELS; its forward takes normalised images
(B,3,H,W) float and returns {"mask": (B,1,H,W) logits, "label": (B,C) logits}. A part named `encoder` gets the encoder's learning rate."""
from __future__ import annotations

import torch
from torch import nn

from src.core.config import Model
from src.core.console import InputError, nearest, say
from src.core.pretrained import IMAGENET, download_failed, downloaded_statistics, find_weights, load_encoder, quiet_hub

SMP = ["unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "pan", "upernet", "segformer", "dpt"]


class SmpNetwork(nn.Module):
    """An smp architecture with smp's own classification head on the deepest features."""

    def __init__(self, settings: Model, classes: int, weights: str | None = None):
        super().__init__()
        import segmentation_models_pytorch as smp

        head = {"classes": classes, "pooling": "avg", "dropout": settings.dropout or None}
        self.net = smp.create_model(settings.arch, settings.encoder, encoder_weights=weights, in_channels=3, classes=1, aux_params=head, **settings.options)

    @property
    def encoder(self) -> nn.Module:
        return self.net.encoder

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        mask, label = self.net(images)
        return {"mask": mask, "label": label}


class HalfUnet(SmpNetwork):
    """A U-Net that decodes to half resolution and enlarges the logits twofold. The step left out has no skip connection, so it adds no detail.
    model.options.decoder_channels names its four steps."""

    def __init__(self, settings: Model, classes: int, weights: str | None = None):
        from segmentation_models_pytorch.base import SegmentationHead

        channels = list(settings.options.get("decoder_channels", (256, 128, 64, 32)))
        if len(channels) != 4:
            raise ValueError(f"unet_half has four decoder steps, model.options.decoder_channels names {len(channels)}")
        options = settings.options | {"decoder_channels": [*channels, 16]}
        super().__init__(settings.model_copy(update={"arch": "unet", "options": options}), classes, weights)
        self.net.decoder.blocks = self.net.decoder.blocks[:-1]
        self.net.segmentation_head = SegmentationHead(channels[-1], 1, kernel_size=3, upsampling=2)


MODELS = {name: SmpNetwork for name in SMP} | {"unet_half": HalfUnet}


class Network(nn.Module):
    """What train and predict see: takes grey or RGB images (B,1|3,H,W), values 0…255 of any number format, and normalises them as the encoder's
    pre-training did. Mean and std travel in the checkpoint."""

    def __init__(self, body: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.body = body
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        images = (images.float() - self.mean) / self.std  # grey spreads to three channels here, on the device
        return self.body(images.contiguous(memory_format=torch.channels_last))

    def parameter_groups(self, lr: float, encoder_lr: float, weight_decay: float) -> list[dict]:
        """Encoder and the rest, each with and without weight decay (norms and biases go without)."""
        encoder = {id(p) for p in getattr(self.body, "encoder", nn.Module()).parameters()}
        groups: dict[tuple[bool, bool], list] = {}
        for p in self.parameters():
            if p.requires_grad:
                groups.setdefault((id(p) in encoder, p.ndim > 1), []).append(p)
        return [{"params": ps, "base_lr": encoder_lr if inside else lr, "lr": 0.0, "weight_decay": weight_decay if decay else 0.0} for (inside, decay), ps in groups.items()]


def build(settings: Model, classes: int, pretrained: bool) -> Network:
    """The network of an experiment; `pretrained=False` (predict, resume) never asks for weights. Raises InputError for what cannot be built."""
    mean, std = IMAGENET
    weights = settings.encoder_weights if pretrained and settings.encoder_weights != "none" else None
    file = find_weights(settings.encoder, weights, settings.weights_dir) if weights else None
    try:
        body = MODELS[settings.arch](settings, classes)  # before a download, which a mistake in the settings would waste
    except (TypeError, ValueError, KeyError, NotImplementedError, AssertionError) as error:
        raise InputError(f"{settings.arch} with {settings.encoder} cannot be built: {str(error).splitlines()[0] if str(error) else type(error).__name__}", "model", "Try another encoder or other model.options") from error
    if file:
        mean, std = load_encoder(getattr(body, "encoder", body), file)
    elif weights:
        quiet_hub()
        say(f"  encoder: {settings.encoder}.pth is not in {settings.weights_dir}/, downloading (without a network this takes half a minute to fail)")
        try:
            body = MODELS[settings.arch](settings, classes, weights)
            mean, std = downloaded_statistics(settings.encoder)
        except (OSError, RuntimeError, ValueError, KeyError) as error:  # the hub's errors are OSErrors, safetensors', timm's and smp's are the others
            raise download_failed(settings.encoder, settings.weights_dir, error) from error
    return Network(body, mean, std)


def check(settings: Model) -> None:
    """Raises InputError for an architecture or encoder that does not exist."""
    if settings.arch not in MODELS:
        raise InputError(f"unknown architecture '{settings.arch}'", "model.arch", nearest(settings.arch, MODELS))
    import segmentation_models_pytorch as smp
    import timm

    known = smp.encoders.get_encoder_names()
    name = settings.encoder
    if name not in known and not (name.startswith("tu-") and timm.is_model(name.removeprefix("tu-"))):
        raise InputError(f"unknown encoder '{name}'", "model.encoder", nearest(name, [*known, *(f"tu-{m}" for m in timm.list_models())]))
