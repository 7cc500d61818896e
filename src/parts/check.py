"""Every name in a config that stands for a part — architecture, encoder, loss, augmentation, view,
metric — checked before any work begins."""

from __future__ import annotations

import torch

from src.config.load import Config
from src.core.settings import Experiment
from src.parts import augment, building, filters, losses, metrics, sampling, tta
from src.parts.network import Network
from src.parts.pretrained import IMAGENET


def check(config: Config) -> None:
    """Raises InputError for the first name that does not exist, naming the nearest that does."""
    metrics.check_score(config.competition.score)
    experiments = [c.experiment for c in config.experiments]
    for experiment in experiments:
        filters.check(experiment)
        building.check(experiment)
        losses.check(experiment)
        augment.check(experiment.train)
        sampling.check(experiment.train)
        tta.check(experiment.predict.tta)
    if config.study:  # hours may lie between its first cell and its last
        different = {str((e.model, e.task, e.image_size, e.train.freeze)): e for e in experiments}
        for experiment in different.values():
            classes = len(config.competition.data.classes)
            if not _shapes_fit(experiment, classes):
                building.build_random(experiment, classes)


def _shapes_fit(experiment: Experiment, classes: int) -> bool:
    """Whether the trial succeeds with shapes alone.

    On torch's device `meta` no weight is drawn and nothing computed, so that sixteen large networks
    take 2 s in place of 22. Some networks look at numbers, and cannot be tried so; those, and what
    fails, are left to the real trial.
    """
    try:
        with torch.device("meta"):
            net = Network(building.make(experiment, classes), *IMAGENET, experiment)
            building.try_out(net, classes)
        return experiment.train.freeze == "none" or bool(net.freezable(experiment.train.freeze))
    except Exception:  # of any kind: the real trial says what it is
        return False
