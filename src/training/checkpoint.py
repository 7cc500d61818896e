"""Checkpoints: last.pt holds all that a run needs to resume exactly, best.pt only weights."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from torch import nn

from src.core.console import InputError, command, short, warn
from src.core.disk import replacing
from src.training.loop import Loop

STATE = ("epoch", "step", "history", "best", "sums", "bad")
MODULES = ("net", "ema", "optimiser", "scaler")


def save_checkpoint(path: Path, loop: Loop, state: dict) -> None:
    """`state`: the values of STATE, plain Python numbers, which torch reads back safely."""
    random = {"cpu": torch.get_rng_state(), "cuda": []}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state_all()
    modules = {name: getattr(loop, name).state_dict() for name in MODULES}
    save(path, modules | {"random": random} | state)


def save_weights(path: Path, net: nn.Module, epoch: int, score: float) -> None:
    """best.pt: only what predict needs."""
    save(path, {"ema": net.state_dict(), "epoch": epoch, "score": score})


def save(path: Path, content: dict) -> None:
    """Atomically. Through an open file: torch writes the name of a path into the file, and the
    same weights would not be the same bytes."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def read(path: Path) -> dict:
    """The content of a checkpoint, on the CPU. Raises ValueError with a short reason for any other
    file, and for one with a byte changed: torch itself ignores the checksums that it writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError("its content does not match its checksums")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except pickle.UnpicklingError:  # torch's own message advises to load it unsafely
        raise ValueError("it holds more than numbers and is not loaded") from None
    except ValueError:
        raise
    except Exception as error:  # zipfile, zlib and torch each raise their own for a damaged file
        raise ValueError(f"it cannot be read in full ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise ValueError("it is not a checkpoint")
    return content


def is_intact(path: Path) -> bool:
    """Can this checkpoint be read, and do its checksums match?"""
    try:
        return bool(read(path))
    except ValueError:
        return False


def load_checkpoint(path: Path) -> dict | None:
    """The content of last.pt. None where it does not exist, is damaged (with a warning: the run
    starts over), or holds weights alone."""
    if not path.is_file():
        return None
    try:
        saved = read(path)
    except ValueError as error:
        warn(f"{short(path)} is damaged ({error}): this fold starts over")
        return None
    lacks = {*MODULES, "random", *STATE} - saved.keys()
    if lacks and "net" in saved:
        warn(f"{short(path)} lacks {', '.join(sorted(lacks))}: this fold starts over")
    return None if lacks else saved


def restore(saved: dict, loop: Loop, path: Path, fold: int) -> dict:
    """Put everything back; returns the values of STATE. Raises InputError where `saved`, from
    `path`, is of another network or holds other things."""
    try:
        for name in MODULES:
            if saved[name] or name != "scaler":
                getattr(loop, name).load_state_dict(saved[name])
        torch.set_rng_state(saved["random"]["cpu"])
        cuda = saved["random"]["cuda"]
        if cuda and torch.cuda.device_count() == len(cuda):
            torch.cuda.set_rng_state_all(cuda)
        state = {name: saved[name] for name in STATE}
        if not _is_state(state):
            raise ValueError("epoch, step or history are not valid")
    except Exception as error:  # torch raises RuntimeError, TypeError, KeyError, AttributeError, …
        raise _foreign(path, error, fold) from None
    return state


def _is_state(state: dict) -> bool:
    rows = state["history"]
    return (
        all(type(state[k]) is int and state[k] >= 0 for k in ("epoch", "step"))
        and isinstance(rows, list)
        and all(isinstance(row, dict) and "score" in row for row in rows)
        and len(rows) == state["epoch"]
        and isinstance(state["sums"], dict)
    )


def load_weights(
    path: Path, net: nn.Module, weights: str = "float32", fold: int | None = None
) -> None:
    """The weights that predict uses (predict.weights), from last.pt or best.pt. fold: to name in a
    message; None in a bundle. Raises InputError for a damaged file or one of another network."""
    try:
        content = read(path)
        if not isinstance(content.get("ema"), dict):
            raise ValueError("it holds no weights")
        net.load_state_dict(round_weights(content["ema"], net, weights))  # float32 again
    except (ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise _foreign(path, error, fold) from None


def _foreign(path: Path, error: Exception, fold: int | None) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
    todo = "Make the bundle again, and upload all of it"
    if fold is not None:
        todo = f"Train it again with {command('train', '--fold', str(fold), '--force')}"
    what = f"not usable as a checkpoint of this network: {reason}"
    return InputError(what, path, todo, code="foreign_checkpoint")


def round_weights(
    state: dict[str, torch.Tensor], net: nn.Module, weights: str
) -> dict[str, torch.Tensor]:
    """The weights of a state_dict as predict uses them, and as a bundle holds them.

    weights 'float16': every learned tensor of two or more dimensions (convolutions, linear layers)
    as float16; the rest stays as it is, and so does a tensor that float16 does not hold to a
    thousandth of its largest value.
    """
    if weights == "float32":
        return state
    rounded = dict(state)
    for name, _ in net.named_parameters(remove_duplicate=False):
        exact = state.get(name)
        if exact is None or exact.dtype != torch.float32 or exact.ndim < 2 or not exact.numel():
            continue
        half = exact.half()
        if (half.float() - exact).abs().max() <= 1e-3 * exact.abs().max():
            rounded[name] = half
    return rounded
