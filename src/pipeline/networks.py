"""Trained networks at work: what predict and infer do with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from src.config.load import Config
from src.core.device import amp_dtype
from src.core.paths import Paths
from src.data.predictions import Predictions
from src.parts import building
from src.parts.network import Network
from src.parts.tta import TTA
from src.pipeline.records import read_weights
from src.training.checkpoint import load_weights
from src.training.inference import explain_out_of_memory, predict_proba, to_predictions

ANSWERS = {"both": ("mask", "label"), "mask": ("mask",), "class": ("label",)}  # of a task


def load_network(
    config: Config,
    checkpoint: Path,
    device: torch.device,
    weights: str = "float32",
    fold: int | None = None,
) -> Network:
    """The network of an experiment with the weights of last.pt or best.pt: see `load_weights`."""
    net = building.build(config.experiment, len(config.competition.data.classes), pretrained=False)
    load_weights(checkpoint, net, weights, fold)
    return net.to(device, memory_format=torch.channels_last)


def predict_images(
    net: Network,
    config: Config,
    images: np.ndarray,
    rows: Sequence[int],
    ids: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    device: torch.device,
    tta: Sequence[str],
    advance: Callable[[int], None] = lambda n: None,
) -> Predictions:
    """images (N,S,S[,3]) uint8, of which `rows` are predicted; ids and sizes (height, width) are of
    these rows. Raises StageError where the memory does not suffice."""
    e = config.experiment
    with explain_out_of_memory(e.predict_batch_size, e.image_size):
        mask, label = predict_proba(
            net,
            images,
            rows,
            [TTA[name] for name in tta],
            device,
            amp_dtype(e.train.amp, device),
            e.predict_batch_size,
            advance,
        )
    return to_predictions(mask, label, ids, sizes, e.resize, config.competition.data.classes)


def member_times(config: Config, paths: Paths) -> dict[str, dict[str, int]]:
    """'mask' and 'label' -> how often each member of an ensemble is counted, in the order of their
    addition; an experiment alone counts once."""
    if config.experiment:
        return {answer: {config.name: 1} for answer in ANSWERS[config.experiment.task]}
    weights = read_weights(paths, config.name, config.ensemble.members)
    return {
        answer: {member: n for member, n in weights[answer]["times"].items() if n}
        for answer in ("mask", "label")
        if weights[answer]
    }
