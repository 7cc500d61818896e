"""The training loop, step by step: what `train` runs and the benchmark times. Nothing in it waits for the GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.data import DataLoader

from src.core.device import autocast
from src.core.settings import Train
from src.training.batches import EpochSampler

Loss = Callable[
    [dict[str, torch.Tensor], dict[str, torch.Tensor]], dict[str, torch.Tensor]
]  # (output, target) -> {"loss": …, its parts}


@dataclass
class Loop:
    """A network and everything that moves with it."""

    net: nn.Module
    ema: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: Loss
    plan: EpochSampler
    batches: DataLoader
    settings: Train
    device: torch.device
    dtype: torch.dtype
    prepare: Callable[[int], None] = (
        lambda epoch: None
    )  # told of each epoch before it begins, the network in training mode: what is frozen, and until when
    sums: dict[str, torch.Tensor] = field(
        default_factory=dict
    )  # of this epoch: each loss, and the steps skipped

    def __post_init__(self):
        self.forward = torch.compile(self.net) if self.settings.compile else self.net
        self.averaged = ema_pairs(self.ema, self.net)
        self.statistics = [b for b in self.net.buffers() if b.is_floating_point()]  # BatchNorm's

    def steps(
        self, epoch: int, first: int = 0, sums: dict[str, float] | None = None
    ) -> Iterator[torch.Tensor]:
        """One epoch from step `first` on (with the sums of the steps before it); yields after each step whether it was taken, a bool on the device."""
        total = self.plan.steps * self.settings.epochs
        self.sums = {k: torch.tensor(v, device=self.device) for k, v in (sums or {}).items()}
        self.net.train()
        self.prepare(epoch)
        self.plan.set_epoch(epoch, first)
        stream = iter(self.batches)
        for number in range(epoch * self.plan.steps + first, (epoch + 1) * self.plan.steps):
            for group in self.optimiser.param_groups:
                group["lr"] = group["base_lr"] * rate(
                    number, total, self.settings.warmup, self.settings.schedule
                )
            finite, before = (
                torch.ones((), dtype=torch.bool, device=self.device),
                self.flat_statistics(),
            )
            for _ in range(self.plan.accumulate):
                finite &= self.backward(*next(stream))
            finite = self.update(finite)
            self.keep_statistics(finite, before)
            update_ema(self.averaged, self.settings.ema, number)
            self.add("skipped", ~finite)
            yield finite

    def backward(self, images: torch.Tensor, target: dict[str, torch.Tensor]) -> torch.Tensor:
        """Gradients of one batch; returns whether its loss is finite."""
        images, target = (
            images.to(self.device, non_blocking=True),
            {k: v.to(self.device, non_blocking=True) for k, v in target.items()},
        )
        with autocast(self.device, self.dtype):
            output = self.forward(images)
        parts = self.loss(output, target)
        self.scaler.scale(parts["loss"] / self.plan.accumulate).backward()
        for name, value in parts.items():
            self.add(name, torch.nan_to_num(value.detach()) / self.plan.accumulate)
        return torch.isfinite(parts["loss"].detach())

    def update(self, finite: torch.Tensor) -> torch.Tensor:
        """One optimiser step, left out on the device itself where loss or gradients are not finite. Returns whether it was taken.

        The fused optimisers read `found_inf` as GradScaler hands it over; here it is set for bfloat16 and float32 too.
        """
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(
            self.net.parameters(), self.settings.clip or math.inf, foreach=True
        )
        if self.scaler.is_enabled():  # float16 tries scales that overflow: no fault of the loss
            self.scaler.step(self.optimiser)
            self.scaler.update()
        else:
            finite = finite & torch.isfinite(norm)
            self.optimiser.found_inf, self.optimiser.grad_scale = (~finite).float(), None
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return finite

    def flat_statistics(self) -> torch.Tensor:
        return (
            torch.cat([b.flatten() for b in self.statistics])
            if self.statistics
            else torch.empty(0, device=self.device)
        )

    def keep_statistics(self, finite: torch.Tensor, before: torch.Tensor) -> None:
        """A forward pass that overflows spoils BatchNorm's running statistics for good: in a step left out they stay as they were. All in one tensor,
        since hundreds of small ones would cost a GPU more than the step itself."""
        if self.statistics:
            chosen = torch.where(finite, self.flat_statistics(), before).split(
                [b.numel() for b in self.statistics]
            )
            torch._foreach_copy_(
                self.statistics, [c.view_as(b) for c, b in zip(chosen, self.statistics)]
            )

    def add(self, name: str, value: torch.Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value.float()

    def is_finite(self) -> bool:
        return all(
            bool(torch.isfinite(v).all())
            for v in self.net.state_dict().values()
            if v.is_floating_point()
        )


Pairs = tuple[list[torch.Tensor], list[torch.Tensor]]


def ema_pairs(ema: nn.Module, net: nn.Module) -> tuple[Pairs, Pairs]:
    """The tensors of the average and of the network: those that are averaged, and the counters, which are copied."""
    both = list(zip(ema.state_dict().values(), net.state_dict().values()))
    return tuple(
        tuple(map(list, zip(*(p for p in both if p[0].is_floating_point() == real)))) or ([], [])
        for real in (True, False)
    )


@torch.no_grad()
def update_ema(pairs: tuple[Pairs, Pairs], decay: float, step: int) -> None:
    """ema ← d·ema + (1−d)·net over weights and BatchNorm statistics; d grows from 0.1, so that the start is forgotten."""
    if not decay:
        return
    decay = min(decay, (1 + step) / (10 + step))
    (mine, other), (counts, other_counts) = pairs
    torch._foreach_lerp_(mine, other, 1 - decay)
    if counts:
        torch._foreach_copy_(counts, other_counts)


# the share of the rate at a share t of the steps after the warm-up
SCHEDULES = {
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "poly": lambda t: (1 - t) ** 0.9,
}


def rate(step: int, total: int, warmup: float, schedule: str = "cosine") -> float:
    """Linear warm-up, then down to zero; a pure function of the step, so that nothing of it needs saving."""
    warm = max(1, round(total * warmup))
    return (
        (step + 1) / warm
        if step < warm
        else SCHEDULES[schedule]((step - warm) / max(1, total - warm))
    )


def optimiser_for(groups: list[dict], settings: Train = Train()) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        optimiser = torch.optim.SGD(
            groups, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
        )
        if settings.momentum:  # torch leaves it unset where the first step is left out, and cannot step parameters with and without it together
            for p in (p for group in groups for p in group["params"]):
                optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimiser
    return torch.optim.AdamW(groups, fused=True)
