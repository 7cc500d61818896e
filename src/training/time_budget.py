"""What can be done within the time there is: test-time views are given up first, then networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from src.core.console import listing

SURE, UNSURE = (
    1.1,
    1.3,
)  # how much longer a network may take than it is thought to: of an experiment that was measured here, and of one that was not


@dataclass(frozen=True)
class Unit:
    """One network's work on all images."""

    member: str
    fold: int
    views: tuple[str, ...]
    rank: int  # of its member: 0 is the one that weighs most
    answers: frozenset[str]  # 'mask', 'label'

    @property
    def title(self) -> str:
        return f"{self.member} fold {self.fold}"


def fit(
    waiting: list[Unit], done: Iterable[Unit], cost: Callable[[Unit], float], left: float
) -> list[Unit]:
    """Those of `waiting` that fit into `left` seconds, in their order. What is given up, until the rest fits: one view of each network after another, the
    lightest member's last fold first, until all have one; then networks in this order. Every answer keeps one network, done or waiting, however little time
    there is."""
    chosen = {(u.member, u.fold): u for u in waiting}
    order = [(u.member, u.fold) for u in sorted(waiting, key=lambda u: (-u.rank, -u.fold))]
    total = sum(map(cost, waiting))
    for _ in range(max((len(u.views) for u in waiting), default=1) - 1):
        most = max(len(u.views) for u in chosen.values())
        for key in order:
            unit = chosen[key]
            if total > left and len(unit.views) == most:
                chosen[key] = replace(unit, views=fewer(unit.views))
                total += cost(chosen[key]) - cost(unit)
    asked = frozenset().union(*(u.answers for u in (*waiting, *done)))
    for key in order:
        rest = [u for k, u in chosen.items() if k != key]
        if total > left and asked <= frozenset().union(*(u.answers for u in (*rest, *done))):
            total -= cost(chosen.pop(key))
    return list(chosen.values())


def fewer(views: tuple[str, ...]) -> tuple[str, ...]:
    """Without the last one, but the identity stays."""
    gone = max((i for i, v in enumerate(views) if v != "identity"), default=len(views) - 1)
    return views[:gone] + views[gone + 1 :]


def given_up(wanted: list[Unit], got: Iterable[Unit]) -> str:
    """In words, what of `wanted` is not in `got`: 'views: hflip of a fold 1; networks: b fold 0'; '' for nothing."""
    now = {(u.member, u.fold): u.views for u in got}
    views = [
        f"{', '.join(lost)} of {u.title}"
        for u in wanted
        if (u.member, u.fold) in now
        and (lost := [v for v in u.views if v not in now[u.member, u.fold]])
    ]
    networks = [u.title for u in wanted if (u.member, u.fold) not in now]
    return "; ".join(
        f"{what}: {listing(names, 12)}"
        for what, names in (("views", views), ("networks", networks))
        if names
    )


@dataclass
class Pace:
    """How long networks take: seconds per image and view of each experiment, and to load one. An experiment that was not measured here yet is thought to
    be as much slower or faster as those that were, against what the bundle has of it."""

    expected: dict[str, float | None]  # as measured when the bundle's predictions were made
    measured: dict[str, float] = field(default_factory=dict)
    loading: dict[str, float] = field(default_factory=dict)

    def rate(self, member: str) -> float:
        if member in self.measured:
            return self.measured[member]
        known = [self.measured[m] / self.expected[m] for m in self.measured if self.expected.get(m)]
        if known and self.expected.get(member):
            return self.expected[member] * sum(known) / len(known)
        return max(self.measured.values(), default=0.0)

    def cost(self, unit: Unit, images: int) -> float:
        """Seconds, with a margin."""
        margin = SURE if unit.member in self.measured else UNSURE
        return margin * (
            self.loading.get(unit.member, max(self.loading.values(), default=0.0))
            + self.rate(unit.member) * images * len(unit.views)
        )
