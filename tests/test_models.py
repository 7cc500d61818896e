"""Networks: every name learns, is saved and comes back; heads and tasks, freezing, image sizes, and
what MONAI's networks need to work here."""

from __future__ import annotations

import copy
import functools
import io

import pytest
import torch
from conftest import ROOT, refused
from torch import nn

from src.config.load import load
from src.core.console import InputError
from src.core.settings import Experiment, Loss, Model, Train
from src.parts import building, losses, models
from src.parts.check import check
from src.parts.fitted import FITTED
from src.parts.heads import HEADS
from src.parts.network import Network, encoder_stages, parameters_behind
from src.training.loop import optimiser_for

CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.name != "competition.yaml")
ALIKE = losses.Frequencies(torch.tensor([1.0, 1.0, 1.0]) / 3)
# the least that each can be tried with; everything else at 32 pixels
SIZES = {"swin_unetr": 64, "pan": 128}
SETTINGS = {
    "dpt": {"encoder": "tu-vit_tiny_patch16_224"},
    "unetr": {"options": {"hidden_size": 48, "num_heads": 2, "mlp_dim": 96}},
    "vnet": {"options": {"dropout_prob_down": 0.1}},
}
SIXTEEN = [
    (arch, encoder)
    for arch in ("unet", "unetplusplus", "fpn", "deeplabv3plus")
    for encoder in ("resnet50", "resnext50_32x4d", "tu-wide_resnet50_2", "efficientnet-b4")
]


def experiment(
    arch: str, size: int = 64, task: str = "both", train: Train | None = None, **settings
) -> Experiment:
    return Experiment(
        task=task,
        image_size=size,
        train=train or Train(),
        model=Model(
            **{"arch": arch, "encoder": "mobilenet_v2", "encoder_weights": "none"}
            | SETTINGS.get(arch, {})
            | settings
        ),
    )


def built(e: Experiment) -> Network:
    torch.manual_seed(0)
    try:
        return building.build(e, 3, pretrained=True)
    except InputError as error:
        if error.code == "no_package":
            pytest.skip(str(error))
        raise


def tried(arch: str) -> Network:
    """A network for both tasks, or for the one that it is for."""
    for task in ("both", "mask", "class"):
        try:
            return built(experiment(arch, SIZES.get(arch, 32), task))
        except InputError as error:
            if arch not in FITTED or error.code != "wrong_answer":
                raise
    raise AssertionError(f"{arch} gives neither masks nor labels")


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.randint(
        0,
        256,
        (count, 1, size, size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(1),
    )


def step(net: Network, dtype: torch.dtype = torch.float32, rate: float = 1e-3) -> dict:
    """One step of training, by the project's own losses and optimiser; the network's output."""
    size = net.image_size
    mask = torch.zeros(2, 1, size, size, dtype=torch.uint8)
    mask[0, :, : size // 2] = 1
    optimiser = optimiser_for(net.parameter_groups(rate, rate, 0.01), Train())
    for group in optimiser.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = net(images(size))
    loss = losses.total(output, {"mask": mask, "label": torch.eye(3)[[0, 2]]}, ALIKE, Loss())[
        "loss"
    ]
    assert torch.isfinite(loss)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    optimiser.step()
    return output


@torch.inference_mode()
def answers(net: Network) -> dict[str, torch.Tensor]:
    return net.eval()(images(net.image_size))


def alike(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ------------------------------------------------------------------------- every name of every dict


@pytest.mark.parametrize("arch", models.MODELS)
def test_every_network_learns_and_comes_back(arch):
    net = tried(arch)
    names = net.state_dict()
    assert len({v.data_ptr() for v in names.values() if v.numel()}) == sum(
        v.numel() > 0 for v in names.values()
    ), "a tensor with two names is averaged twice"
    assert not any(isinstance(m, nn.Dropout3d) for m in net.modules()), "it drops whole images"
    if not hasattr(net.body, "fit"):  # tests/test_fitted.py lets those learn
        output = step(net.train(), torch.bfloat16)
        mask, label = parameters_behind(output["mask"]), parameters_behind(output["label"])
        grown = {id(p) for p in net.parameters() if p.grad is not None and p.grad.any()}
        assert mask - label & grown and label - mask & grown, (
            "both answers have parts of their own, and they learn"
        )
        assert mask & label & grown, "and they share some"
    expected = answers(net)
    shapes = {"mask": (2, 1, net.image_size, net.image_size), "label": (2, 3)}
    assert (
        expected
        and all(v.shape == shapes[k] for k, v in expected.items())
        and (len(expected) == 2 or arch in FITTED)
    )
    assert alike(answers(copy.deepcopy(net)), expected), (
        "train keeps a copy, the average of the weights"
    )
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    again = building.build(experiment(arch, net.image_size, net.task), 3, pretrained=False)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert alike(answers(again), expected)


@pytest.mark.parametrize("arch, encoder", SIXTEEN)
def test_the_sixteen_of_the_lecture_learn_in_float16(arch, encoder):
    """Without a loss scale. Where a CPU's emulation would take too long over the gradients of the
    largest, those are of float32."""
    net = building.build(experiment(arch, 64, encoder=encoder), 3, pretrained=False).train()
    if "wide" in encoder or arch == "unetplusplus" and encoder.startswith("res"):
        with torch.no_grad(), torch.autocast("cpu", torch.float16):
            output = net(images(64))
        assert all(torch.isfinite(v).all() for v in output.values())
    else:
        output = step(net, torch.float16)
    assert set(output) == {"mask", "label"}


def test_nnunet_learns_in_float16():
    step(built(experiment("dynunet", 32)).train(), torch.float16)


@pytest.mark.parametrize(
    "arch, encoder, size",
    [
        ("segformer", "mit_b2", 32),
        ("upernet", "mit_b2", 32),
        ("unet", "tu-convnext_tiny", 32),
        ("upernet", "tu-swin_tiny_patch4_window7_224", 96),
        ("upernet", "tu-swin_tiny_patch4_window7_224", 224),
        ("unet", "tu-maxvit_nano_rw_256", 96),
    ],
)
def test_transformers_take_the_image_size_that_is_asked_for(arch, encoder, size):
    found = answers(built(experiment(arch, size, encoder=encoder)))
    assert found["mask"].shape == (2, 1, size, size) and all(
        torch.isfinite(v).all() for v in found.values()
    )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("arch", ["unet", "dynunet"])
def test_every_head_and_every_task(head, arch):
    whole = built(experiment(arch, 32, head=head))
    for task, answer in (("mask", "mask"), ("class", "label")):
        net = built(experiment(arch, 32, head=head, task=task))
        output = step(net.train())
        assert (
            set(output) - {"deep"} == {answer}
            and set(answers(net)) == {answer}
            and ("deep" in output) == (arch == "dynunet" and task == "mask")
        )
        assert sum(p.numel() for p in net.parameters()) < sum(p.numel() for p in whole.parameters())
        if arch == "unet":
            assert parameters_behind(output[answer]) == {id(p) for p in net.parameters()}, (
                "nothing is left that is of no use"
            )


@functools.cache
def answers_of(settings: str, task: str) -> set[str]:
    """Which answers a network gives; many configs have the same."""
    e = Experiment(image_size=64, task=task, model=Model.model_validate_json(settings))
    return set(answers(building.build(e, 3, pretrained=False)))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_builds_its_network(file):
    config = load(file)
    if not config.study:  # those are checked in tests/test_study.py
        check(config)
    for e in (c.experiment for c in config.experiments):
        if e.task == "both" and (e.model.arch, e.model.encoder) in SIXTEEN:
            continue  # the test above builds those
        expected = {"both": {"mask", "label"}, "mask": {"mask"}, "class": {"label"}}[e.task]
        assert answers_of(e.model.model_dump_json(), e.task) == expected


# ----------------------------------------------------------------------------------- heads, by hand


def test_the_linear_head_is_smps():
    from segmentation_models_pytorch.base import ClassificationHead

    mine, theirs = (
        HEADS["linear"](8, 3, 0.2).eval(),
        ClassificationHead(8, 3, pooling="avg", dropout=0.2).eval(),
    )
    theirs.load_state_dict(mine.state_dict())
    features = torch.randn(2, 8, 4, 5)
    assert torch.equal(mine(features), theirs(features))


def test_attention_weighs_positions():
    head = HEADS["attention"](2, 2, 0.0)
    features = torch.tensor([[[[1.0, 3.0]], [[0.0, 4.0]]]])  # two positions: (1, 0) and (3, 4)
    with torch.no_grad():
        for p in head.parameters():
            p.zero_()
        head.answer[1].weight.copy_(torch.eye(2))
        assert head(features).tolist() == [[2.0, 2.0]], "no scores: the mean"
        head.score[0].weight[0, 1] = 1.0  # tanh(second channel): 0 and tanh(4)
        head.score[2].weight[0, 0] = torch.log(torch.tensor(3.0)) / torch.tanh(
            torch.tensor(4.0)
        )  # odds of 1 to 3
        assert torch.allclose(head(features), torch.tensor([[2.5, 3.0]]))


# ------------------------------------------------------------------------------ what a network sees


def test_grey_and_rgb_images_are_normalised_alike():
    net, grey = built(experiment("unet")).eval(), images(64, 1)
    with torch.inference_mode():
        assert torch.equal(net(grey)["mask"], net(grey.expand(-1, 3, -1, -1))["mask"])


def test_encoder_and_the_rest_have_their_own_rates_and_norms_no_decay():
    net = built(experiment("unet"))
    groups = net.parameter_groups(1e-3, 1e-4, 0.1)
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
    inside = {id(p) for p in net.body.encoder.parameters()}
    for g in groups:
        assert g["base_lr"] == (1e-4 if id(g["params"][0]) in inside else 1e-3)
        assert all((p.ndim > 1) == (g["weight_decay"] > 0) for p in g["params"])


def test_names_that_do_not_exist():
    for wrong, message in (
        ({"arch": "unett"}, "Did you mean unet"),
        ({"head": "atention"}, "Did you mean attention"),
        ({"encoder": "resnet51"}, "Did you mean resnet"),
    ):
        with refused("unknown_part", message):
            building.check(experiment(**{"arch": "unet"} | wrong))
    building.check(experiment("dynunet", encoder="resnet51"))  # it has no encoder of that kind


class Own(nn.Module):
    """A user's network: takes sides that are multiples of 96."""

    def __init__(self, classes: int, encoder: bool):
        super().__init__()
        self.deepest, self.up, self.head = (
            nn.Conv2d(3, 4, 96, 96),
            nn.ConvTranspose2d(4, 1, 96, 96),
            HEADS["linear"](4, classes, 0.0),
        )
        if encoder:
            self.encoder = self.deepest

    def forward(self, x):
        if x.shape[-1] % 96:
            raise RuntimeError("sides must be multiples of 96\nand more of the kind")
        features = self.deepest(x)
        return {"mask": self.up(features), "label": self.head(features)}


def test_a_size_that_a_network_cannot_take_is_said_before_anything_is_downloaded(monkeypatch):
    monkeypatch.setitem(models.MODELS, "own", lambda settings, classes, weights: Own(classes, True))
    monkeypatch.setattr(building, "find_weights", lambda *a: pytest.fail("weights are sought"))
    with refused("bad_image_size", "own", "224", "sides must be multiples of 96 (", "192, 288"):
        building.build(experiment("own", 224, encoder_weights="imagenet"), 3, pretrained=True)
    with refused("bad_network", "1/128", "image_size 64"):
        building.build(
            experiment("dynunet", options={"strides": [1] + [2] * 7}), 3, pretrained=True
        )
    monkeypatch.setitem(models.MODELS, "own", lambda settings, classes, weights: Own(2, True))
    with refused("wrong_answer", "'label'", "(1, 2)", "(1, 3)"):
        building.build(experiment("own", 96), 3, pretrained=True)


def test_a_network_of_ones_own_gets_weights_where_it_has_an_encoder(monkeypatch, tmp_path, capsys):
    torch.save(nn.Conv2d(3, 4, 96, 96).state_dict(), tmp_path / "e.pth")
    for encoder in (True, False):

        def own(settings, classes, weights, encoder=encoder):
            return Own(classes, encoder)

        monkeypatch.setitem(models.MODELS, "own", own)
        e = experiment("own", 96, encoder="none of smp's", encoder_weights=str(tmp_path / "e.pth"))
        building.check(e)
        building.build(e, 3, pretrained=True)
        assert ("loaded 2 of 2 tensors" in capsys.readouterr().out) == encoder


# ----------------------------------------------------------------------------------------- freezing


def moved(net: Network, freeze: str | int, epoch: int, unfreeze_at: int | None = None) -> set[str]:
    """The names of the encoder's parameters and running statistics that one step of this epoch
    changes."""
    before = {k: v.clone() for k, v in net.body.encoder.state_dict().items()}
    net.train().freeze(Train(freeze=freeze, unfreeze_at=unfreeze_at), epoch)
    rest = {k: v.clone() for k, v in net.state_dict().items() if ".encoder." not in k}
    step(net)
    net.zero_grad(set_to_none=True)
    assert all(
        not torch.equal(v, net.state_dict()[k]) for k, v in rest.items() if k.endswith("weight")
    ), "what is no encoder learns"
    return {k for k, v in net.body.encoder.state_dict().items() if not torch.equal(v, before[k])}


def test_a_frozen_part_stays_as_it_is_until_it_is_thawed():
    net = built(experiment("unet", encoder="resnet18"))
    every = set(net.body.encoder.state_dict())
    first = {k for k in every if k.startswith(("conv1", "bn1", "layer1"))}
    assert moved(net, 2, 0, unfreeze_at=2) == every - first
    assert moved(net, 2, 1, unfreeze_at=2) == every - first, "the second time as the first"
    assert moved(net, 2, 2, unfreeze_at=2) == every
    assert moved(net, "encoder", 0) == set()
    assert moved(net, "encoder", 5) == set() and moved(net, 1, 5) == {
        k for k in every if not k.startswith(("conv1", "bn1"))
    }
    assert (
        moved(built(experiment("unet", encoder="resnet18")), "encoder", 3, unfreeze_at=3) == every
    ), "gone on with after it was thawed"


def test_what_never_was_trainable_stays_so():
    net = built(experiment("unet", encoder="resnet18"))
    net.body.encoder.conv1.weight.requires_grad_(False)
    net.train().freeze(Train(freeze=1, unfreeze_at=1), 0)
    assert not net.body.encoder.bn1.weight.requires_grad
    net.train().freeze(Train(freeze=1, unfreeze_at=1), 1)
    assert (
        net.body.encoder.bn1.weight.requires_grad
        and not net.body.encoder.conv1.weight.requires_grad
    )


@pytest.mark.parametrize(
    "arch, encoder, stages, first",
    [
        ("unet", "efficientnet-b0", 5, ("_conv_stem", "_bn0")),
        ("unet", "tu-convnext_atto", 4, ("model.stem", "model.stages_0")),
        ("upernet", "mit_b0", 4, ("patch_embed1", "block1", "norm1")),
        ("dpt", "tu-vit_tiny_patch16_224", 4, None),
    ],
)
def test_stages_are_the_feature_maps_in_order(arch, encoder, stages, first):
    net = built(experiment(arch, encoder=encoder))
    training = {m: m.training for m in net.modules()}
    found = encoder_stages(net.body.encoder, 64)
    assert len(found) == stages and all(a < b for a, b in zip(found, found[1:])), (
        "each rests on the one before"
    )
    assert first is None or found[0] == {
        k for k, _ in net.body.encoder.named_parameters() if k.startswith(first)
    }
    assert training == {m: m.training for m in net.modules()} and all(
        p.requires_grad for p in net.parameters()
    )


def test_freezing_what_is_not_there():
    with refused("invalid_value", "(train.freeze: 6)", "1 to 5"):
        built(experiment("unet", train=Train(freeze=6)))
    with refused("invalid_value", "no encoder"):
        built(experiment("dynunet", train=Train(freeze="encoder")))


def test_a_view_that_the_network_cannot_take_is_refused_before_the_training():
    from src.parts.tta import TTA

    pytest.importorskip("einops")
    experiment = Experiment(image_size=64, model={"arch": "unetr", "encoder_weights": "none"})
    net = building.build(experiment, 3, pretrained=True)
    building.try_views(net, {"hflip": TTA["hflip"].do}, experiment.model)
    with refused("bad_network", "unetr", "scale_1.3"):
        building.try_views(net, {"scale_1.3": TTA["scale_1.3"].do}, experiment.model)
