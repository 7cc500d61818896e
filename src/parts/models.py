"""Networks. To add one: a function (Model settings, number of classes, weights) -> nn.Module in MODELS; its forward takes normalised images
(B,3,H,W) float and returns {"mask": (B,1,H,W) logits, "label": (B,C) logits}.

What else an entry may have: a parameter `image_size` (gets experiment.image_size); the attribute `takes_encoder` (then the name in model.encoder is
checked). What its module may have: `encoder`, which gets the encoder's learning rate and pre-trained weights, and which train.freeze speaks of; and
`only(task)`, which leaves out what is not asked for. What else a forward may return is in parts/losses.py."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import islice

import torch
from torch import nn

from src.core.console import InputError, nearest, say
from src.core.device import out_of_memory
from src.core.pretrained import (
    IMAGENET,
    download_failed,
    downloaded_statistics,
    find_weights,
    load_encoder,
    quiet_hub,
)
from src.core.settings import Experiment, Model, Train
from src.parts import options as network_options
from src.parts.fitted import FITTED
from src.parts.heads import HEADS
from src.parts.monai_networks import MONAI
from src.parts.options import REFUSALS, reason
from src.parts.transfer import encoder_stages

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


class Nothing(nn.Module):
    def forward(self, *features) -> None:
        """Stands where a decoder was."""


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

        options = (sized(settings.encoder, image_size) if image_size else {}) | settings.options
        self.net = smp.create_model(
            settings.arch,
            settings.encoder,
            encoder_weights=weights,
            in_channels=3,
            classes=1,
            **options,
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
            self.net.decoder, self.net.segmentation_head = Nothing(), nn.Identity()

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        answer = self.net(images)
        mask, label = answer if isinstance(answer, tuple) else (answer, None)
        return {k: v for k, v in (("mask", mask), ("label", label)) if v is not None}


def sized(encoder: str, image_size: int) -> dict:
    """The option that a timm encoder made for one image size wants for another; dynamic_img_size where it is known, since it leaves all weights
    their shape."""
    import timm

    config = (
        timm.get_pretrained_cfg(encoder.removeprefix("tu-")) if encoder.startswith("tu-") else None
    )
    if not config or not config.fixed_input_size:
        return {}
    with torch.device("meta"):  # only to see what its class takes
        takes = inspect.signature(
            type(timm.create_model(encoder.removeprefix("tu-"))).__init__
        ).parameters
    return (
        {"dynamic_img_size": True}
        if "dynamic_img_size" in takes
        else {"img_size": image_size}
        if "img_size" in takes
        else {}
    )


class HalfUnet(SmpNetwork):
    """A U-Net that decodes to half resolution and enlarges the logits twofold. The step left out has no skip connection, so it adds no detail.
    model.options.decoder_channels names its four steps."""

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
                f"unet_half has four decoder steps, model.options.decoder_channels names {len(channels)}"
            )
        options = settings.options | {"decoder_channels": [*channels, 16]}
        super().__init__(
            settings.model_copy(update={"arch": "unet", "options": options}),
            classes,
            weights,
            image_size=image_size,
        )
        self.net.decoder.blocks = self.net.decoder.blocks[:-1]
        self.net.segmentation_head = SegmentationHead(channels[-1], 1, kernel_size=3, upsampling=2)


MODELS = dict.fromkeys(SMP, SmpNetwork) | {"unet_half": HalfUnet} | MONAI | FITTED


class Network(nn.Module):
    """What train and predict see: takes grey or RGB images (B,1|3,H,W), values 0…255 of any number format, and normalises them as the encoder's
    pre-training did. Mean and std travel in the checkpoint."""

    def __init__(
        self, body: nn.Module, mean: list[float], std: list[float], experiment: Experiment
    ):
        super().__init__()
        self.body, self.task, self.image_size = body, experiment.task, experiment.image_size
        if hasattr(body, "only"):
            body.only(self.task)
        if experiment.loss.mask_weight == "uncertainty" and self.task == "both":
            self.log_variance = nn.Parameter(
                torch.zeros(2)
            )  # of the mask's and the label's loss, learned
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))
        self.stages: list[set[str]] | None = None  # of the encoder, when they have been asked for
        self.frozen: set[str] = set()  # names of the encoder's parameters

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        images = (
            images.float() - self.mean
        ) / self.std  # grey spreads to three channels here, on the device
        output = self.body(images.contiguous(memory_format=torch.channels_last))
        unasked = {"both": (), "mask": ("label",), "class": ("mask", "deep")}[self.task]
        output = {k: v for k, v in output.items() if k not in unasked}
        return (
            output | {"log_variance": self.log_variance}
            if self.training and hasattr(self, "log_variance")
            else output
        )

    def freeze(self, settings: Train, epoch: int) -> None:
        """What this epoch leaves as it is (train.freeze, train.unfreeze_at): weights, and running statistics of norm layers; to be called in
        training mode. Raises InputError where there is no such part."""
        if settings.freeze == "none":
            return
        wanted = (
            self.freezable(settings.freeze)
            if settings.unfreeze_at is None or epoch < settings.unfreeze_at
            else set()
        )
        for name, p in self.body.encoder.named_parameters():
            if name in wanted and p.requires_grad:
                p.requires_grad_(False)
                self.frozen.add(name)
            elif name in self.frozen - wanted:  # what never was trainable stays so
                p.requires_grad_(True)
                self.frozen.remove(name)
        for name, module in self.body.encoder.named_modules():
            own = {f"{name}.{p}".lstrip(".") for p, _ in module.named_parameters(recurse=False)}
            if (
                hasattr(module, "running_mean")
                and own <= wanted
                and (own or wanted and settings.freeze == "encoder")
            ):
                module.eval()

    def freezable(self, which: str | int) -> set[str]:
        """Names of the encoder's parameters that train.freeze means."""
        encoder = getattr(self.body, "encoder", None)
        if encoder is None:
            raise InputError(
                "this network has no encoder",
                f"train.freeze: {which}",
                "Set train.freeze=none",
                code="invalid_value",
            )
        if which == "encoder":
            return {name for name, _ in encoder.named_parameters()}
        self.stages = self.stages or encoder_stages(encoder, self.image_size)
        if which > len(self.stages):
            raise InputError(
                f"the encoder has {len(self.stages)} stages",
                f"train.freeze: {which}",
                f"Use 1 to {len(self.stages)}, or encoder for all of it",
                code="invalid_value",
            )
        return set().union(*self.stages[:which])

    def parameter_groups(self, lr: float, encoder_lr: float, weight_decay: float) -> list[dict]:
        """Encoder and the rest, each with and without weight decay (norms and biases go without)."""
        encoder = {id(p) for p in getattr(self.body, "encoder", nn.Module()).parameters()}
        groups: dict[tuple[bool, bool], list] = {}
        for p in self.parameters():
            if p.requires_grad:
                groups.setdefault((id(p) in encoder, p.ndim > 1), []).append(p)
        return [
            {
                "params": ps,
                "base_lr": encoder_lr if inside else lr,
                "lr": 0.0,
                "weight_decay": weight_decay if decay else 0.0,
            }
            for (inside, decay), ps in groups.items()
        ]


# ------------------------------------------------------------------------------------------------------------------------ building


def title(settings: Model) -> str:
    """How a network is named to people: with its encoder, where it is one that model.encoder names."""
    return (
        f"{settings.arch} / {settings.encoder}"
        if getattr(MODELS[settings.arch], "takes_encoder", False)
        else settings.arch
    )


def make(experiment: Experiment, classes: int, weights: str | None = None) -> nn.Module:
    entry = MODELS[experiment.model.arch]
    size = (
        {"image_size": experiment.image_size}
        if "image_size" in inspect.signature(entry).parameters
        else {}
    )
    return entry(experiment.model, classes, weights, **size)


def try_out(net: Network, classes: int) -> None:
    """One blank image. Raises what the network raises for a size that it cannot take, and InputError for answers that are not what was agreed."""
    with torch.no_grad():
        output = net.eval()(torch.zeros(1, 1, net.image_size, net.image_size, dtype=torch.uint8))
    net.train()
    for name, shape in (("mask", (1, 1, net.image_size, net.image_size)), ("label", (1, classes))):
        if net.task in ("both", {"mask": "mask", "label": "class"}[name]) and (
            name not in output or output[name].shape != shape
        ):
            given = (
                f"of shape {tuple(output[name].shape)} instead of {shape}"
                if name in output
                else f"not there, the network gives {', '.join(output) or 'nothing'}"
            )
            raise InputError(
                f"the answer '{name}' is {given}",
                f"task: {net.task}",
                "Change the network, or the task to mask or class",
                code="wrong_answer",
            )


def try_views(
    net: Network, views: dict[str, Callable[[torch.Tensor], torch.Tensor]], settings: Model
) -> None:
    """One blank image in each view that predict will use: better told now than after the training. Raises InputError."""
    device = net.mean.device
    for name, view in views.items():
        try:
            with torch.no_grad():
                net.eval()(
                    view(
                        torch.zeros(
                            1, 1, net.image_size, net.image_size, dtype=torch.uint8, device=device
                        )
                    )
                )
        except REFUSALS as error:
            raise InputError(
                f"{title(settings)} cannot take the view {name}: {reason(error)}",
                "predict.tta",
                "Leave it out",
                code="bad_network",
            ) from error
    net.train()


def sizes_that_work(experiment: Experiment, classes: int) -> list[int]:
    """The two image sizes next to experiment.image_size that its network takes, as far as they can be found."""

    def works(size: int) -> bool:
        other = experiment.model_copy(update={"image_size": size})
        try:
            try_out(Network(make(other, classes), *IMAGENET, other), classes)
        except REFUSALS:
            return False
        return True

    near = sorted(
        {*range(32, experiment.image_size + 257, 32)} - {experiment.image_size},
        key=lambda size: abs(size - experiment.image_size),
    )
    return sorted(islice(filter(works, near[:16]), 2))


def build(experiment: Experiment, classes: int, pretrained: bool) -> Network:
    """The network of an experiment; `pretrained=False` (predict, resume) never asks for weights, and does without the trial of a new network: one blank
    image, and the parts that train.freeze names. Raises InputError for what cannot be built."""
    settings = experiment.model
    net = tried(
        experiment, classes, trial=pretrained
    )  # before a download, which a mistake in the settings would waste
    weights = (
        settings.encoder_weights
        if pretrained and settings.encoder_weights != "none" and hasattr(net.body, "encoder")
        else None
    )
    if weights is None:
        return net
    file = find_weights(settings.encoder, weights, settings.weights_dir)
    if file:
        body, (mean, std) = net.body, load_encoder(net.body.encoder, file)
    else:
        quiet_hub()
        say(
            f"  encoder: {settings.encoder}.pth is not in {settings.weights_dir}/, downloading (without a network this takes half a minute to fail)"
        )
        try:
            body = make(experiment, classes, weights)
            mean, std = downloaded_statistics(settings.encoder)
        except (
            OSError,
            RuntimeError,
            ValueError,
            KeyError,
        ) as error:  # the hub's errors are OSErrors, safetensors', timm's and smp's are the others
            raise download_failed(settings.encoder, settings.weights_dir, error) from error
    return Network(body, mean, std, experiment)


def tried(experiment: Experiment, classes: int, trial: bool = True) -> Network:
    """The network from random weights, after the trial. Raises InputError for what cannot be built, or not at this size, or not frozen so."""
    settings, body = experiment.model, None
    if trial and settings.arch not in FITTED:
        network_options.check_size(settings, lambda: make(experiment, classes))
    try:
        body = make(experiment, classes)
        net = Network(body, *IMAGENET, experiment)
        if not trial:
            return net
        try_out(net, classes)
    except ImportError as error:
        raise InputError(
            f"{settings.arch} needs a package that is not installed: {reason(error)}",
            f"model.arch: {settings.arch}",
            "pip install -r requirements.txt",
            code="no_package",
        ) from error
    except REFUSALS as error:
        if settings.options and out_of_memory(error):
            what = "a network with these options does not fit into memory"
            raise InputError(
                what, "model.options", "Use smaller ones", code="network_too_large"
            ) from error
        if body is None:
            raise InputError(
                f"{title(settings)} cannot be built: {reason(error)}",
                "model",
                "Try another encoder or other model.options",
                code="bad_network",
            ) from error
        sizes = sizes_that_work(experiment, classes)
        raise InputError(
            f"{title(settings)} cannot take images of {experiment.image_size} "
            f"pixels: {reason(error)}",
            f"image_size: {experiment.image_size}",
            f"These would do: {', '.join(map(str, sizes))}"
            if sizes
            else "Try another encoder or other model.options",
            code="bad_image_size",
        ) from error
    if experiment.train.freeze != "none":
        net.freezable(experiment.train.freeze)
    return net


def check(experiment: Experiment) -> None:
    """Raises InputError for an architecture, head or encoder that does not exist."""
    settings = experiment.model
    for name, known, kind, key in (
        (settings.arch, MODELS, "architecture", "model.arch"),
        (settings.head, HEADS, "class head", "model.head"),
    ):
        if name not in known:
            raise InputError(
                f"unknown {kind} '{name[:60]}'", key, nearest(name[:60], known), code="unknown_part"
            )
    if getattr(MODELS[settings.arch], "takes_encoder", False):
        check_encoder(settings)
    if settings.options and settings.arch not in FITTED:
        network_options.check(settings, lambda: make(experiment, 2))


def check_encoder(settings: Model) -> None:
    import segmentation_models_pytorch as smp
    import timm

    known = smp.encoders.get_encoder_names()
    name = settings.encoder
    if name not in known and not (
        name.startswith("tu-") and timm.is_model(name.removeprefix("tu-"))
    ):
        there = [*known, *(f"tu-{m}" for m in timm.list_models())]
        raise InputError(
            f"unknown encoder '{name[:60]}'",
            "model.encoder",
            nearest(name[:60], there),
            code="unknown_part",
        )
