"""MONAI's networks in two dimensions, with a class head on the deepest features. To add one: a
function (model.options, image size) -> Anatomy in MAKERS. MONAI itself is imported when one of them
is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.core.settings import Model
from src.parts.heads import HEADS


@dataclass
class Anatomy:
    """A network of MONAI, and the names of the modules in it whose output is needed.

    net takes images (B,3,S,S) and returns mask logits (B,1,S,S), a list of which the last counts,
    or (mask, a loss of its own).
    """

    net: nn.Module
    # the module of the deepest features, (B,channels,h,w) or tokens (B,h·w,channels) of a square
    features: str
    channels: int
    # modules that get a mask of their own in training, finest first, with their channels
    deep: dict[str, int] = field(default_factory=dict)
    multiple: int = 1  # sides are padded to a multiple of it
    extra_weight: float = 0.0  # of the network's own loss


class MonaiNetwork(nn.Module):
    """In training mode `deep` and `extra_loss` are among the answers of a network that has them
    (parts/losses.py)."""

    def __init__(
        self, settings: Model, classes: int, weights: str | None = None, *, image_size: int
    ):
        super().__init__()
        self.anatomy = MAKERS[settings.arch](settings.options, image_size)
        self.net = self.anatomy.net
        self.deep = dict(self.anatomy.deep)
        self.deep_heads = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in self.deep.values())
        self.classification_head = HEADS[settings.head](
            self.anatomy.channels, classes, settings.dropout
        )

    def only(self, task: str) -> None:
        """MONAI's networks are in one piece: without a mask in the task, the decoder is kept."""
        if task == "mask":
            self.classification_head = None
        if task == "class":
            self.deep, self.deep_heads = {}, nn.ModuleList()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[-2:]
        multiple = self.anatomy.multiple
        answer, outputs = self.run(F.pad(images, (0, -width % multiple, 0, -height % multiple)))
        mask, extra = answer if isinstance(answer, tuple) else (answer, None)
        mask = mask[-1] if isinstance(mask, list) else mask
        answers = {"mask": mask[..., :height, :width]}
        if self.classification_head is not None:
            features = outputs[self.anatomy.features]
            if features.ndim == 3:
                side = round(features.shape[1] ** 0.5)
                features = features.transpose(1, 2).unflatten(2, (side, -1))
            answers["label"] = self.classification_head(features)
        if self.training and self.deep:
            deep = zip(self.deep_heads, self.deep)
            answers["deep"] = [head(outputs[name]) for head, name in deep]
        if self.training and extra is not None:
            answers["extra_loss"] = self.anatomy.extra_weight * extra
        return answers

    def run(self, images: Tensor) -> tuple:
        """The network's answer, and the outputs of the named modules. Hooks that last for one call
        leave nothing behind that a copy would share."""
        outputs: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, given: tuple, output: Tensor) -> None:
            outputs[name] = output

        hooks = [
            self.net.get_submodule(name).register_forward_hook(partial(keep, name))
            for name in {self.anatomy.features, *self.deep}
        ]
        try:
            return self.net(images), outputs
        finally:
            for hook in hooks:
                hook.remove()


LEVELS = {
    "spatial_dims": 2,
    "channels": (16, 32, 64, 128, 256),
    "strides": (2, 2, 2, 2),
    "dropout": 0.1,
}


def unet(options: dict, size: int) -> Anatomy:
    """The plain U-Net of MONAI's tutorials."""
    from monai.networks.nets import UNet

    options = LEVELS | {"act": "ELU"} | options
    net = UNet(in_channels=3, out_channels=1, **options)
    deepest = "model" + ".1.submodule" * (len(options["channels"]) - 1)
    return Anatomy(net, deepest, options["channels"][-1])


def attention_unet(options: dict, size: int) -> Anatomy:
    """Oktay et al., Attention U-Net, 2018."""
    from monai.networks.nets import AttentionUnet

    options = LEVELS | options
    net = AttentionUnet(in_channels=3, out_channels=1, **options)
    deepest = "model.1" + ".submodule.1" * (len(options["channels"]) - 2) + ".submodule"
    return Anatomy(net, deepest, options["channels"][-1])


def basic_unetplusplus(options: dict, size: int) -> Anatomy:
    """Zhou et al., UNet++, 2018."""
    from monai.networks.nets import BasicUNetPlusPlus

    options = {"features": (32, 32, 64, 128, 256, 32)} | options
    return Anatomy(BasicUNetPlusPlus(2, 3, 1, **options), "conv_4_0", options["features"][4])


def dynunet(options: dict, size: int) -> Anatomy:
    """nnU-Net's network (Isensee et al., 2021): halved while at least 4×4 positions are left, twice
    the channels each time up to 512; masks at all resolutions but the lowest two, with the deepest
    features counted."""
    from monai.networks.nets import DynUNet

    strides = [1]
    while size % 2 ** len(strides) == 0 and size >> len(strides) >= 4:
        strides.append(2)
    options = {"strides": strides, "deep_supervision": True} | options
    strides, supervised = options["strides"], options.pop("deep_supervision")
    multiple = int(torch.tensor(strides).prod())
    if size % multiple:
        raise ValueError(
            f"its strides halve down to 1/{multiple}, and image_size {size} is not a multiple of "
            f"{multiple}"
        )
    kernels = {"kernel_size": [3] * len(strides), "upsample_kernel_size": strides[1:]}
    net = DynUNet(2, 3, 1, **kernels | options)
    for twice in ("input_block", "downsamples", "bottleneck", "upsamples"):
        # they are in skip_layers, too: weight averaging would move what has two names twice
        delattr(net, twice)
    # from full resolution to the bottleneck
    levels = ["skip_layers" + ".next_layer" * n for n in range(len(strides))]
    deep = dict(list(zip(levels, net.filters))[1:-2]) if supervised else {}
    return Anatomy(net, levels[-1], net.filters[-1], deep, multiple)


class WithMean(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images, images.mean(1, keepdim=True)], 1)


def vnet(options: dict, size: int) -> Anatomy:
    """Milletari et al., V-Net, 2016. Its first layer repeats the input to 16 channels, which three
    do not divide: their mean is the fourth."""
    from monai.networks.nets import VNet

    net = VNet(2, 4, 1, **options)
    for module in list(net.modules()):
        for name, child in module.named_children():
            # Dropout3d takes a batch of 2-D features for one volume, and drops whole images
            if isinstance(child, nn.Dropout3d):
                setattr(module, name, nn.Dropout2d(child.p))
    return Anatomy(nn.Sequential(WithMean(), net), "1.down_tr256", 256)


def highresnet(options: dict, size: int) -> Anatomy:
    """Li et al., On the Compactness, Efficiency, and Representation of 3D Convolutional Networks,
    2017: dilated, at full resolution throughout."""
    from monai.networks.nets import HighResNet

    net = HighResNet(2, 3, 1, **options)
    channels = net.blocks[-1].conv.in_channels
    # MONAI ends with a ReLU: no logit below 0, no probability below one half
    net.blocks[-1] = nn.Conv2d(channels, 1, 1)
    return Anatomy(net, f"blocks.{len(net.blocks) - 2}", channels)


def segresnet_vae(options: dict, size: int) -> Anatomy:
    """Myronenko, 3D MRI brain tumor segmentation using autoencoder regularization, 2018; option
    vae_weight, 0.1 as there (eq. 1)."""
    from monai.networks.nets import SegResNetVAE

    options = {"init_filters": 16, "vae_weight": 0.1} | options
    weight = options.pop("vae_weight")
    net = SegResNetVAE([size, size], spatial_dims=2, in_channels=3, out_channels=1, **options)
    # MONAI takes a view of what follows, which channels_last does not allow
    net.vae_down.append(nn.Flatten())
    deepest = len(net.blocks_down) - 1
    channels = net.init_filters * 2**deepest
    return Anatomy(net, f"down_layers.{deepest}", channels, extra_weight=weight)


def swin_unetr(options: dict, size: int) -> Anatomy:
    """Hatamizadeh et al., Swin UNETR, 2022."""
    from monai.networks.nets import SwinUNETR

    options = {"feature_size": 24} | options
    net = SwinUNETR(in_channels=3, out_channels=1, spatial_dims=2, **options)
    return Anatomy(net, "encoder10", 16 * options["feature_size"])


def unetr(options: dict, size: int) -> Anatomy:
    """Hatamizadeh et al., UNETR, 2022: made for one image size."""
    from monai.networks.nets import UNETR

    options = {"hidden_size": 768} | options
    return Anatomy(UNETR(3, 1, size, spatial_dims=2, **options), "vit.norm", options["hidden_size"])


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
