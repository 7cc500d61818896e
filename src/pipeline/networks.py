"""Networks at work: the loop that trains one, and what predict and infer do with its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from src.config.load import Config
from src.core.device import amp_dtype, worker_count
from src.data.predictions import Predictions
from src.parts import augment, losses, models, sampling
from src.parts.tta import TTA
from src.training.batches import EpochSampler, ImageDataset, make_loader
from src.training.checkpoint import load_weights
from src.training.inference import explain_out_of_memory, predict_proba, to_predictions
from src.training.loop import Loop


def make_loop(
    net: models.Network,
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


def load_network(
    config: Config,
    checkpoint: Path,
    device: torch.device,
    weights: str = "float32",
    fold: int | None = None,
) -> models.Network:
    """The network of an experiment with the weights of last.pt or best.pt: see `load_weights`."""
    net = models.build(config.experiment, len(config.competition.data.classes), pretrained=False)
    load_weights(checkpoint, net, weights, fold)
    return net.to(device, memory_format=torch.channels_last)


def predict_images(
    net: models.Network,
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
