"""Every name in a config that stands for a part — architecture, encoder, loss, augmentation, view, metric — checked before any work begins."""
from __future__ import annotations

from src.core.config import Config
from src.parts import augment, losses, metrics, models, tta


def check(config: Config) -> None:
    """Raises InputError for the first name that does not exist, naming the nearest that does."""
    metrics.check_score(config.competition.score)
    for experiment in (c.experiment for c in config.experiments):
        models.check(experiment.model)
        losses.check(experiment.loss)
        augment.check(experiment.train.augment)
        tta.check(experiment.predict.views)
