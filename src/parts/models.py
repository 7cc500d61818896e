"""Networks. To add one: a function or class (Model settings, number of classes, weights) ->
nn.Module in MODELS. Its forward takes normalised images (B,3,H,W) float and returns
{"mask": (B,1,H,W) logits, "label": (B,C) logits}.

What else an entry may have: a parameter `image_size` (gets experiment.image_size); the attribute
`takes_encoder` (then the name in model.encoder is checked). What its module may have: `encoder`,
which gets the encoder's learning rate and pre-trained weights, and which train.freeze is about;
and `only(task)`, which drops what the task does not need. What else a forward may return is in
parts/losses.py.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn

from src.config.names import check_known
from src.core.settings import Model
from src.parts.fitted import FITTED
from src.parts.heads import HEADS
from src.parts.monai_networks import MONAI

SMP = [
    "unet",
    "unetplusplus",
    "manet",
    "linknet",
    "fpn",
    "pspnet",
    "deeplabv3",
    "deeplabv3plus",
    "pan",
    "upernet",
    "segformer",
    "dpt",
]


class SmpNetwork(nn.Module):
    """An smp architecture, with a class head on its deepest features."""

    takes_encoder = True

    def __init__(
        self,
        settings: Model,
        classes: int,
        weights: str | None = None,
        *,
        image_size: int | None = None,
    ):
        super().__init__()
        import segmentation_models_pytorch as smp

        sized = size_option(settings.encoder, image_size) if image_size else {}
        self.net = smp.create_model(
            settings.arch,
            settings.encoder,
            encoder_weights=weights,
            in_channels=3,
            classes=1,
            **sized | settings.options,
        )
        self.net.classification_head = HEADS[settings.head](
            self.encoder.out_channels[-1], classes, settings.dropout
        )

    @property
    def encoder(self) -> nn.Module:
        return self.net.encoder

    def only(self, task: str) -> None:
        if task == "mask":
            self.net.classification_head = None
        if task == "class":
            self.net.decoder, self.net.segmentation_head = NoDecoder(), nn.Identity()

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        answer = self.net(images)
        mask, label = answer if isinstance(answer, tuple) else (answer, None)
        return {k: v for k, v in (("mask", mask), ("label", label)) if v is not None}


class NoDecoder(nn.Module):
    def forward(self, *features) -> None:
        """Stands where a decoder was."""


def size_option(encoder: str, image_size: int) -> dict:
    """The option that lets a timm encoder made for one image size take another, if it needs one.

    dynamic_img_size where there is one, since it leaves all weights their shape.
    """
    import timm

    name = encoder.removeprefix("tu-")
    config = timm.get_pretrained_cfg(name) if encoder.startswith("tu-") else None
    if not config or not config.fixed_input_size:
        return {}
    with torch.device("meta"):  # only to see what its class takes
        takes = inspect.signature(type(timm.create_model(name)).__init__).parameters
    options = {"dynamic_img_size": True, "img_size": image_size}
    return next(({name: value} for name, value in options.items() if name in takes), {})


class HalfUnet(SmpNetwork):
    """A U-Net that decodes to half resolution and enlarges the logits twofold.

    The step left out has no skip connection, so it adds no detail. model.options.decoder_channels
    names the other four.
    """

    def __init__(
        self,
        settings: Model,
        classes: int,
        weights: str | None = None,
        *,
        image_size: int | None = None,
    ):
        from segmentation_models_pytorch.base import SegmentationHead

        channels = list(settings.options.get("decoder_channels", (256, 128, 64, 32)))
        if len(channels) != 4:
            raise ValueError(
                "unet_half has four decoder steps, model.options.decoder_channels names "
                f"{len(channels)}"
            )
        options = settings.options | {"decoder_channels": [*channels, 16]}
        settings = settings.model_copy(update={"arch": "unet", "options": options})
        super().__init__(settings, classes, weights, image_size=image_size)
        self.net.decoder.blocks = self.net.decoder.blocks[:-1]
        self.net.segmentation_head = SegmentationHead(channels[-1], 1, kernel_size=3, upsampling=2)


MODELS = {
    **dict.fromkeys(SMP, SmpNetwork),
    "unet_half": HalfUnet,
    **MONAI,
    **FITTED,
}


def takes_encoder(settings: Model) -> bool:
    return getattr(MODELS[settings.arch], "takes_encoder", False)


def title(settings: Model) -> str:
    """A network's name in messages: with its encoder, where model.encoder names one."""
    return f"{settings.arch} / {settings.encoder}" if takes_encoder(settings) else settings.arch


def check_names(settings: Model) -> None:
    """Raises InputError for an architecture, class head or encoder that does not exist."""
    check_known(settings.arch, MODELS, "architecture", "model.arch")
    check_known(settings.head, HEADS, "class head", "model.head")
    if not takes_encoder(settings):
        return
    import segmentation_models_pytorch as smp
    import timm

    of_smp = smp.encoders.get_encoder_names()
    name = settings.encoder
    if not (name.startswith("tu-") and timm.is_model(name.removeprefix("tu-"))):
        known = of_smp if name in of_smp else [*of_smp, *(f"tu-{m}" for m in timm.list_models())]
        check_known(name, known, "encoder", "model.encoder")
