"""last.pt: everything that a run needs to go on exactly where it was."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from src.core.console import InputError, short, warn
from src.core.freshness import replacing


def save_checkpoint(path: Path, net: nn.Module, ema: nn.Module, optimiser, scaler, state: dict) -> None:
    """Written whole or not at all. `state`: epoch, step, history, best, sums, bad — plain Python numbers, which torch reads back safely."""
    random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    with replacing(path) as temporary:
        torch.save({"net": net.state_dict(), "ema": ema.state_dict(), "optimiser": optimiser.state_dict(), "scaler": scaler.state_dict(), "random": random, **state}, temporary)


def save_weights(path: Path, net: nn.Module, epoch: int, score: float) -> None:
    """best.pt: only what predict needs."""
    with replacing(path) as temporary:
        torch.save({"ema": net.state_dict(), "epoch": epoch, "score": score}, temporary)


def load_checkpoint(path: Path) -> dict | None:
    """What last.pt holds; None where there is none or it is damaged (the run then starts over, and says so)."""
    if not path.is_file():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return saved if {"net", "ema", "optimiser", "epoch", "step"} <= saved.keys() else None
    except Exception as error:  # zipfile, pickle and torch each raise their own for a cut-off file
        warn(f"{short(path)} is damaged ({type(error).__name__}): this fold starts over")
        return None


def restore(saved: dict, net: nn.Module, ema: nn.Module, optimiser, scaler) -> dict:
    """Put everything back; returns the state (epoch, step, history, best, sums, bad)."""
    net.load_state_dict(saved["net"])
    ema.load_state_dict(saved["ema"])
    optimiser.load_state_dict(saved["optimiser"])
    if saved["scaler"]:
        scaler.load_state_dict(saved["scaler"])
    torch.set_rng_state(saved["random"]["cpu"])
    if saved["random"]["cuda"] and torch.cuda.device_count() == len(saved["random"]["cuda"]):
        torch.cuda.set_rng_state_all(saved["random"]["cuda"])
    return {k: saved[k] for k in ("epoch", "step", "history", "best", "sums", "bad")}


def shipped(state: dict[str, torch.Tensor], net: nn.Module, weights: str) -> dict[str, torch.Tensor]:
    """The weights of a state_dict as predict uses them, and as a bundle holds them. weights 'float16': every learned tensor of two or more dimensions
    (convolutions, linear layers) as float16; all else, and a tensor that float16 does not hold to a thousandth of its largest value, as it is."""
    if weights == "float32":
        return state
    learned = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    halves = {k: v.half() for k, v in state.items() if k in learned and v.dtype == torch.float32 and v.ndim > 1 and v.numel()}
    return state | {k: h for k, h in halves.items() if (h.float() - state[k]).abs().max() <= 1e-3 * state[k].abs().max()}


def load_weights(path: Path, net: nn.Module, weights: str = "float32") -> None:
    """The weights that predict uses (predict.weights), from last.pt or best.pt. Raises InputError for a damaged file or one of another network."""
    try:
        net.load_state_dict(shipped(torch.load(path, map_location="cpu", weights_only=True)["ema"], net, weights))  # which makes float32 of what is float16
    except Exception as error:
        raise InputError(f"not usable as a checkpoint of this network: {str(error).splitlines()[0]}", short(path), "Train this fold again with --force") from None
