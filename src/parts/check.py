"""Every name in a config that stands for a part — architecture, encoder, loss, augmentation, view, metric — checked before any work begins."""
from __future__ import annotations

from src.core.config import Config
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
        tta.check(experiment.predict.views)
    if config.study:  # hours may lie between its first cell and its last
        tried = {str((e.model, e.task, e.image_size, e.train.freeze)): e for e in (c.experiment for c in config.experiments)}
        for experiment in tried.values():
            models.tried(experiment, len(config.competition.data.classes))
