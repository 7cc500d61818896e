"""What fits into the time there is: test-time augmentation is given up first, then networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from src.core.console import listing

# how much longer a network may take than estimated: of an experiment that was measured here, and
# of one that was not
MEASURED, ESTIMATED = 1.1, 1.3


@dataclass(frozen=True)
class NetworkRun:
    """One network's work on all images."""

    member: str
    fold: int
    tta: tuple[str, ...]
    rank: int  # of its member: 0 is the one that weighs most
    answers: frozenset[str]  # 'mask', 'label'

    @property
    def key(self) -> tuple[str, int]:
        return self.member, self.fold

    @property
    def title(self) -> str:
        return f"{self.member} fold {self.fold}"


def select_runs(
    waiting: list[NetworkRun],
    done: Iterable[NetworkRun],
    cost: Callable[[NetworkRun], float],
    seconds: float,
) -> list[NetworkRun]:
    """Those of `waiting` that fit into `seconds`, in their order.

    Given up, until the rest fits: one test-time view of each network after another, the lightest
    member's last fold first, until all have one; then networks in this order. Every answer keeps
    one network, done or waiting, however little time there is.
    """
    chosen = {run.key: run for run in waiting}
    lightest_first = [run.key for run in sorted(waiting, key=lambda run: (-run.rank, -run.fold))]
    total = sum(map(cost, waiting))
    for views in range(max((len(run.tta) for run in waiting), default=1), 1, -1):
        for key in lightest_first:
            run = chosen[key]
            if total > seconds and len(run.tta) == views:
                chosen[key] = replace(run, tta=drop_view(run.tta))
                total += cost(chosen[key]) - cost(run)
    needed = answers_of([*waiting, *done])
    for key in lightest_first:
        rest = [run for run in chosen.values() if run.key != key]
        if total > seconds and needed <= answers_of([*rest, *done]):
            total -= cost(chosen.pop(key))
    return list(chosen.values())


def answers_of(runs: list[NetworkRun]) -> frozenset[str]:
    return frozenset().union(*(run.answers for run in runs))


def drop_view(tta: tuple[str, ...]) -> tuple[str, ...]:
    """Without the last one that is not the identity."""
    last = max((i for i, view in enumerate(tta) if view != "identity"), default=len(tta) - 1)
    return tta[:last] + tta[last + 1 :]


def describe_skipped(wanted: list[NetworkRun], got: Iterable[NetworkRun]) -> str:
    """What of `wanted` is not in `got`: 'views: hflip of a fold 1; networks: b fold 0'; or ''."""
    kept = {run.key: run.tta for run in got}
    skipped: dict[str, list[str]] = {"views": [], "networks": []}
    for run in wanted:
        if run.key not in kept:
            skipped["networks"].append(run.title)
        elif lost := [view for view in run.tta if view not in kept[run.key]]:
            skipped["views"].append(f"{', '.join(lost)} of {run.title}")
    return "; ".join(f"{what}: {listing(names, 12)}" for what, names in skipped.items() if names)


@dataclass
class Pace:
    """How long networks take: seconds per image and view of each experiment, and to load one.

    An experiment that was not measured here yet is assumed to be as much slower or faster than the
    bundle has it as those that were.
    """

    expected: dict[str, float | None]  # as measured when the bundle's predictions were made
    measured: dict[str, float] = field(default_factory=dict)
    loading: dict[str, float] = field(default_factory=dict)

    def rate(self, member: str) -> float:
        if member in self.measured:
            return self.measured[member]
        ratios = [
            seconds / self.expected[m] for m, seconds in self.measured.items() if self.expected[m]
        ]
        if ratios and self.expected[member]:
            return self.expected[member] * sum(ratios) / len(ratios)
        return max(self.measured.values(), default=0.0)

    def cost(self, run: NetworkRun, images: int) -> float:
        """Seconds, with a margin."""
        margin = MEASURED if run.member in self.measured else ESTIMATED
        load = self.loading.get(run.member, max(self.loading.values(), default=0.0))
        return margin * (load + self.rate(run.member) * images * len(run.tta))
