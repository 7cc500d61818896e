"""Pre-trained encoder weights: from a file beside the user, or downloaded."""

from __future__ import annotations

import json
import logging
import math
import pickle
import textwrap
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from src.core.console import InputError, say, short
from src.core.disk import must_be_file
from src.core.paths import anchored
from src.core.settings import Model

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def find_weights(encoder: str, setting: str, folder: str) -> Path | None:
    """The file to load: `setting` itself where it is a path, else <encoder>.pth or .safetensors in `folder`; None = download."""
    if setting != "imagenet":
        file = _found(setting, Path.is_file)
        if file is None:
            raise InputError(
                "no such weights file",
                setting[:160],
                "model.encoder_weights is imagenet, none or a file",
                code="no_weights",
            )
        return file
    home = _found(folder, Path.is_dir)
    if home is None and folder == Model.model_fields["weights_dir"].default:
        return None
    if home is None:
        raise InputError(
            "no such folder",
            f"model.weights_dir: {folder[:160]}",
            "Leave it out to download the weights",
            code="no_weights",
        )
    stem = encoder.removeprefix("tu-")
    files = [home / f"{name}{e}" for name in (encoder, stem) for e in (".pth", ".safetensors")]
    for file in files:
        must_be_file(file, "the encoder's weights")
    return next((file for file in files if file.is_file()), None)


def load_encoder(encoder: nn.Module, file: Path) -> tuple[list[float], list[float]]:
    """Load a checkpoint's tensors into the encoder, whatever prefix they carry; returns the mean and std its input wants (in units of [0,1]).

    Raises InputError for a file that is not readable or matches less than half of the encoder's tensors.
    """
    if not file.stat().st_size:
        raise InputError(
            "this file of weights is empty",
            short(file),
            "Bring it again",
            code="weights_unreadable",
        )
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            given = load_file(file)
        else:
            given = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and safetensors each raise their own
        raise _unreadable(error, file) from None
    if not isinstance(given, dict):
        raise InputError(
            f"not a table of named tensors but a {type(given).__name__}",
            short(file),
            "Save the encoder's state_dict()",
            code="weights_unreadable",
        )
    for wrapper in ("state_dict", "model"):
        if isinstance(given.get(wrapper), dict):
            given = given[wrapper]
    own = encoder.state_dict()
    given = {k: v for k, v in given.items() if isinstance(k, str)}
    by_name = {_plain(k): v for k, v in given.items() if isinstance(v, torch.Tensor)}
    matched = {
        k: by_name[_plain(k)].to(v.dtype)
        for k, v in own.items()
        if _plain(k) in by_name and by_name[_plain(k)].shape == v.shape
    }
    wanted = [k for k in own if not k.endswith("num_batches_tracked")]
    hits = sum(k in matched for k in wanted)
    if hits < len(wanted) / 2:
        what = f"only {hits} of the encoder's {len(wanted)} tensors are in this file"
        raise InputError(
            what,
            short(file),
            "It was made for another encoder: set model.encoder to that, or "
            "model.encoder_weights to none",
            code="weights_of_another",
        )
    if spoilt := next((k for k, v in matched.items() if not torch.isfinite(v).all()), None):
        raise InputError(
            f"its tensor {spoilt} is not finite",
            short(file),
            "Bring another file",
            code="weights_unreadable",
        )
    encoder.load_state_dict(own | matched)
    left = len(given) - len(matched)
    lacking = [k for k in wanted if k not in matched]
    say(
        f"  encoder: loaded {hits} of {len(wanted)} tensors from {short(file)}, left {left} of the file's aside"
        + (
            f"; not in the file: {', '.join(lacking[:4])}{' …' if len(lacking) > 4 else ''}"
            if lacking
            else ""
        )
    )
    return _statistics(file.with_suffix(".json"))


def _unreadable(error: Exception, file: Path) -> InputError:
    """Torch's own words on a pickle are left out: they say how to load it all the same."""
    pickled = isinstance(error, pickle.UnpicklingError)
    if pickled and "global" in str(error).lower():
        return InputError(
            "this file holds more than tensors, which may be code: it is not loaded",
            short(file),
            "Bring one of tensors alone: .safetensors, or a state_dict() that torch.save wrote",
            code="weights_with_code",
        )
    why = type(error).__name__ if pickled else str(error).strip() or type(error).__name__
    return InputError(
        f"not readable as weights: {why.splitlines()[0]}",
        short(file),
        "Bring it again",
        code="weights_unreadable",
    )


def download_failed(encoder: str, folder: str, error: Exception) -> InputError:
    reason = (
        textwrap.shorten(str(error), 160, placeholder=" …")
        if str(error).strip()
        else type(error).__name__
    )
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
        found = json.loads(file.read_text(encoding="utf-8"))
        mean, std = ([float(v) for v in found[name]] for name in ("mean", "std"))
        listed = isinstance(found["mean"], list) and isinstance(found["std"], list)
        three = listed and len(mean) == len(std) == 3
        if three and all(map(math.isfinite, mean + std)) and min(std) > 0:
            return mean, std
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        pass
    raise InputError(
        "it needs mean and std, three numbers each, those of std above 0",
        short(file),
        'For example {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}',
        code="bad_statistics",
    )


def _found(text: str, kind: Callable[[Path], bool]) -> Path | None:
    try:
        path = anchored(text)
        return path if kind(path) else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _plain(key: str) -> str:
    """A tensor's name without what differs between libraries: wrappers in front, and timm's flattening of stages.0 to stages_0."""
    for prefix in ("module.", "model.", "encoder.", "backbone."):
        key = key.removeprefix(prefix)
    return key.replace(".", "_")
