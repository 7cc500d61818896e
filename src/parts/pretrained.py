"""Pre-trained encoder weights: from a file beside the user, or downloaded."""

from __future__ import annotations

import logging
import pickle
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, FiniteFloat, ValidationError
from torch import nn

from src.core.console import InputError, listing, say, short
from src.core.disk import must_be_file
from src.core.paths import anchored
from src.core.settings import Model

Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class Statistics(BaseModel):
    """Mean and std of an encoder's input, in the JSON file beside its weights."""

    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[Above0, Above0, Above0]


def find_weights(encoder: str, setting: str, folder: str) -> Path | None:
    """The file to load: `setting` itself where it is a path, else <encoder>.pth or .safetensors in
    `folder`; None: download."""
    if setting != "imagenet":
        file = _existing(setting, Path.is_file)
        if file is None:
            raise InputError(
                "no such weights file",
                setting[:160],
                "model.encoder_weights is imagenet, none or a file",
                code="no_weights",
            )
        return file
    home = _existing(folder, Path.is_dir)
    if home is None:
        if folder == Model.model_fields["weights_dir"].default:
            return None
        raise InputError(
            "no such folder",
            f"model.weights_dir: {folder[:160]}",
            "Leave it out to download the weights",
            code="no_weights",
        )
    names = (encoder, encoder.removeprefix("tu-"))
    files = [home / f"{name}{e}" for name in names for e in (".pth", ".safetensors")]
    for file in files:
        must_be_file(file, "the encoder's weights")
    return next((file for file in files if file.is_file()), None)


def load_encoder(encoder: nn.Module, file: Path) -> tuple[list[float], list[float]]:
    """Load a checkpoint's tensors into the encoder, whatever prefix their names have; returns the
    mean and std of its input (in units of [0,1]).

    Raises InputError for a file that is not readable or matches less than half of the encoder's
    tensors.
    """
    given = _read_tensors(file)
    own = encoder.state_dict()
    by_name = {_plain(k): v for k, v in given.items() if isinstance(v, torch.Tensor)}
    matched = {
        k: by_name[_plain(k)].to(v.dtype)
        for k, v in own.items()
        if _plain(k) in by_name and by_name[_plain(k)].shape == v.shape
    }
    wanted = [k for k in own if not k.endswith("num_batches_tracked")]
    lacking = [k for k in wanted if k not in matched]
    loaded = len(wanted) - len(lacking)
    if loaded < len(wanted) / 2:
        raise InputError(
            f"only {loaded} of the encoder's {len(wanted)} tensors are in this file",
            file,
            "It was made for another encoder: set model.encoder to that, or "
            "model.encoder_weights to none",
            code="weights_of_another",
        )
    if bad := next((k for k, v in matched.items() if not torch.isfinite(v).all()), None):
        raise _broken(f"its tensor {bad} is not finite", file, "Use another file")
    encoder.load_state_dict(own | matched)
    text = f"  encoder: loaded {loaded} of {len(wanted)} tensors from {short(file)}"
    text += f", left {len(given) - len(matched)} of the file's aside"
    say(text + (f"; not in the file: {listing(lacking, 4)}" if lacking else ""))
    return _statistics(file.with_suffix(".json"))


def _read_tensors(file: Path) -> dict[str, Any]:
    """What a file of weights has names for; raises InputError."""
    again = "Download or copy it again"
    if not file.stat().st_size:
        raise _broken("this file of weights is empty", file, again)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            given = load_file(file)
        else:
            given = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and safetensors each raise their own
        # torch's own words on a pickle are left out: they say how to load it all the same
        pickled = isinstance(error, pickle.UnpicklingError)
        if pickled and "global" in str(error).lower():
            raise InputError(
                "this file holds more than tensors, which may be code: it is not loaded",
                file,
                "Use one of tensors alone: .safetensors, or a state_dict() that torch.save wrote",
                code="weights_with_code",
            ) from None
        why = "" if pickled else str(error).strip()
        why = (why or type(error).__name__).splitlines()[0]
        raise _broken(f"not readable as weights: {why}", file, again) from None
    if not isinstance(given, dict):
        what = f"not a table of named tensors but a {type(given).__name__}"
        raise _broken(what, file, "Save the encoder's state_dict()")
    for wrapper in ("state_dict", "model"):
        if isinstance(given.get(wrapper), dict):
            given = given[wrapper]
    return {k: v for k, v in given.items() if isinstance(k, str)}


def _broken(what: str, file: Path, todo: str) -> InputError:
    return InputError(what, file, todo, code="weights_unreadable")


def download_failed(encoder: str, folder: str, error: Exception) -> InputError:
    reason = textwrap.shorten(str(error), 160, placeholder=" …") or type(error).__name__
    stem = encoder.removeprefix("tu-")
    return InputError(
        f"the ImageNet weights of {encoder} could not be downloaded: {reason}",
        "model.encoder_weights: imagenet",
        f"Ways out: connect to the network; put {stem}.pth or {stem}.safetensors "
        f"into {folder}/ (or --set model.weights_dir=DIR); "
        "--set model.encoder_weights=FILE; or start from random weights with --set "
        "model.encoder_weights=none",
        code="no_download",
    )


def downloaded_statistics(encoder: str) -> tuple[list[float], list[float]]:
    """Mean and std of a downloaded encoder's input."""
    import segmentation_models_pytorch as smp

    if encoder.startswith("tu-"):
        import timm

        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        return (list(config.mean), list(config.std)) if config else IMAGENET
    found = smp.encoders.get_preprocessing_params(encoder, pretrained="imagenet")
    return list(found["mean"]), list(found["std"])


def quiet_hub() -> None:
    """The hub library's own retries fill a screen; ours is one line."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("timm").setLevel(logging.ERROR)


def _statistics(file: Path) -> tuple[list[float], list[float]]:
    if not file.is_file():
        return IMAGENET
    try:
        found = Statistics.model_validate_json(file.read_bytes())
        return list(found.mean), list(found.std)
    except (ValidationError, RecursionError):
        raise InputError(
            "it needs mean and std, three numbers each, those of std above 0",
            file,
            'For example {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}',
            code="bad_statistics",
        ) from None


def _existing(text: str, kind: Callable[[Path], bool]) -> Path | None:
    try:
        path = anchored(text)
        return path if kind(path) else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _plain(key: str) -> str:
    """A tensor's name without what differs between libraries: wrappers in front, and timm's
    flattening of stages.0 to stages_0."""
    for prefix in ("module.", "model.", "encoder.", "backbone."):
        key = key.removeprefix(prefix)
    return key.replace(".", "_")
