"""Every name in a config that stands for a part — architecture, encoder, loss, augmentation, view, metric — checked before any work begins."""

from __future__ import annotations

import torch

from src.config.load import Config
from src.core.settings import Experiment
from src.parts import augment, filters, losses, metrics, models, sampling, tta


def check(config: Config) -> None:
    """Raises InputError for the first name that does not exist, naming the nearest that does."""
    metrics.check_score(config.competition.score)
    for experiment in (c.experiment for c in config.experiments):
        filters.check(experiment)
        models.check(experiment)
        losses.check(experiment)
        augment.check(experiment.train)
        sampling.check(experiment.train)
        tta.check(experiment.predict.tta)
    if config.study:  # hours may lie between its first cell and its last
        tried = {
            str((e.model, e.task, e.image_size, e.train.freeze)): e
            for e in (c.experiment for c in config.experiments)
        }
        for experiment in tried.values():
            if not _shapes_fit(experiment, len(config.competition.data.classes)):
                models.tried(experiment, len(config.competition.data.classes))


def _shapes_fit(experiment: Experiment, classes: int) -> bool:
    """Whether the trial goes well with shapes alone: on torch's device `meta` no weight is drawn and
    nothing computed, so that sixteen large networks take 2 s in place of 22. Some networks look at
    numbers, and cannot be tried so; those, and what fails, are left to the real trial."""
    try:
        with torch.device("meta"):
            net = models.Network(models.make(experiment, classes), *models.IMAGENET, experiment)
            models.try_out(net, classes)
        return experiment.train.freeze == "none" or bool(net.freezable(experiment.train.freeze))
    except Exception:  # of any kind: the real trial says what it is
        return False
