"""MONAI's networks in two dimensions, with a class head on the deepest features. To add one: a function (model.options, image size) -> Parts in
MAKERS. MONAI itself is imported when one of them is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from src.core.settings import Model
from src.parts.heads import HEADS


@dataclass
class Parts:
    """What a maker gives: `net` takes images (B,3,S,S) and returns mask logits (B,1,S,S), a list of which the last counts, or (mask, loss of its own)."""

    net: nn.Module
    features: str  # the module whose output is the deepest features, (B,channels,h,w) or tokens (B,h·w,channels) of a square image
    channels: int
    deep: dict[str, int] = field(
        default_factory=dict
    )  # modules that get a mask of their own in training, finest first, with their channels
    multiple: int = 1  # sides are padded to a multiple of it
    extra_weight: float = 0.0  # of the network's own loss


class MonaiNetwork(nn.Module):
    """In training mode `deep` and `extra_loss` are among the answers of a network that has them (parts/losses.py says what becomes of them)."""

    def __init__(
        self, settings: Model, classes: int, weights: str | None = None, *, image_size: int
    ):
        super().__init__()
        parts = MAKERS[settings.arch](settings.options, image_size)
        self.net, self.features, self.multiple, self.extra_weight = (
            parts.net,
            parts.features,
            parts.multiple,
            parts.extra_weight,
        )
        self.deep = list(parts.deep)
        self.deep_heads = nn.ModuleList(
            nn.Conv2d(channels, 1, 1) for channels in parts.deep.values()
        )
        self.classification_head = HEADS[settings.head](parts.channels, classes, settings.dropout)

    def only(self, task: str) -> None:
        """MONAI's networks are one piece: without a mask to answer for, the decoder stays."""
        if task == "mask":
            self.classification_head = None
        if task == "class":
            self.deep, self.deep_heads = [], nn.ModuleList()

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        height, width = images.shape[-2:]
        answer, seen = self.run(
            F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        )
        mask, extra = answer if isinstance(answer, tuple) else (answer, None)
        mask = mask[-1] if isinstance(mask, list) else mask
        found = {"mask": mask[..., :height, :width]}
        if self.classification_head is not None:
            features = seen[self.features]
            if features.ndim == 3:
                features = features.transpose(1, 2).unflatten(
                    2, (round(features.shape[1] ** 0.5), -1)
                )
            found["label"] = self.classification_head(features)
        if self.training and self.deep:
            found["deep"] = [head(seen[name]) for name, head in zip(self.deep, self.deep_heads)]
        if self.training and extra is not None:
            found["extra_loss"] = self.extra_weight * extra
        return found

    def run(self, images: torch.Tensor) -> tuple:
        """The network's answer, and what the named modules gave. Hooks that last for one call leave nothing behind that a copy would share."""
        seen: dict[str, torch.Tensor] = {}

        def keep(name: str, module: nn.Module, given: tuple, output: torch.Tensor) -> None:
            seen[name] = output

        hooks = [
            self.net.get_submodule(name).register_forward_hook(partial(keep, name))
            for name in {self.features, *self.deep}
        ]
        try:
            return self.net(images), seen
        finally:
            for hook in hooks:
                hook.remove()


LEVELS = {
    "spatial_dims": 2,
    "channels": (16, 32, 64, 128, 256),
    "strides": (2, 2, 2, 2),
    "dropout": 0.1,
}


def unet(options: dict, size: int) -> Parts:
    """The plain U-Net of MONAI's tutorials."""
    from monai.networks.nets import UNet

    options = LEVELS | {"act": "ELU"} | options
    return Parts(
        UNet(in_channels=3, out_channels=1, **options),
        "model" + ".1.submodule" * (len(options["channels"]) - 1),
        options["channels"][-1],
    )


def attention_unet(options: dict, size: int) -> Parts:
    """Oktay et al., Attention U-Net, 2018."""
    from monai.networks.nets import AttentionUnet

    options = LEVELS | options
    return Parts(
        AttentionUnet(in_channels=3, out_channels=1, **options),
        "model.1" + ".submodule.1" * (len(options["channels"]) - 2) + ".submodule",
        options["channels"][-1],
    )


def basic_unetplusplus(options: dict, size: int) -> Parts:
    """Zhou et al., UNet++, 2018."""
    from monai.networks.nets import BasicUNetPlusPlus

    options = {"features": (32, 32, 64, 128, 256, 32)} | options
    return Parts(BasicUNetPlusPlus(2, 3, 1, **options), "conv_4_0", options["features"][4])


def dynunet(options: dict, size: int) -> Parts:
    """nnU-Net's network (Isensee et al., 2021): halved while at least 4×4 positions are left, twice the channels each time up to 512; masks at all
    resolutions but the lowest two, with the deepest features counted."""
    from monai.networks.nets import DynUNet

    strides = [1]
    while size % 2 ** len(strides) == 0 and size >> len(strides) >= 4:
        strides.append(2)
    options = {"strides": strides, "deep_supervision": True} | options
    strides, supervised = options["strides"], options.pop("deep_supervision")
    multiple = int(torch.tensor(strides).prod())
    if size % multiple:
        raise ValueError(
            f"its strides halve down to 1/{multiple}, and image_size {size} is no multiple of {multiple}"
        )
    net = DynUNet(
        2,
        3,
        1,
        **{"kernel_size": [3] * len(strides), "upsample_kernel_size": strides[1:]} | options,
    )
    for twice in ("input_block", "downsamples", "bottleneck", "upsamples"):
        delattr(
            net, twice
        )  # they are in skip_layers too: the average of the weights would move what has two names twice
    levels = [
        "skip_layers" + ".next_layer" * n for n in range(len(strides))
    ]  # from full resolution to the bottleneck
    deep = dict(list(zip(levels, net.filters))[1:-2]) if supervised else {}
    return Parts(net, levels[-1], net.filters[-1], deep, multiple)


class WithMean(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images, images.mean(1, keepdim=True)], 1)


def vnet(options: dict, size: int) -> Parts:
    """Milletari et al., V-Net, 2016. Its first layer repeats the input to 16 channels, which three do not divide: their mean is the fourth."""
    from monai.networks.nets import VNet

    net = VNet(2, 4, 1, **options)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(
                child, nn.Dropout3d
            ):  # which takes a batch of two-dimensional features for one volume, and drops whole images
                setattr(module, name, nn.Dropout2d(child.p))
    return Parts(nn.Sequential(WithMean(), net), "1.down_tr256", 256)


def highresnet(options: dict, size: int) -> Parts:
    """Li et al., On the Compactness, Efficiency, and Representation of 3D Convolutional Networks, 2017: dilated, at full resolution throughout."""
    from monai.networks.nets import HighResNet

    net = HighResNet(2, 3, 1, **options)
    channels = net.blocks[-1].conv.in_channels
    net.blocks[-1] = nn.Conv2d(
        channels, 1, 1
    )  # MONAI ends with a ReLU: no logit below 0, no probability below one half
    return Parts(net, f"blocks.{len(net.blocks) - 2}", channels)


def segresnet_vae(options: dict, size: int) -> Parts:
    """Myronenko, 3D MRI brain tumor segmentation using autoencoder regularization, 2018; option vae_weight, 0.1 as there (eq. 1)."""
    from monai.networks.nets import SegResNetVAE

    options = {"init_filters": 16, "vae_weight": 0.1} | options
    weight = options.pop("vae_weight")
    net = SegResNetVAE([size, size], spatial_dims=2, in_channels=3, out_channels=1, **options)
    net.vae_down.append(
        nn.Flatten()
    )  # MONAI takes a view of what follows, which channels_last has not
    return Parts(
        net,
        f"down_layers.{len(net.blocks_down) - 1}",
        net.init_filters * 2 ** (len(net.blocks_down) - 1),
        extra_weight=weight,
    )


def swin_unetr(options: dict, size: int) -> Parts:
    """Hatamizadeh et al., Swin UNETR, 2022."""
    from monai.networks.nets import SwinUNETR

    options = {"feature_size": 24} | options
    return Parts(
        SwinUNETR(in_channels=3, out_channels=1, spatial_dims=2, **options),
        "encoder10",
        16 * options["feature_size"],
    )


def unetr(options: dict, size: int) -> Parts:
    """Hatamizadeh et al., UNETR, 2022: made for one image size."""
    from monai.networks.nets import UNETR

    options = {"hidden_size": 768} | options
    return Parts(UNETR(3, 1, size, spatial_dims=2, **options), "vit.norm", options["hidden_size"])


MAKERS = {
    "monai_unet": unet,
    "attention_unet": attention_unet,
    "basic_unetplusplus": basic_unetplusplus,
    "dynunet": dynunet,
    "vnet": vnet,
    "highresnet": highresnet,
    "segresnet_vae": segresnet_vae,
    "swin_unetr": swin_unetr,
    "unetr": unetr,
}
MONAI = dict.fromkeys(MAKERS, MonaiNetwork)
