"""The training loop, step by step: what train runs and bench times. Nothing waits for the GPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader

from src.core.device import autocast
from src.core.settings import Train
from src.training.batches import EpochSampler

Tensors = dict[str, torch.Tensor]


class Loop:
    """A network and everything that moves with it: optimiser, loss scaler, averaged weights.

    net: a parts.network.Network. loss: (output, target) -> {"loss": …, its terms}.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensors, Tensors], Tensors],
        sampler: EpochSampler,
        loader: DataLoader,
        settings: Train,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.net, self.loss, self.sampler, self.loader = net, loss, sampler, loader
        self.settings, self.device, self.dtype = settings, device, dtype
        self.forward = torch.compile(net) if settings.compile else net
        encoder_lr = settings.lr / 3 if settings.encoder_lr is None else settings.encoder_lr
        groups = net.parameter_groups(settings.lr, encoder_lr, settings.weight_decay)
        self.optimiser = optimiser_for(groups, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        # what is validated and kept: the averaged weights, or the network itself without averaging
        self.ema = copy.deepcopy(net).eval().requires_grad_(False) if settings.ema else net
        pairs = list(zip(self.ema.state_dict().values(), net.state_dict().values()))
        self.averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        self.statistics = [b for b in net.buffers() if b.is_floating_point()]  # BatchNorm's
        # of this epoch: the sum of each loss term, and the number of steps skipped
        self.sums: Tensors = {}
        # steps skipped in a row, and that number as far as the GPU has got: reading it never waits
        self.bad_in_a_row = torch.zeros((), device=device)
        self.bad_so_far = torch.zeros((), pin_memory=device.type == "cuda")

    def steps(
        self, epoch: int, first: int = 0, sums: dict[str, float] | None = None
    ) -> Iterator[torch.Tensor]:
        """One epoch from step `first` on; `sums`: of the steps before it. Yields after each step
        whether it was taken, a bool on the device."""
        self.sums = {k: torch.tensor(v, device=self.device) for k, v in (sums or {}).items()}
        self.net.train()
        self.net.freeze(self.settings, epoch)
        self.sampler.set_epoch(epoch, first)
        batches = iter(self.loader)
        total = self.sampler.steps * self.settings.epochs
        for step in range(epoch * self.sampler.steps + first, (epoch + 1) * self.sampler.steps):
            for group in self.optimiser.param_groups:
                group["lr"] = group["base_lr"] * lr_factor(step, total, self.settings)
            finite = torch.ones((), dtype=torch.bool, device=self.device)
            statistics = self.flat_statistics()
            for _ in range(self.sampler.accumulate):
                finite &= self.backward(*next(batches))
            finite = self.update(finite)
            self.keep_statistics(finite, statistics)
            self.update_ema(step)
            self.add("skipped", ~finite)
            self.bad_in_a_row = (self.bad_in_a_row + 1) * ~finite
            self.bad_so_far.copy_(self.bad_in_a_row, non_blocking=True)
            yield finite

    def backward(self, images: torch.Tensor, target: Tensors) -> torch.Tensor:
        """Gradients of one batch; returns whether its loss is finite."""
        images = images.to(self.device, non_blocking=True)
        target = {k: v.to(self.device, non_blocking=True) for k, v in target.items()}
        with autocast(self.device, self.dtype):
            output = self.forward(images)
        losses = self.loss(output, target)
        self.scaler.scale(losses["loss"] / self.sampler.accumulate).backward()
        for name, value in losses.items():
            self.add(name, torch.nan_to_num(value.detach()) / self.sampler.accumulate)
        return torch.isfinite(losses["loss"].detach())

    def update(self, finite: torch.Tensor) -> torch.Tensor:
        """One optimiser step, skipped on the device itself where loss or gradients are not finite.
        Returns whether it was taken.

        The fused optimisers read `found_inf` as GradScaler sets it; here it is set for bfloat16
        and float32 too.
        """
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(
            self.net.parameters(), self.settings.clip or math.inf, foreach=True
        )
        if self.scaler.is_enabled():  # float16 tries scales that overflow: not a fault of the loss
            self.scaler.step(self.optimiser)
            self.scaler.update()
        else:
            finite = finite & torch.isfinite(norm)
            self.optimiser.found_inf, self.optimiser.grad_scale = (~finite).float(), None
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return finite

    def flat_statistics(self) -> torch.Tensor:
        """BatchNorm's running statistics, all in one tensor: hundreds of small ones would cost a
        GPU more than the step itself."""
        flat = [b.flatten() for b in self.statistics]
        return torch.cat(flat) if flat else torch.empty(0, device=self.device)

    def keep_statistics(self, finite: torch.Tensor, before: torch.Tensor) -> None:
        """Undo what a skipped step did to BatchNorm: one forward pass that overflows spoils its
        running statistics for good."""
        if self.statistics:
            sizes = [b.numel() for b in self.statistics]
            kept = torch.where(finite, self.flat_statistics(), before).split(sizes)
            values = [k.view_as(b) for k, b in zip(kept, self.statistics)]
            torch._foreach_copy_(self.statistics, values)

    # timm's ModelEmaV3 interpolates alike, but builds both state_dicts in every step and copies the
    # counters one by one, and its warm-up is another: (1 − (1 + step)^-2/3) in place of this one.
    @torch.no_grad()
    def update_ema(self, step: int) -> None:
        """ema ← d·ema + (1−d)·net over weights and BatchNorm statistics. d grows from 0.1 to
        train.ema, so that the start is forgotten."""
        if self.settings.ema:
            decay = min(self.settings.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(*map(list, zip(*self.averaged)), 1 - decay)
            if self.counters:
                torch._foreach_copy_(*map(list, zip(*self.counters)))

    def add(self, name: str, value: torch.Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0) + value.float()

    def is_finite(self) -> bool:
        """Whether every weight and statistic of the network is a finite number."""
        values = self.net.state_dict().values()
        return all(torch.isfinite(v).all() for v in values if v.is_floating_point())


# the share of the learning rate at a share t of the steps after the warm-up
SCHEDULES = {
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "poly": lambda t: (1 - t) ** 0.9,
}


def lr_factor(step: int, total: int, settings: Train) -> float:
    """The learning rate of a step as a share of the highest: linear warm-up over train.warmup of
    the `total` steps, then down to zero. A pure function, so that nothing of it needs saving."""
    warm = max(1, round(total * settings.warmup))
    if step < warm:
        return (step + 1) / warm
    return SCHEDULES[settings.schedule]((step - warm) / max(1, total - warm))


def optimiser_for(groups: list[dict], settings: Train) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov's momentum, of Network.parameter_groups."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    momentum = settings.momentum
    optimiser = torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=True)
    if momentum:
        # torch leaves it unset where the first step is skipped, and cannot step parameters with and
        # without it together
        for group in groups:
            for p in group["params"]:
                optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimiser
