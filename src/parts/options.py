"""model.options against what the architecture takes.

smp's networks swallow a word that they do not know: a misspelt option would be no option, and
nobody would be told.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch

from src.core.console import InputError, nearest
from src.core.device import out_of_memory
from src.core.settings import Model

REFUSALS = (
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    NotImplementedError,
    AssertionError,
    RuntimeError,
    AttributeError,
    ArithmeticError,
)  # what smp, timm and MONAI say no with
REFUSED = re.compile(
    r"(?:unexpected keyword argument|multiple values for (?:keyword )?argument) '(\w+)'"
)
OURS = {
    "self",
    "kwargs",
    "encoder_name",
    "encoder_weights",
    "in_channels",
    "classes",
    "aux_params",
    "activation",
}
MOST_PARAMETERS = 2**31  # 8 GiB of weights


def reason(error: Exception) -> str:
    if out_of_memory(error):
        raise error
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def check(settings: Model, build: Callable[[], Any]) -> None:
    """Raises InputError for an option that the architecture has not, with the nearest.

    `build` makes the network: asked where an option may be the encoder's, or where the
    architecture says itself what it does not know.
    """
    known = of_smp(settings.arch)
    strange = [name for name in settings.options if name not in known]
    if known and not strange:
        return
    if known and not settings.encoder.startswith("tu-"):
        raise unknown(settings, strange[0], known)
    if nothing := next(
        (name for name in strange if settings.options[name] is None and known), None
    ):
        raise unknown(settings, nothing, known)  # timm leaves out what is None
    for device in (
        "meta",
        "cpu",
    ):  # some cannot be made on meta, where nothing takes time or memory
        try:
            with torch.device(device):
                build()
            return
        except REFUSALS as error:
            named = REFUSED.search(reason(error))
            if named and named[1] in settings.options:
                there = known | of_timm(settings.encoder) if known else of_monai(str(error))
                raise unknown(settings, named[1], there) from error


def unknown(settings: Model, name: str, known: set[str]) -> InputError:
    todo = nearest(name, known) if known else "Leave it out"
    return InputError(
        f"{settings.arch} has no option '{name[:60]}'", "model.options", todo, code="unknown_option"
    )


def of_smp(arch: str) -> set[str]:
    """The options of an smp architecture; none of another."""
    import segmentation_models_pytorch as smp

    entry = smp.MODEL_ARCHITECTURES_MAPPING.get("unet" if arch == "unet_half" else arch)
    return set(inspect.signature(entry.__init__).parameters) - OURS if entry else set()


def of_timm(encoder: str) -> set[str]:
    """What the class of a timm encoder takes."""
    import timm

    with torch.device("meta"):
        entry = type(timm.create_model(encoder.removeprefix("tu-")))
    return set(inspect.signature(entry.__init__).parameters) - OURS - {"in_chans", "num_classes"}


def of_monai(message: str) -> set[str]:
    """The options of the network that Python names in 'UNet.__init__() got an unexpected …'."""
    from monai.networks import nets

    entry = getattr(nets, message.partition(".")[0], None)
    return (
        set(inspect.signature(entry.__init__).parameters) - OURS - {"spatial_dims"}
        if entry
        else set()
    )


def check_size(settings: Model, build: Callable[[], Any]) -> None:
    """Raises InputError for options that make a network that no memory holds, without making it."""
    if not settings.options:
        return
    try:
        with torch.device("meta"):
            count = sum(p.numel() for p in build().parameters())
    except Exception:  # what cannot be made so is made in earnest next, and complains there
        return
    if count > MOST_PARAMETERS:
        raise InputError(
            f"a network of {count / 1e9:.1f} thousand million parameters",
            "model.options",
            "Use fewer channels",
            code="network_too_large",
        )
