"""How the members of an ensemble are weighed, and how much that gains on images that the choice has not seen.

At the predictions' own resolution, by the untuned decision, without rules: thousands of mixtures are compared. evaluate measures the result at original size.
"""

from __future__ import annotations

import numpy as np

from src.data.images import resize
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.parts import metrics
from src.parts.postprocess import stretch

MIN_GAIN = 1e-9  # a score must be more than this higher: sums of the same numbers in another order differ in the last digit


class Masks:
    """The score's mask metrics of any mixture of the members' masks. Only disputed pixels are kept, those that not all members see alike: what all call
    lesion, or all background, is so in every mixture. A few per cent of the pixels remain, and the numbers are those of all pixels."""

    def __init__(
        self,
        members: list[Predictions],
        truth: Truth,
        weights: dict[str, float],
        threshold: float = 0.5,
    ):
        self.threshold = threshold
        size, n = members[0].mask.shape[1], len(members[0])
        self.members, self.weights = (
            len(members),
            {m: w for m, w in weights.items() if m in metrics.MASK_METRICS},
        )
        self.sure, self.true = (
            np.zeros((2, n), dtype=np.int64),
            np.zeros(n, dtype=np.int64),
        )  # pixels that all call lesion: those that are none, those that are
        self.pixels, columns, lengths = size * size, [], []
        for i, id in enumerate(members[0].ids):
            true = resize(truth.mask(id), size, is_mask=True).astype(bool)
            said = [m.mask[i] > threshold for m in members]
            all_say, any_says = np.logical_and.reduce(said), np.logical_or.reduce(said)
            self.sure[:, i] = np.count_nonzero(all_say & ~true), np.count_nonzero(all_say & true)
            self.true[i] = np.count_nonzero(true)
            for disputed in (any_says & ~all_say & ~true, any_says & ~all_say & true):
                columns.append(np.stack([m.mask[i][disputed] for m in members]))
                lengths.append(columns[-1].shape[1])
        self.edges = np.cumsum(
            [0, *lengths]
        )  # of each image first the background's disputed pixels, then the lesion's
        self.values = np.concatenate(columns, axis=1)
        self.known: dict[tuple, np.ndarray] = {}
        self.base: tuple[tuple, np.ndarray] = ((), np.zeros(0))

    def per_image(
        self, mixture: tuple[int, ...], base: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """mixture: how often each member is counted -> (N) weighted mask metrics of their mean. base: a mixture with one member less, whose sum is
        remembered, so that many candidates that build on it cost one addition each."""
        if mixture not in self.known:
            if base is None:
                total = self._sum(mixture)
            else:
                if self.base[0] != base:
                    self.base = base, self._sum(base)
                total = self.base[1] + self.values[[t - b for t, b in zip(mixture, base)].index(1)]
            lesion = total > np.float32(self.threshold * sum(mixture))
            said = (
                np.array(
                    [
                        np.count_nonzero(lesion[start:end])
                        for start, end in zip(self.edges, self.edges[1:])
                    ]
                )
                .reshape(-1, 2)
                .T
                + self.sure
            )
            counts = metrics.from_areas(said[1], said.sum(0), self.true, self.pixels)
            self.known[mixture] = sum(
                w * metrics.MASK_METRICS[m](*counts) for m, w in self.weights.items()
            ) / sum(self.weights.values())
        return self.known[mixture]

    def _sum(self, mixture: tuple[int, ...]) -> np.ndarray:
        total = np.zeros(self.values.shape[1], dtype=np.float32)
        for values, times in zip(self.values, mixture):
            if times:
                total += np.float32(times) * values
        return total

    def score(
        self, mixture: tuple[int, ...], rows: np.ndarray, base: tuple[int, ...] | None = None
    ) -> float:
        return float(self.per_image(mixture, base)[rows].mean())

    def pooled(self, mixtures: list[tuple[tuple[int, ...], np.ndarray]]) -> float:
        """The score over all images, each set of rows by its own mixture."""
        return float(
            np.concatenate([self.per_image(mixture)[rows] for mixture, rows in mixtures]).mean()
        )


class Labels:
    """The same for the score's label metrics of mixtures of class probabilities."""

    def __init__(self, members: list[Predictions], truth: np.ndarray, weights: dict[str, float]):
        self.members, self.probs, self.truth = (
            len(members),
            np.stack([m.label for m in members]).astype(np.float64),
            truth,
        )
        self.weights = {m: w for m, w in weights.items() if m in metrics.LABEL_METRICS}

    def mixed(self, mixture: tuple[int, ...]) -> np.ndarray:
        # no tensordot: its order of adding goes by the number of threads
        return sum(times / sum(mixture) * probs for times, probs in zip(mixture, self.probs))

    def _score(self, probs: np.ndarray, truth: np.ndarray) -> float:
        decided = probs.argmax(1)
        return sum(
            w * metrics.LABEL_METRICS[m](truth, decided, probs) for m, w in self.weights.items()
        ) / sum(self.weights.values())

    def score(
        self, mixture: tuple[int, ...], rows: np.ndarray, base: tuple[int, ...] | None = None
    ) -> float:
        return self._score(self.mixed(mixture)[rows], self.truth[rows])

    def pooled(self, mixtures: list[tuple[tuple[int, ...], np.ndarray]]) -> float:
        probs = np.concatenate([self.mixed(mixture)[rows] for mixture, rows in mixtures])
        return self._score(probs, np.concatenate([self.truth[rows] for _, rows in mixtures]))


Scored = Masks | Labels


def single(scored: Scored, rows: np.ndarray) -> tuple[int, ...]:
    """The member that is best alone, the first where several are."""
    alone = [tuple(int(i == j) for j in range(scored.members)) for i in range(scored.members)]
    return max(alone, key=lambda m: scored.score(m, rows))


def mean(scored: Scored, rows: np.ndarray) -> tuple[int, ...]:
    return (1,) * scored.members


def greedy(scored: Scored, rows: np.ndarray, rounds: int) -> tuple[int, ...]:
    """Selection with replacement (Caruana et al. 2004, "Ensemble selection from libraries of models", sec. 2): from the best single member on, each
    round adds the member that helps most or hurts least; of all mixtures on the way the best is taken, of equals the smallest."""
    mixture = single(scored, rows)
    way = [(scored.score(mixture, rows), mixture)]
    for _ in range(rounds - 1):
        longer = [tuple(t + (i == j) for j, t in enumerate(mixture)) for i in range(scored.members)]
        mixture = max(longer, key=lambda m, base=mixture: scored.score(m, rows, base))
        way.append((scored.score(mixture, rows), mixture))
    top = max(s for s, _ in way)
    return next(m for s, m in way if s >= top - MIN_GAIN)


def left_out(scored: Scored, parts: np.ndarray, choose) -> dict[int, tuple[int, ...]]:
    """For every part (N; -1: never left out, never scored) the mixture that `choose(scored, rows)` finds best on the other parts."""
    return {
        int(k): choose(scored, np.flatnonzero((parts != k) & (parts >= 0)))
        for k in np.unique(parts[parts >= 0])
    }


def nested(scored: Scored, parts: np.ndarray, mixtures: dict[int, tuple[int, ...]]) -> float:
    """The score when every part is mixed without having had a say in its mixture."""
    return scored.pooled([(mixture, np.flatnonzero(parts == k)) for k, mixture in mixtures.items()])


def mix(members: list[Predictions], mixtures: list[tuple[int, ...]], answer: str) -> np.ndarray:
    """The weighted mean of the members' 'mask' or 'label', each image by its own mixture (N), one at a time: no second copy of all the masks is needed."""
    first = getattr(members[0], answer)
    found = np.empty(first.shape, dtype=np.float16 if answer == "mask" else np.float32)
    for i, mixture in enumerate(mixtures):
        found[i] = sum(
            times * getattr(m, answer)[i].astype(np.float32)
            for m, times in zip(members, mixture)
            if times
        ) / np.float32(sum(mixture))
    return found


def same_size(members: list[Predictions], least: int = 0) -> None:
    """Masks of different S are resized to the largest, and to `least`, in place."""
    largest = max([least, *(m.mask.shape[1] for m in members)])
    for m in members:
        if m.mask.shape[1] != largest:
            resized = np.empty((len(m), largest, largest), dtype=np.float16)
            for i in range(len(m)):
                resized[i] = stretch(m.mask[i], largest, largest)
            m.mask = resized
