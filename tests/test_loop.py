"""The training loop by hand: batches, skipped steps, learning rates, accumulation, averaging,
number formats, frozen parts, and what a resumed loop goes on with."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import refused
from torch import nn

from src.core.device import AUTO_AMP, amp_dtype, has_kernels, pick_device
from src.core.settings import Experiment, Loss, Train
from src.parts import augment, losses
from src.parts.network import Network
from src.stages.train import out_of_patience
from src.training import runlog
from src.training.batches import EpochSampler, ImageDataset, make_loader
from src.training.checkpoint import load_checkpoint, restore, save_checkpoint
from src.training.loop import Loop, lr_factor, optimiser_for

CPU = torch.device("cpu")
SIZE = 32
LABELS = np.arange(12, dtype=np.float32)[:, None]
ALIKE = losses.Frequencies(torch.ones(3) / 3)


# ------------------------------------------------------------------------------------- batches


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
    """Never leaves an image as it is, so that two equal images are a repetition."""
    turned = [augment.A.Affine(rotate=(-90, 90), p=1)]
    monkeypatch.setitem(augment.AUGMENTS, "turned", lambda: turned)


def loader_of(store, workers: int, seed: int = 0):
    sampler = EpochSampler(12, 4, 1, seed, 0)
    dataset = ImageDataset(*store, np.arange(12), LABELS, augment.build("turned"))
    return sampler, make_loader(dataset, sampler, workers, CPU)


def epoch_of(store, workers: int, epoch: int, step: int = 0, seed: int = 0) -> list[torch.Tensor]:
    sampler, loader = loader_of(store, workers, seed)
    sampler.set_epoch(epoch, step)
    return [
        torch.cat([images.flatten(1), target["label"].to(torch.uint8)], 1)
        for images, target in loader
    ]


def test_augmentations_differ_within_an_epoch_and_across_workers_and_epochs(store):
    """Also where the workers live on from one epoch to the next."""
    sampler, loader = loader_of(store, 2)
    seen = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        seen += [images.flatten(1) for images, _ in loader]
    assert len(torch.unique(torch.cat(seen), dim=0)) == 24


def test_augmentations_repeat_across_runs_and_do_not_depend_on_the_number_of_workers(store):
    runs = [torch.cat(epoch_of(store, workers, 3)) for workers in (0, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], torch.cat(epoch_of(store, 0, 3, seed=1)))


def test_an_epoch_goes_on_in_the_middle(store):
    whole, rest = epoch_of(store, 0, 2), epoch_of(store, 0, 2, step=1)
    assert len(rest) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], rest))


def test_an_epoch_goes_on_in_the_middle_of_accumulated_batches():
    whole, rest = EpochSampler(20, 2, 3, 0, 0), EpochSampler(20, 2, 3, 0, 0)
    whole.set_epoch(1)
    rest.set_epoch(1, first_step=2)
    assert (whole.steps, len(whole), len(rest)) == (3, 9, 3)
    assert list(whole)[6:] == list(rest)


def test_every_image_once_an_epoch_and_no_partial_batch():
    sampler = EpochSampler(11, 4, 1, 0, 0)
    sampler.set_epoch(0)
    drawn = [i for batch in sampler for i, _ in batch]
    assert len(drawn) == 8 == len(set(drawn))
    assert sampler.steps == 2
    assert EpochSampler(3, 8, 1, 0, 0).steps == 1, "a fold smaller than a batch is one batch"


# ---------------------------------------------------------------------------------------- steps


class Body(nn.Module):
    """An encoder with a norm layer, and two heads."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.BatchNorm2d(2))
        self.mask, self.label = nn.Conv2d(2, 1, 1), nn.Linear(2, 3)
        self.dropout = nn.Dropout(0.5)
        self.spoilt, self.seen = False, []

    def forward(self, images):
        features = self.encoder(images * (float("inf") if self.spoilt else 1))
        self.seen.append(features.dtype)
        label = self.label(self.dropout(features.mean((2, 3))))
        return {"mask": self.mask(features), "label": label}


def total(output, target):
    return losses.total(output, target, ALIKE, Loss())


def make_loop(dtype=torch.float32, loss=total, batch=4, accumulate=1, count=8, **settings) -> Loop:
    torch.manual_seed(0)
    net = Network(Body(), [0.5] * 3, [0.25] * 3, Experiment())
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8))
    masks, labels = torch.ones(count, 1, 8, 8, dtype=torch.uint8), torch.eye(3)[[0] * count]
    batches = [
        (images[i : i + batch], {"mask": masks[i : i + batch], "label": labels[i : i + batch]})
        for i in range(0, count, batch)
    ]
    defaults = {"epochs": 2, "clip": 0.0, "ema": 0.9, "lr": 1e-2, "warmup": 0}
    sampler = EpochSampler(count, batch, accumulate, 0, 0)
    return Loop(net, loss, sampler, batches, Train(**defaults | settings), CPU, dtype)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(dict(module.state_dict()))


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_whose_loss_is_not_finite_changes_nothing_and_is_counted(dtype):
    broken = lambda output, _: {"loss": output["mask"].float().mean() * float("nan")}
    loop = make_loop(dtype, broken, clip=1.0)
    before = copy.deepcopy(dict(loop.net.named_parameters()))
    assert not any(loop.steps(0))
    assert loop.sums["skipped"].item() == loop.bad_so_far == 2
    assert equal(before, dict(loop.net.named_parameters()))
    assert all(torch.isfinite(v).all() for v in loop.ema.state_dict().values())


def test_bad_steps_are_counted_in_a_row_only_and_from_epoch_to_epoch():
    factors = iter([math.nan, math.nan, 1.0, math.nan, math.nan, math.nan])
    loss = lambda output, _: {"loss": output["mask"].float().mean() * next(factors)}
    loop = make_loop(loss=loss, count=12)
    counts = [loop.bad_so_far.item() for epoch in (0, 1) for _ in loop.steps(epoch)]
    assert counts == [1, 2, 0, 1, 2, 3]
    assert loop.sums["skipped"].item() == 3, "the sum is of this epoch alone"


def test_a_forward_pass_that_overflows_leaves_no_trace_in_the_statistics():
    loop = make_loop()
    norm, steps = loop.net.body.encoder[1], loop.steps(0)
    loop.net.body.spoilt = True
    assert not next(steps)
    assert torch.equal(norm.running_mean, torch.zeros(2))
    loop.net.body.spoilt = False
    assert next(steps)
    assert loop.is_finite()
    assert norm.running_mean.abs().min() > 0
    assert torch.isfinite(loop.ema.body.encoder[1].running_mean).all()


def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped_too():
    # the derivative of sqrt at 0 is infinite
    steep = lambda output, _: {"loss": (output["mask"].float() * 0).sum().sqrt()}
    loop = make_loop(loss=steep)
    before = snapshot(loop.net.body.mask)
    assert not any(loop.steps(0))
    assert equal(before, snapshot(loop.net.body.mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_good_step_is_taken_in_every_number_format(dtype):
    """The network computes in it; weights, loss and what is summed stay float32."""
    loop = make_loop(dtype)
    before = snapshot(loop.net)
    assert all(loop.steps(0))
    assert loop.net.body.seen == [dtype] * 2
    assert loop.scaler.is_enabled() == (dtype == torch.float16)
    assert not equal(before, snapshot(loop.net))
    assert {p.dtype for p in loop.net.parameters()} == {torch.float32}
    assert {v.dtype for v in loop.sums.values()} == {torch.float32}


def test_float16_tries_a_smaller_scale_where_gradients_overflow():
    """That is how a scale is found, and not a fault of the loss: it does not count as skipped."""
    loop = make_loop(
        torch.float16, lambda output, _: {"loss": 1e36 * output["mask"].mean().float()}
    )
    before, scale = copy.deepcopy(dict(loop.net.named_parameters())), loop.scaler.get_scale()
    assert all(loop.steps(0))
    assert loop.sums["skipped"].item() == 0
    assert loop.scaler.get_scale() == scale / 4
    assert equal(before, dict(loop.net.named_parameters()))


def without_norm_and_dropout(loop: Loop) -> Loop:
    """BatchNorm sees the batch's size, and dropout draws by batch: both off."""
    loop.net.body.encoder[1].eval()
    loop.net.body.dropout.p = 0.0
    loop.net.train = lambda mode=True: loop.net
    return loop


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_accumulated_batches_are_one_large_batch(clip):
    """BCE and cross-entropy are means over images, so two batches of four are one of eight: the
    same gradient is clipped, the same weights are averaged, the same loss is reported. By plain
    SGD: AdamW would hide a gradient that is twice as long."""
    means = lambda output, target: losses.total(output, target, ALIKE, Loss(mask={"bce": 1}))
    plain = {"loss": means, "optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "clip": clip}
    small = without_norm_and_dropout(make_loop(batch=4, accumulate=2, **plain))
    large = without_norm_and_dropout(make_loop(batch=8, accumulate=1, **plain))
    for loop in (small, large):
        assert len(list(loop.steps(0))) == 1
    for one, other in ((small.net, large.net), (small.ema, large.ema)):
        for name, value in one.state_dict().items():
            assert torch.allclose(value, other.state_dict()[name], atol=1e-6), name
    assert small.sums["loss"].item() == pytest.approx(large.sums["loss"].item(), rel=1e-5)


def test_the_gradient_is_clipped_to_its_norm():
    """Plain SGD moves by rate × gradient: by rate × clip where the gradient is longer."""
    plain = {"optimizer": "sgd", "momentum": 0.0, "encoder_lr": 0.01, "weight_decay": 0.0}
    moved = {}
    for clip in (0.0, 1e-3):
        loop = make_loop(clip=clip, lr=0.01, epochs=1, count=4, **plain)
        before = snapshot(loop.net)
        assert all(loop.steps(0))
        changes = [(p - before[name]).flatten() for name, p in loop.net.named_parameters()]
        moved[clip] = torch.cat(changes).norm().item()
    assert moved[1e-3] == pytest.approx(0.01 * 1e-3, rel=1e-3)
    assert moved[0.0] > 10 * moved[1e-3]


def no_gradient(output, _):
    return {"loss": 0.0 * (output["mask"].float().sum() + output["label"].float().sum())}


def test_weights_decay_but_not_biases_and_norms_each_by_its_own_rate():
    """Without a gradient, AdamW multiplies by 1 − rate × decay (Loshchilov & Hutter 2019)."""
    loop = make_loop(loss=no_gradient, lr=0.1, encoder_lr=0.02, weight_decay=0.5, count=4, epochs=1)
    before = snapshot(loop.net)
    assert all(loop.steps(0))
    for name, p in loop.net.named_parameters():
        rate = 0.02 if "encoder" in name else 0.1
        factor = 1 - rate * 0.5 if p.ndim > 1 else 1.0
        assert torch.allclose(p, factor * before[name]), name


def test_the_encoder_learns_at_a_third_of_the_rate_unless_another_is_set():
    for settings, wanted in (({}, 0.01), ({"encoder_lr": 0.5}, 0.5), ({"encoder_lr": 0.0}, 0.0)):
        loop = make_loop(lr=0.03, **settings)
        rates = {id(p): g["base_lr"] for g in loop.optimiser.param_groups for p in g["params"]}
        for name, p in loop.net.named_parameters():
            assert rates[id(p)] == pytest.approx(wanted if "encoder" in name else 0.03), name


@pytest.mark.parametrize("freeze", ["encoder", 1])
def test_a_frozen_encoder_stays_as_it_was_until_it_is_unfrozen(freeze, monkeypatch):
    """Its weights by gradient and by decay, and the running statistics of its norm layers."""
    stage = {"0.weight", "0.bias", "1.weight", "1.bias"}
    monkeypatch.setattr(Network, "freezable", lambda self, which: stage)
    loop = make_loop(freeze=freeze, unfreeze_at=1, weight_decay=0.5, epochs=2)
    before, head = snapshot(loop.net.body.encoder), snapshot(loop.net.body.mask)
    assert all(loop.steps(0))
    after = snapshot(loop.net.body.encoder)
    assert equal(before, after)
    assert not equal(head, snapshot(loop.net.body.mask))
    assert all(loop.steps(1))
    changed = {
        k for k, v in snapshot(loop.net.body.encoder).items() if not torch.equal(v, after[k])
    }
    assert changed == set(after), "all is trained from epoch unfreeze_at on"


def test_ema_by_hand():
    """ema ← d·ema + (1−d)·net after every step, d = (1 + step) / (10 + step) up to train.ema; the
    counter of batches is copied. The step counts on from epoch to epoch."""
    loop = make_loop(ema=0.3)
    wanted = {k: v.double() for k, v in snapshot(loop.ema).items()}
    for epoch in (0, 1):
        for number, _ in enumerate(loop.steps(epoch), epoch * 2):
            decay = [1 / 10, 2 / 11, 3 / 12, 0.3][number]
            for name, value in loop.net.state_dict().items():
                wanted[name] = decay * wanted[name] + (1 - decay) * value.double()
                average = loop.ema.state_dict()[name]
                if value.is_floating_point():
                    assert torch.allclose(average.double(), wanted[name], atol=1e-6), name
                else:
                    assert average == value == number + 1
    assert not loop.ema.training
    assert not any(p.requires_grad for p in loop.ema.parameters())


def test_without_averaging_the_network_itself_is_kept():
    loop = make_loop(ema=0.0)
    assert loop.ema is loop.net
    assert all(loop.steps(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_loop_resumed_in_the_middle_of_an_epoch_ends_bit_identical(dtype, optimizer, tmp_path):
    """Weights, averages, momenta, the scale, what dropout draws, and the sums of the epoch."""
    settings = {"optimizer": optimizer, "accumulate": 2, "count": 24, "clip": 1.0}
    straight = make_loop(dtype, **settings)
    for epoch in (0, 1):
        list(straight.steps(epoch))
    stopped = make_loop(dtype, **settings)
    list(stopped.steps(0))
    next(stopped.steps(1))
    state = {"epoch": 1, "step": 1, "history": [{"score": 0.5}], "best": 0.5, "bad": 0.0}
    state["sums"] = {name: value.item() for name, value in stopped.sums.items()}
    save_checkpoint(tmp_path / "last.pt", stopped, state)
    torch.manual_seed(99)
    resumed = make_loop(dtype, **settings)
    resumed.loader = resumed.loader[2:]  # what the sampler would do
    saved = load_checkpoint(tmp_path / "last.pt")
    again = restore(saved, resumed, tmp_path / "last.pt", 0)
    assert again == state
    list(resumed.steps(1, again["step"], again["sums"]))
    assert equal(snapshot(straight.net), snapshot(resumed.net))
    assert equal(snapshot(straight.ema), snapshot(resumed.ema))
    assert straight.scaler.state_dict() == resumed.scaler.state_dict()
    assert equal(straight.sums, resumed.sums)
    for p, q in zip(straight.net.parameters(), resumed.net.parameters()):
        assert equal(straight.optimiser.state[p], resumed.optimiser.state[q])


# -------------------------------------------------------------------------------- rates, patience


@pytest.mark.parametrize(
    "schedule, at",
    [
        ("cosine", {10: 1.0, 40: 0.75, 55: 0.5, 70: 0.25, 99: 0.00030460}),
        ("poly", {10: 1.0, 40: (2 / 3) ** 0.9, 55: 0.5**0.9, 70: (1 / 3) ** 0.9, 99: 90**-0.9}),
    ],
)
def test_the_rate_warms_up_and_falls_by_hand(schedule, at):
    """100 steps, the first ten of them warm-up; cosine: (1 + cos πt) / 2; poly: (1 − t)^0.9."""
    settings = Train(warmup=0.1, schedule=schedule)
    rates = [lr_factor(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert {step: rates[step] for step in at} == pytest.approx(at, rel=1e-4)
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))


def test_every_group_follows_the_rate_of_the_whole_training():
    """Two epochs of two steps are four steps of one schedule."""
    loop = make_loop(lr=0.03, warmup=0.5)
    seen = [
        {group["lr"] for group in loop.optimiser.param_groups}
        for epoch in (0, 1)
        for _ in loop.steps(epoch)
    ]
    factors = [0.5, 1.0, 1.0, 0.5]
    assert [sorted(rates) for rates in seen] == [
        pytest.approx([0.01 * f, 0.03 * f]) for f in factors
    ]


@pytest.mark.parametrize(
    "scores, patience, over",
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.4], 1, True),
        ([0.5, 0.4], 2, False),
        ([0.5, 0.5, 0.5], 2, True),
        ([0.1, 0.2, 0.15, 0.3], 1, False),
        ([0.9, 0.1, 0.1, 0.1], 0, False),
    ],
)
def test_patience_counts_epochs_since_the_first_best(scores, patience, over):
    assert out_of_patience([{"score": score} for score in scores], patience) == over


def test_momentum_begins_at_zero_though_the_first_step_is_left_out_and_some_are_frozen():
    """float16 often skips the first step, and torch would go on from memory that nobody wrote."""
    settings = Train(optimizer="sgd", momentum=0.9, lr=1e-2)
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimiser = optimiser_for([{"params": parameters, "lr": 1e-2, "weight_decay": 0.0}], settings)
    for found_inf, trained in ((1.0, 1), (0.0, 1), (0.0, 2)):  # skipped; the second frozen; both
        for p in parameters[:trained]:
            p.grad = torch.ones(3)
        optimiser.found_inf, optimiser.grad_scale = torch.tensor(found_inf), None
        optimiser.step()
    moved = lambda buffer: 1e-2 * (1 + 0.9 * buffer)  # Nesterov: gradient + m · buffer
    assert torch.allclose(parameters[0], torch.ones(3) - moved(1) - moved(1.9))
    assert torch.allclose(parameters[1], torch.ones(3) - moved(1))


# ---------------------------------------------------------------------------------- clock, device


@pytest.mark.parametrize("hint", ["", "  there is configs/cpu.yaml"])
def test_the_clock_tells_fold_and_plan_once_and_gives_the_hint(hint, monkeypatch, capsys):
    now = iter(range(0, 10**6, 600))
    monkeypatch.setattr(runlog.time, "time", lambda: next(now))
    job = SimpleNamespace(folds_left=3)
    clock = runlog.Clock(job, steps=30, epochs=4, epochs_done=1, hint=hint)
    for _ in range(30):
        clock.tick()
    printed = capsys.readouterr().out
    assert "for all 3 folds" in printed
    assert printed.count("an epoch") == 1
    assert ("configs/cpu.yaml" in printed) == bool(hint)


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


def test_binaries_run_on_newer_minor_versions_and_ptx_on_all_newer_gpus():
    built = ["sm_75", "sm_80", "sm_90"]
    assert all(has_kernels(gpu, built) for gpu in ((7, 5), (8, 6)))
    assert not any(has_kernels(gpu, built) for gpu in ((6, 0), (7, 0), (10, 0)))
    assert has_kernels((12, 0), ["compute_90"])


@pytest.mark.parametrize("numbers", ["float32", "bfloat16", "float16"])
def test_the_environment_says_what_auto_means(numbers, monkeypatch):
    assert amp_dtype("auto", CPU) in (torch.bfloat16, torch.float32)
    assert amp_dtype(numbers, CPU) == getattr(torch, numbers)
    monkeypatch.setenv(AUTO_AMP, numbers)
    assert amp_dtype("auto", CPU) == getattr(torch, numbers)
    assert amp_dtype("float32", CPU) == torch.float32, "what is typed wins"
    monkeypatch.setenv(AUTO_AMP, "int7")
    with refused("invalid_value", "int7", AUTO_AMP, "float32, bfloat16, float16"):
        amp_dtype("auto", CPU)
