"""Trained networks at work: what predict and infer do with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from src.config.load import Config
from src.core.console import StageError
from src.core.device import amp_dtype, out_of_memory
from src.core.paths import Paths
from src.data.images import restore
from src.data.predictions import Predictions
from src.parts import building
from src.parts.network import Network
from src.parts.tta import TTA
from src.pipeline.records import read_weights
from src.training.checkpoint import load_weights
from src.training.inference import predict_proba

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
    index: pd.DataFrame,
    rows: np.ndarray,
    device: torch.device,
    tta: Sequence[str],
    advance: Callable[[int], None] = lambda n: None,
) -> Predictions:
    """Predictions of some rows of a pixel store, images (N,S,S[,3]) uint8, and of the index (N),
    with each mask over the image as it was before letterboxing. Raises StageError where the memory
    does not suffice."""
    e, table = config.experiment, index.iloc[rows]
    views, batch = [TTA[name] for name in tta], e.predict_batch_size
    dtype = amp_dtype(e.train.amp, device)
    try:
        mask, label = predict_proba(net, images, rows, views, device, dtype, batch, advance)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise StageError(
            f"out of memory at {batch} images of {e.image_size} px. --set "
            f"predict.batch_size={max(1, batch // 4)} takes a quarter of it",
            code="out_of_memory",
        ) from error
    if e.resize == "letterbox" and mask is not None:
        sizes = zip(table["height"], table["width"])
        restored = [restore(m, h, w, "letterbox") for m, (h, w) in zip(mask, sizes)]
        mask = np.stack(restored).astype(np.float16)
    return Predictions(table["id"].to_numpy(), mask, label, config.competition.data.classes)


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
