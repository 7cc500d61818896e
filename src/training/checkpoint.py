"""last.pt: everything that a run needs to go on exactly where it was."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from torch import nn

from src.core.console import InputError, command, short, warn
from src.core.disk import replacing

PARTS = {
    "net",
    "ema",
    "optimiser",
    "scaler",
    "random",
    "epoch",
    "step",
    "history",
    "best",
    "sums",
    "bad",
}


def save_checkpoint(
    path: Path, net: nn.Module, ema: nn.Module, optimiser, scaler, state: dict
) -> None:
    """Written whole or not at all. `state`: epoch, step, history, best, sums, bad — plain Python numbers, which torch reads back safely."""
    random = {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    save(
        path,
        {
            "net": net.state_dict(),
            "ema": ema.state_dict(),
            "optimiser": optimiser.state_dict(),
            "scaler": scaler.state_dict(),
            "random": random,
            **state,
        },
    )


def save_weights(path: Path, net: nn.Module, epoch: int, score: float) -> None:
    """best.pt: only what predict needs."""
    save(path, {"ema": net.state_dict(), "epoch": epoch, "score": score})


def save(path: Path, content: dict) -> None:
    """Through an open file: torch writes a file's own name into it where it is given a path, and
    the same weights would not be the same bytes."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def read(path: Path) -> dict:
    """What `save` wrote, on the CPU. Raises ValueError with a short reason for any other file, and
    for one with a byte changed: torch itself does not look at the checksums that it writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
        if wrong:
            raise ValueError("its content is not what its checksums say")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except pickle.UnpicklingError:  # torch's words advise to load it unsafely
        raise ValueError("it holds more than numbers and is not loaded") from None
    except ValueError:
        raise
    except Exception as error:  # zipfile, zlib and torch each raise their own for a damaged file
        raise ValueError(f"it cannot be read in full ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise ValueError("it is no checkpoint")
    return found


def load_checkpoint(path: Path) -> dict | None:
    """What last.pt holds; None where there is none, it is damaged (the run then starts over, and
    says so), or it holds weights alone."""
    if not path.is_file():
        return None
    try:
        saved = read(path)
    except ValueError as error:
        warn(f"{short(path)} is damaged ({error}): this fold starts over")
        return None
    if "net" in saved and not saved.keys() >= PARTS:
        lacks = ", ".join(sorted(PARTS - saved.keys()))
        warn(f"{short(path)} lacks {lacks}: this fold starts over")
    return saved if saved.keys() >= PARTS else None


def restore(
    saved: dict, net: nn.Module, ema: nn.Module, optimiser, scaler, path: Path, fold: int
) -> dict:
    """Put everything back; returns the state (epoch, step, history, best, sums, bad). Raises
    InputError where `saved`, from `path`, is of another network or holds other things."""
    try:
        net.load_state_dict(saved["net"])
        ema.load_state_dict(saved["ema"])
        optimiser.load_state_dict(saved["optimiser"])
        if saved["scaler"]:
            scaler.load_state_dict(saved["scaler"])
        torch.set_rng_state(saved["random"]["cpu"])
        if saved["random"]["cuda"] and torch.cuda.device_count() == len(saved["random"]["cuda"]):
            torch.cuda.set_rng_state_all(saved["random"]["cuda"])
        state = {k: saved[k] for k in ("epoch", "step", "history", "best", "sums", "bad")}
        if not _is_state(state):
            raise ValueError("epoch, step or history are none")
    except Exception as error:  # torch raises RuntimeError, TypeError, KeyError, AttributeError, …
        raise _foreign(path, error, fold) from None
    return state


def _is_state(state: dict) -> bool:
    numbers = all(type(state[k]) is int and state[k] >= 0 for k in ("epoch", "step"))
    rows = state["history"]
    listed = isinstance(rows, list) and all(isinstance(r, dict) and "score" in r for r in rows)
    return numbers and listed and len(rows) == state["epoch"] and isinstance(state["sums"], dict)


def is_intact(path: Path) -> bool:
    """Can this checkpoint be read, with its checksums as they were written?"""
    try:
        return bool(read(path))
    except ValueError:
        return False


def _foreign(path: Path, error: Exception, fold: int | None) -> InputError:
    reason = str(error).strip().splitlines()[0].rstrip(".:") if str(error).strip() else ""
    what = f"not usable as a checkpoint of this network: {reason or type(error).__name__}"
    todo = "Make the bundle again, and upload all of it"
    if fold is not None:
        todo = f"Train it again with {command('train', '--fold', str(fold), '--force')}"
    return InputError(what, short(path), todo, code="foreign_checkpoint")


def round_weights(
    state: dict[str, torch.Tensor], net: nn.Module, weights: str
) -> dict[str, torch.Tensor]:
    """The weights of a state_dict as predict uses them, and as a bundle holds them. weights 'float16': every learned tensor of two or more dimensions
    (convolutions, linear layers) as float16; all else, and a tensor that float16 does not hold to a thousandth of its largest value, as it is."""
    if weights == "float32":
        return state
    learned = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    halves = {
        k: v.half()
        for k, v in state.items()
        if k in learned and v.dtype == torch.float32 and v.ndim > 1 and v.numel()
    }
    return state | {
        k: h
        for k, h in halves.items()
        if (h.float() - state[k]).abs().max() <= 1e-3 * state[k].abs().max()
    }


def load_weights(
    path: Path, net: nn.Module, weights: str = "float32", fold: int | None = None
) -> None:
    """The weights that predict uses (predict.weights), from last.pt or best.pt; `fold`: whose they
    are, None in a bundle. Raises InputError for a damaged file or one of another network."""
    try:
        found = read(path)
        if not isinstance(found.get("ema"), dict):
            raise ValueError("it holds no weights")
        net.load_state_dict(
            round_weights(found["ema"], net, weights)
        )  # which makes float32 of what is float16
    except (ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise _foreign(path, error, fold) from None
