"""The training loop of an experiment, made of its parts: what train runs and bench times."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from src.config.load import Config
from src.core.device import amp_dtype, worker_count
from src.parts import augment, losses, sampling
from src.parts.network import Network
from src.training.batches import EpochSampler, ImageDataset, make_loader
from src.training.loop import Loop


def make_loop(
    net: Network,
    config: Config,
    images: Path,
    masks: Path,
    rows: np.ndarray,
    labels: np.ndarray,
    fold: int,
    device: torch.device,
) -> Loop:
    """A network with its images, augmentation, loss and optimiser. images, masks: pixel stores, of
    which `rows` are trained on; labels: of these rows, int."""
    e, t, classes = config.experiment, config.experiment.train, len(config.competition.data.classes)
    dataset = ImageDataset(
        images,
        masks,
        rows,
        np.eye(classes, dtype=np.float32)[labels],
        augment.build(t.augment) if t.augment != "none" else None,
        losses.maps(e),
        augment.mix(t),
    )
    draw = sampling.draw(t, labels, config.competition.data)
    sampler = EpochSampler(len(rows), t.batch_size, t.accumulate, t.seed, fold, draw)
    loader = make_loader(dataset, sampler, worker_count(t.workers, device), device)
    frequencies = losses.Frequencies.of(torch.from_numpy(labels), classes, e.loss, device)
    loss = partial(losses.total, classes=frequencies, settings=e.loss)
    return Loop(net, loss, sampler, loader, t, device, amp_dtype(t.amp, device))
