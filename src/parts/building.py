"""Building the network of an experiment: its options checked, tried on a blank image, and its
encoder given pre-trained weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from itertools import islice

import torch
from torch import nn

from src.core.console import InputError, nearest, say
from src.core.device import out_of_memory
from src.core.settings import Experiment, Model
from src.parts.fitted import FITTED
from src.parts.models import MODELS, check_names, title
from src.parts.network import Network
from src.parts.pretrained import (
    IMAGENET,
    download_failed,
    downloaded_statistics,
    find_weights,
    load_encoder,
    quiet_hub,
)

# what smp, timm and MONAI refuse settings with
REFUSALS = (
    TypeError,
    ValueError,
    LookupError,
    AssertionError,
    RuntimeError,
    AttributeError,
    ArithmeticError,
)
REFUSED = re.compile(
    r"(?:unexpected keyword argument|multiple values for (?:keyword )?argument) '(\w+)'"
)
# parameters of networks that model.options cannot name
OURS = {
    "self",
    "kwargs",
    "encoder_name",
    "encoder_weights",
    "in_channels",
    "classes",
    "aux_params",
    "activation",
    "in_chans",
    "num_classes",
    "spatial_dims",
}
MOST_PARAMETERS = 2**31  # 8 GiB of weights
OTHERWISE = "Try another encoder or other model.options"


def build(experiment: Experiment, classes: int, pretrained: bool) -> Network:
    """The network of an experiment.

    `pretrained=False` (predict, resume) never asks for weights, and does without the trial of a
    new network: one blank image, and the parts that train.freeze names. Raises InputError for what
    cannot be built.
    """
    settings = experiment.model
    # before a download, which a mistake in the settings would waste
    net = build_random(experiment, classes, trial=pretrained)
    wanted = pretrained and settings.encoder_weights != "none"
    if not wanted or not hasattr(net.body, "encoder"):
        return net
    file = find_weights(settings.encoder, settings.encoder_weights, settings.weights_dir)
    if file:
        return Network(net.body, *load_encoder(net.body.encoder, file), experiment)
    quiet_hub()
    say(
        f"  encoder: {settings.encoder}.pth is not in {settings.weights_dir}/, downloading "
        "(without a network this takes half a minute to fail)"
    )
    try:
        body = make(experiment, classes, settings.encoder_weights)
        return Network(body, *downloaded_statistics(settings.encoder), experiment)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        # the hub's errors are OSErrors; safetensors', timm's and smp's are the others
        raise download_failed(settings.encoder, settings.weights_dir, error) from error


def make(experiment: Experiment, classes: int, weights: str | None = None) -> nn.Module:
    """The entry of MODELS, with random weights or those that `weights` names."""
    entry = MODELS[experiment.model.arch]
    sized = "image_size" in inspect.signature(entry).parameters
    size = {"image_size": experiment.image_size} if sized else {}
    return entry(experiment.model, classes, weights, **size)


def build_random(experiment: Experiment, classes: int, trial: bool = True) -> Network:
    """The network with random weights, after the trial. Raises InputError where it cannot be built,
    does not take this image size, or cannot be frozen as train.freeze says."""
    settings, body = experiment.model, None
    if trial and settings.options and settings.arch not in FITTED:
        _check_number_of_parameters(experiment, classes)
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
        raise _refused(error, experiment, classes, was_built=body is not None) from error
    if experiment.train.freeze != "none":
        net.freezable(experiment.train.freeze)
    return net


def _refused(error: Exception, experiment: Experiment, classes: int, was_built: bool) -> InputError:
    settings = experiment.model
    if settings.options and out_of_memory(error):
        return InputError(
            "a network with these options does not fit into memory",
            "model.options",
            "Use smaller ones",
            code="network_too_large",
        )
    if not was_built:
        return InputError(
            f"{title(settings)} cannot be built: {reason(error)}",
            "model",
            OTHERWISE,
            code="bad_network",
        )
    what = f"{title(settings)} cannot take images of {experiment.image_size} pixels"
    what += f": {reason(error)}"
    sizes = ", ".join(map(str, sizes_that_work(experiment, classes)))
    return InputError(
        what,
        f"image_size: {experiment.image_size}",
        f"These would do: {sizes}" if sizes else OTHERWISE,
        code="bad_image_size",
    )


def reason(error: Exception) -> str:
    """The first line of a library's words; an error for want of memory is raised again."""
    if out_of_memory(error):
        raise error
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# ------------------------------------------------------------------------------------------ trials


def blank(net: Network) -> torch.Tensor:
    size = net.image_size
    return torch.zeros(1, 1, size, size, dtype=torch.uint8, device=net.mean.device)


def try_out(net: Network, classes: int) -> None:
    """One blank image. Raises what the network raises for a size that it cannot take, and
    InputError for answers that are missing or of another shape."""
    with torch.no_grad():
        output = net.eval()(blank(net))
    net.train()
    shapes = {"mask": (1, 1, net.image_size, net.image_size), "label": (1, classes)}
    asked = {"both": ("mask", "label"), "mask": ("mask",), "class": ("label",)}[net.task]
    for name in asked:
        if name not in output:
            problem = f"missing, the network gives {', '.join(output) or 'nothing'}"
        elif output[name].shape != shapes[name]:
            problem = f"of shape {tuple(output[name].shape)} instead of {shapes[name]}"
        else:
            continue
        raise InputError(
            f"the answer '{name}' is {problem}",
            f"task: {net.task}",
            "Change the network, or the task to mask or class",
            code="wrong_answer",
        )


def try_views(
    net: Network, views: dict[str, Callable[[torch.Tensor], torch.Tensor]], settings: Model
) -> None:
    """One blank image in each view that predict will use: an error now, not after the training."""
    for name, view in views.items():
        try:
            with torch.no_grad():
                net.eval()(view(blank(net)))
        except REFUSALS as error:
            raise InputError(
                f"{title(settings)} cannot take the view {name}: {reason(error)}",
                "predict.tta",
                "Leave it out",
                code="bad_network",
            ) from error
    net.train()


def sizes_that_work(experiment: Experiment, classes: int) -> list[int]:
    """The two image sizes next to experiment.image_size that its network takes, if any are near."""
    asked = experiment.image_size

    def works(size: int) -> bool:
        other = experiment.model_copy(update={"image_size": size})
        try:
            try_out(Network(make(other, classes), *IMAGENET, other), classes)
        except REFUSALS:
            return False
        return True

    others = {*range(32, asked + 257, 32)} - {asked}
    near = sorted(sorted(others), key=lambda size: abs(size - asked))[:16]
    return sorted(islice(filter(works, near), 2))


# ----------------------------------------------------------------------------------- model.options


def check(experiment: Experiment) -> None:
    """Raises InputError for a name or an option of `model` that does not exist."""
    check_names(experiment.model)
    check_options(experiment)


def check_options(experiment: Experiment) -> None:
    """Raises InputError for an option that the architecture does not have, with the nearest.

    smp's networks ignore a word that they do not know, and a misspelt option would do nothing. An
    option may also be the timm encoder's; MONAI says itself what it does not know.
    """
    settings = experiment.model
    if not settings.options or settings.arch in FITTED:
        return
    of_smp = _options_of_smp(settings.arch)
    strange = [name for name in settings.options if name not in of_smp]
    if of_smp:
        if not strange:
            return
        # timm leaves out what is None
        ignored = [name for name in strange if settings.options[name] is None]
        if not settings.encoder.startswith("tu-"):
            ignored = strange
        if ignored:
            raise _unknown_option(settings, ignored[0], of_smp)
    for device in (
        "meta",
        "cpu",
    ):  # on meta nothing takes time or memory; some cannot be made there
        try:
            with torch.device(device):
                make(experiment, 2)
            return
        except REFUSALS as error:
            refused = REFUSED.search(reason(error))
            if refused and refused[1] in settings.options:
                known = of_smp | _options_of_library(settings, str(error))
                raise _unknown_option(settings, refused[1], known) from error


def _unknown_option(settings: Model, name: str, known: set[str]) -> InputError:
    return InputError(
        f"{settings.arch} has no option '{name[:60]}'",
        "model.options",
        nearest(name, known) if known else "Leave it out",
        code="unknown_option",
    )


def _options_of_smp(arch: str) -> set[str]:
    """Empty for another library's architecture."""
    import segmentation_models_pytorch as smp

    entry = smp.MODEL_ARCHITECTURES_MAPPING.get("unet" if arch == "unet_half" else arch)
    return _options_of(entry)


def _options_of_library(settings: Model, message: str) -> set[str]:
    """Of a timm encoder's class, or of the MONAI network that Python names in
    'UNet.__init__() got an unexpected …'."""
    if _options_of_smp(settings.arch):
        import timm

        with torch.device("meta"):
            return _options_of(type(timm.create_model(settings.encoder.removeprefix("tu-"))))
    from monai.networks import nets

    return _options_of(getattr(nets, message.partition(".")[0], None))


def _options_of(entry: type | None) -> set[str]:
    return set(inspect.signature(entry.__init__).parameters) - OURS if entry else set()


def _check_number_of_parameters(experiment: Experiment, classes: int) -> None:
    """Raises InputError for options that make a network that no memory holds, without making it."""
    try:
        with torch.device("meta"):
            count = sum(p.numel() for p in make(experiment, classes).parameters())
    except Exception:  # what cannot be made so is made in earnest next, and fails there
        return
    if count > MOST_PARAMETERS:
        raise InputError(
            f"a network of {count / 1e9:.1f} thousand million parameters",
            "model.options",
            "Use fewer channels",
            code="network_too_large",
        )
