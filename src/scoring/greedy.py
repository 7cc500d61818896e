"""The weights of an ensemble's members, and their gain on images held out of the choice.

At the predictions' own resolution, by the untuned decision, without rules: thousands of mixtures
are compared. A mixture is a tuple: how often each member is counted. evaluate measures the result
at original size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from src.data.images import resize
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.parts import metrics
from src.parts.postprocess import stretch

# A score must be higher by more than this: sums of the same numbers in another order differ in the
# last digit.
MIN_GAIN = 1e-9

Mixture = tuple[int, ...]


class Masks:
    """The score's mask metrics of any mixture of the members' masks.

    Only disputed pixels are kept, those on which members disagree: what all call lesion, or all
    background, is so in every mixture. A few per cent of the pixels remain, and the numbers are
    those of all pixels.
    """

    def __init__(
        self,
        members: list[Predictions],
        truth: Truth,
        weights: dict[str, float],
        threshold: float = 0.5,
    ):
        size, n = members[0].mask.shape[1], len(members[0])
        self.members, self.threshold, self.pixels = len(members), threshold, size * size
        self.weights = {m: w for m, w in weights.items() if m in metrics.MASK_METRICS}
        self.true = np.zeros(n, dtype=np.int64)
        # pixels that all members call lesion: those that are background, those that are lesion
        self.agreed = np.zeros((2, n), dtype=np.int64)
        disputed = []  # of each image first the background's pixels, then the lesion's
        for i, id in enumerate(members[0].ids):
            true = resize(truth.mask(id), size, is_mask=True).astype(bool)
            self.true[i] = np.count_nonzero(true)
            masks = np.stack([m.mask[i] for m in members])
            by_all, by_any = (masks > threshold).all(0), (masks > threshold).any(0)
            for k, side in enumerate((~true, true)):
                self.agreed[k, i] = np.count_nonzero(by_all & side)
                disputed.append(masks[:, by_any & ~by_all & side])
        self.ends = np.cumsum([pixels.shape[1] for pixels in disputed])
        self.values = np.concatenate(disputed, axis=1)
        self.known: dict[Mixture, np.ndarray] = {}
        self.sum_of_last = functools.lru_cache(maxsize=1)(self._sum)

    def per_image(self, mixture: Mixture, base: Mixture | None = None) -> np.ndarray:
        """(N) weighted mask metrics of a mixture's mean. base: a mixture with one member less,
        whose sum is remembered, so that many candidates that build on it cost one addition each."""
        if mixture not in self.known:
            if base is None:
                total = self._sum(mixture)
            else:
                added = np.subtract(mixture, base).argmax()
                total = self.sum_of_last(base) + self.values[added]
            lesion = total > np.float32(self.threshold * sum(mixture))
            pixels = [np.count_nonzero(part) for part in np.split(lesion, self.ends[:-1])]
            wrong, right = np.reshape(pixels, (-1, 2)).T + self.agreed
            counts = metrics.from_areas(right, wrong + right, self.true, self.pixels)
            values = sum(w * metrics.MASK_METRICS[m](*counts) for m, w in self.weights.items())
            self.known[mixture] = values / sum(self.weights.values())
        return self.known[mixture]

    def _sum(self, mixture: Mixture) -> np.ndarray:
        total = np.zeros(self.values.shape[1], dtype=np.float32)
        for values, times in zip(self.values, mixture):
            if times:
                total += np.float32(times) * values
        return total

    def score(self, mixture: Mixture, rows: np.ndarray, base: Mixture | None = None) -> float:
        return float(self.per_image(mixture, base)[rows].mean())

    def pooled(self, mixtures: list[tuple[Mixture, np.ndarray]]) -> float:
        """The score over all images, each set of rows by its own mixture."""
        return float(np.concatenate([self.per_image(m)[rows] for m, rows in mixtures]).mean())


class Labels:
    """The same for the score's label metrics of mixtures of class probabilities."""

    def __init__(self, members: list[Predictions], truth: np.ndarray, weights: dict[str, float]):
        self.members, self.truth = len(members), truth
        self.probs = np.stack([m.label for m in members]).astype(np.float64)
        self.weights = {m: w for m, w in weights.items() if m in metrics.LABEL_METRICS}

    def score(self, mixture: Mixture, rows: np.ndarray, base: Mixture | None = None) -> float:
        return self.pooled([(mixture, rows)])

    def pooled(self, mixtures: list[tuple[Mixture, np.ndarray]]) -> float:
        truth = np.concatenate([self.truth[rows] for _, rows in mixtures])
        probs = np.concatenate([self._mean(mixture)[rows] for mixture, rows in mixtures])
        answers = truth, probs.argmax(1), probs
        values = sum(w * metrics.LABEL_METRICS[m](*answers) for m, w in self.weights.items())
        return values / sum(self.weights.values())

    def _mean(self, mixture: Mixture) -> np.ndarray:
        # no tensordot: its order of adding depends on the number of threads
        return sum(times / sum(mixture) * probs for times, probs in zip(mixture, self.probs))


Scored = Masks | Labels
Chooser = Callable[[Scored, np.ndarray], Mixture]


def single(scored: Scored, rows: np.ndarray) -> Mixture:
    """The member that is best alone, the first where several are."""
    alone = [tuple(row) for row in np.eye(scored.members, dtype=int).tolist()]
    return max(alone, key=lambda mixture: scored.score(mixture, rows))


def mean(scored: Scored, rows: np.ndarray) -> Mixture:
    return (1,) * scored.members


def greedy(scored: Scored, rows: np.ndarray, rounds: int) -> Mixture:
    """Selection with replacement (Caruana et al. 2004, "Ensemble selection from libraries of
    models", sec. 2).

    From the best single member on, each round adds the member that helps most or hurts least. The
    best of all mixtures on the way is taken, of equals the smallest.
    """
    mixture = single(scored, rows)
    path = [(scored.score(mixture, rows), mixture)]
    for _ in range(rounds - 1):
        candidates = [
            tuple(times + (i == j) for j, times in enumerate(mixture))
            for i in range(scored.members)
        ]
        scores = [scored.score(candidate, rows, mixture) for candidate in candidates]
        best = int(np.argmax(scores))
        mixture = candidates[best]
        path.append((scores[best], mixture))
    top = max(score for score, _ in path)
    return next(mixture for score, mixture in path if score >= top - MIN_GAIN)


def left_out(scored: Scored, cv_folds: np.ndarray, choose: Chooser) -> dict[int, Mixture]:
    """For every fold (N; -1: never left out, never scored) the mixture that `choose` finds best on
    the other folds."""
    return {
        int(k): choose(scored, np.flatnonzero((cv_folds != k) & (cv_folds >= 0)))
        for k in np.unique(cv_folds[cv_folds >= 0])
    }


def nested(scored: Scored, cv_folds: np.ndarray, mixtures: dict[int, Mixture]) -> float:
    """The score when every fold is mixed by weights that were chosen without it."""
    return scored.pooled([(m, np.flatnonzero(cv_folds == k)) for k, m in mixtures.items()])


def mix(members: list[Predictions], mixtures: list[Mixture], answer: str) -> np.ndarray:
    """The weighted mean of the members' 'mask' or 'label', each image by its own mixture (N).

    One image at a time: no second copy of all the masks is needed.
    """
    first = getattr(members[0], answer)
    mixed = np.empty(first.shape, dtype=np.float16 if answer == "mask" else np.float32)
    for i, mixture in enumerate(mixtures):
        mixed[i] = sum(
            times * getattr(m, answer)[i].astype(np.float32)
            for m, times in zip(members, mixture)
            if times
        ) / np.float32(sum(mixture))
    return mixed


def same_size(members: list[Predictions], least: int = 0) -> None:
    """Masks of different S are resized to the largest, and to `least`, in place."""
    largest = max([least, *(m.mask.shape[1] for m in members)])
    for m in members:
        if m.mask.shape[1] != largest:
            resized = np.empty((len(m), largest, largest), dtype=np.float16)
            for i in range(len(m)):
                resized[i] = stretch(m.mask[i], largest, largest)
            m.mask = resized
