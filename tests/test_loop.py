"""The training loop's parts: order and seeds of samples, skipped steps, EMA, rates, accumulation, number formats."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import refused
from torch import nn

from src.core.console import InputError
from src.core.device import AUTO_AMP, amp_dtype, has_kernels, pick_device
from src.core.settings import Loss, Train
from src.parts import augment, losses
from src.training.batches import EpochSampler, Images, loader
from src.training.loop import Loop, ema_pairs, optimiser_for, rate, update_ema
from src.training.runlog import BadSteps

CPU = torch.device("cpu")
SIZE = 32
LABELS = np.arange(12, dtype=np.float32)[:, None]
ALIKE = losses.Frequencies(torch.ones(3) / 3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Twelve images, all alike: whatever differs in a batch, augmentation did."""
    folder = tmp_path_factory.mktemp("store")
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    np.save(folder / "images.npy", np.stack([image] * 12))
    np.save(folder / "masks.npy", np.zeros((12, SIZE, SIZE), np.uint8))
    return folder / "images.npy", folder / "masks.npy"


@pytest.fixture(autouse=True)
def always_something(monkeypatch):
    """A set that never leaves an image as it is, so that two equal images are a repetition."""
    monkeypatch.setitem(
        augment.AUGMENTS, "turned", lambda: [augment.A.Affine(rotate=(-90, 90), p=1)]
    )


def epoch_of(store, workers: int, epoch: int, step: int = 0, seed: int = 0) -> list[torch.Tensor]:
    plan = EpochSampler(12, 4, 1, seed, 0)
    batches = loader(
        Images(*store, np.arange(12), LABELS, augment.build("turned")), plan, workers, CPU
    )
    plan.set_epoch(epoch, step)
    return [
        torch.cat([images.flatten(1), target["label"].to(torch.uint8)], 1)
        for images, target in batches
    ]


def test_augmentations_differ_within_an_epoch_and_across_workers_and_epochs(store):
    first, second = (
        torch.cat(epoch_of(store, 2, 0))[:, :-1],
        torch.cat(epoch_of(store, 2, 1))[:, :-1],
    )
    assert len(torch.unique(torch.cat([first, second]), dim=0)) == 24, (
        "two workers or two epochs drew the same augmentation"
    )


def test_augmentations_repeat_across_runs_and_do_not_depend_on_the_number_of_workers(store):
    runs = [torch.cat(epoch_of(store, workers, 3)) for workers in (0, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], torch.cat(epoch_of(store, 0, 3, seed=1)))


def test_an_epoch_goes_on_in_the_middle(store):
    whole, rest = epoch_of(store, 0, 2), epoch_of(store, 0, 2, step=1)
    assert len(rest) == 2 and all(torch.equal(a, b) for a, b in zip(whole[1:], rest))


def test_persistent_workers_get_each_epoch_anew(store):
    plan = EpochSampler(12, 4, 1, 0, 0)
    batches = loader(Images(*store, np.arange(12), LABELS, augment.build("turned")), plan, 1, CPU)
    seen = []
    for epoch in range(2):
        plan.set_epoch(epoch, 0)
        seen.append(torch.cat([images for images, _ in batches]))
    assert not torch.equal(seen[0], seen[1])


def test_every_image_once_an_epoch_and_no_partial_batch():
    plan = EpochSampler(11, 4, 1, 0, 0)
    plan.set_epoch(0, 0)
    drawn = [i for batch in plan for i, _ in batch]
    assert len(drawn) == 8 == len(set(drawn)) and plan.steps == 2
    assert EpochSampler(3, 8, 1, 0, 0).steps == 1, "a fold smaller than a batch is one batch"


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.mask, self.label, self.norm = (
            nn.Conv2d(1, 1, 3, padding=1),
            nn.Linear(1, 3),
            nn.BatchNorm2d(1),
        )
        self.spoilt = False

    def forward(self, images):
        images = self.norm(images.float() / 255 * (float("inf") if self.spoilt else 1))
        return {"mask": self.mask(images), "label": self.label(images.mean((2, 3)))}


def make_loop(accumulate=1, batch=4, dtype=torch.float32, loss=None, clip=0.0, count=8) -> Loop:
    torch.manual_seed(0)
    net = Tiny()
    optimiser = optimiser_for(
        [{"params": list(net.parameters()), "base_lr": 1e-2, "lr": 0.0, "weight_decay": 0.0}]
    )
    random = np.random.default_rng(0)
    data = [
        (
            torch.from_numpy(random.integers(0, 256, (batch, 1, 8, 8), dtype=np.uint8)),
            {
                "mask": torch.ones(batch, 1, 8, 8, dtype=torch.uint8),
                "label": torch.eye(3)[[0] * batch],
            },
        )
        for _ in range(count // batch)
    ]
    settings = Train(
        epochs=2, batch_size=batch, accumulate=accumulate, clip=clip, ema=0.9, lr=1e-2, warmup=0
    )
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    total = lambda output, target: losses.total(output, target, ALIKE, Loss())  # noqa: E731
    return Loop(
        net,
        copy.deepcopy(net),
        optimiser,
        scaler,
        loss or total,
        EpochSampler(count, batch, accumulate, 0, 0),
        data,
        settings,
        CPU,
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_whose_loss_is_not_finite_changes_nothing_and_is_counted(dtype):
    broken = lambda output, target: {"loss": output["mask"].float().mean() * float("nan")}  # noqa: E731
    loop = make_loop(dtype=dtype, loss=broken, clip=1.0)
    before = copy.deepcopy(dict(loop.net.named_parameters()))
    taken = list(loop.steps(0))
    assert not any(taken) and loop.sums["skipped"].item() == 2
    assert all(torch.equal(before[k], v) for k, v in loop.net.named_parameters())
    assert all(torch.isfinite(v).all() for v in loop.ema.state_dict().values())


def test_a_forward_pass_that_overflows_leaves_no_trace_in_the_statistics():
    loop = make_loop()
    steps = loop.steps(0)
    loop.net.spoilt = True
    assert not next(steps)
    assert torch.equal(loop.net.norm.running_mean, torch.zeros(1))
    loop.net.spoilt = False
    assert next(steps) and loop.is_finite() and loop.net.norm.running_mean.item() > 0
    assert torch.isfinite(loop.ema.norm.running_mean).all()


def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped_too():
    steep = lambda output, target: {"loss": (output["mask"].float() * 0).sum().sqrt()}  # noqa: E731  (the derivative of sqrt at 0 is infinite)
    loop = make_loop(loss=steep)
    before = copy.deepcopy(loop.net.mask.state_dict())
    assert not any(loop.steps(0))
    assert all(torch.equal(before[k], v) for k, v in loop.net.mask.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_good_step_is_taken_in_every_number_format(dtype):
    loop = make_loop(dtype=dtype)
    before = copy.deepcopy(loop.net.state_dict())
    for _ in loop.steps(0):
        pass
    assert loop.sums["skipped"].item() == 0
    assert any(not torch.equal(before[k], v) for k, v in loop.net.state_dict().items())


def test_accumulated_batches_are_one_large_batch():
    """BCE and cross-entropy are means over images, so two batches of four are one of eight."""
    settings = Loss(mask={"bce": 1})
    means = lambda output, target: losses.total(output, target, ALIKE, settings)  # noqa: E731
    small, large = (
        make_loop(accumulate=2, batch=4, loss=means),
        make_loop(accumulate=1, batch=8, loss=means),
    )
    for loop in (small, large):
        loop.net.norm = nn.Identity()  # BatchNorm does see the batch's size
        loop.statistics = []
        loop.ema.norm, loop.averaged = nn.Identity(), (([], []), ([], []))
        loop.settings.ema = 0
    large.batches = [
        (
            torch.cat([i for i, _ in small.batches]),
            {k: torch.cat([t[k] for _, t in small.batches]) for k in ("mask", "label")},
        )
    ]
    for loop in (small, large):
        assert len(list(loop.steps(0))) == 1
    for k, v in small.net.named_parameters():
        assert torch.allclose(v, dict(large.net.named_parameters())[k], atol=1e-6)


def test_ema_is_the_average_it_says():
    net, ema = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    net.running_mean.fill_(1.0)
    net.num_batches_tracked.fill_(7)
    update_ema(ema_pairs(ema, net), 0.9, step=10**6)
    assert torch.allclose(ema.running_mean, torch.full((2,), 0.1)) and ema.num_batches_tracked == 7
    update_ema(ema_pairs(ema, net), 0.9, step=0)  # early on the decay is small: (1+0)/(10+0)
    assert torch.allclose(ema.running_mean, torch.full((2,), 0.1 * 0.1 + 0.9))


def test_the_rate_warms_up_and_ends_at_zero():
    rates = [rate(s, 100, 0.1) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in zip(rates[10:], rates[11:])) and rates[-1] < 0.001


def test_bad_steps_are_counted_in_a_row_only():
    bad = BadSteps(CPU, 0, 3)
    assert [
        bad.too_many(torch.tensor(fine)) for fine in (False, False, True, False, False, False)
    ] == [False] * 5 + [True]
    assert BadSteps(CPU, 2, 3).too_many(torch.tensor(False)), "the count goes on after a resume"


def test_a_gpu_without_kernels_is_refused_by_name(monkeypatch):
    for name, value in (
        ("is_available", True),
        ("get_device_name", "Tesla P100"),
        ("get_device_capability", (6, 0)),
        ("get_arch_list", ["sm_75", "sm_90"]),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    with refused("gpu_not_supported", "Tesla P100", "CUDA_VISIBLE_DEVICES=-1"):
        pick_device()


def test_the_clock_tells_fold_and_plan_and_names_the_small_config_on_a_cpu(monkeypatch, capsys):
    from src.training import runlog

    now = iter(range(0, 10**6, 600))
    monkeypatch.setattr(runlog.time, "time", lambda: next(now))
    job = SimpleNamespace(folds_left=3, name="large")
    clock = runlog.Clock(job, steps=30, epochs=4, epochs_done=1, device=CPU)
    for _ in range(30):
        clock.tick()
    said = capsys.readouterr().out
    assert (
        "an epoch" in said
        and "for all 3 folds" in said
        and "configs/cpu.yaml" in said
        and said.count("an epoch") == 1
    )


def test_amp_can_be_set_and_a_gpu_without_kernels_is_known():
    assert amp_dtype("float16", CPU) == torch.float16 and amp_dtype("auto", CPU) in (
        torch.bfloat16,
        torch.float32,
    )
    built = ["sm_75", "sm_80", "sm_90"]
    assert (
        has_kernels((7, 5), built)
        and has_kernels((8, 6), built)
        and not has_kernels((6, 0), built)
        and not has_kernels((7, 0), built)
    )
    assert has_kernels((12, 0), ["compute_90"]) and not has_kernels((10, 0), built)


@pytest.mark.parametrize("numbers", ["float32", "bfloat16", "float16"])
def test_the_environment_says_what_auto_means(numbers, monkeypatch):
    monkeypatch.setenv(AUTO_AMP, numbers)
    assert amp_dtype("auto", CPU) == getattr(torch, numbers)
    assert amp_dtype("float32", CPU) == torch.float32, "what is typed wins"
    monkeypatch.setenv(AUTO_AMP, "int7")
    with pytest.raises(InputError) as raised:
        amp_dtype("auto", CPU)
    assert raised.value.code == "invalid_value"
    assert (
        str(raised.value)
        == f"no such number format: int7 (environment variable {AUTO_AMP}). Take float32, bfloat16, float16, or unset it"
    )


def test_momentum_begins_at_zero_though_the_first_step_is_left_out_and_some_are_frozen():
    """float16 often leaves out the first step, and torch would go on from memory that nobody wrote."""
    settings = Train(optimizer="sgd", momentum=0.9, lr=1e-2)
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimiser = optimiser_for([{"params": parameters, "lr": 1e-2, "weight_decay": 0.0}], settings)
    for found_inf, trained in ((1.0, 1), (0.0, 1), (0.0, 2)):  # left out; the second frozen; both
        for p in parameters[:trained]:
            p.grad = torch.ones(3)
        optimiser.found_inf, optimiser.grad_scale = torch.tensor(found_inf), None
        optimiser.step()
    step = lambda buffer: 1e-2 * (1 + 0.9 * buffer)  # noqa: E731  (Nesterov: gradient + momentum · buffer)
    assert torch.allclose(parameters[0], torch.ones(3) - step(1) - step(1.9)) and torch.allclose(
        parameters[1], torch.ones(3) - step(1)
    )
