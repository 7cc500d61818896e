"""Networks, losses and views: every name in every registry, hand-computed losses, undo(view(x)) = x, pre-trained weights from files and over the network."""
from __future__ import annotations

import http.server
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from src.core.config import Loss, Model, load
from src.core.console import InputError
from src.core.pretrained import load_encoder
from src.parts import augment, losses, models
from src.parts.check import check
from src.parts.tta import VIEWS

CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.name != "competition.yaml")
SMALL = Model(arch="unet", encoder="mobilenet_v2", encoder_weights="none")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_builds_its_network(file):
    config = load(file)
    check(config)
    for experiment in (c.experiment for c in config.experiments if config.experiment):
        net = models.build(experiment.model, 3, pretrained=False).eval()
        with torch.inference_mode():
            output = net(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))
        assert output["mask"].shape == (1, 1, 64, 64) and output["label"].shape == (1, 3)


@pytest.mark.parametrize("arch", models.MODELS)
def test_every_architecture_gives_both_answers_and_learns(arch):
    encoder = "tu-vit_tiny_patch16_224" if arch == "dpt" else "mobilenet_v2"
    options = {"dynamic_img_size": True} if arch == "dpt" else {}
    net = models.build(Model(arch=arch, encoder=encoder, encoder_weights="none", options=options), 3, pretrained=False).train()
    output = net(torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8))
    assert output["mask"].shape == (2, 1, 128, 128) and output["label"].shape == (2, 3)
    losses.total(output, torch.zeros(2, 1, 128, 128, dtype=torch.uint8), torch.tensor([0, 2]), None, Loss())["loss"].backward()
    grads = [p.grad is not None for p in net.body.encoder.parameters()]
    assert sum(grads) > len(grads) / 4, "pspnet alone uses three of five encoder stages, a third of the tensors"


def test_grey_and_rgb_images_are_normalised_alike():
    net = models.build(SMALL, 3, pretrained=False).eval()
    grey = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(net(grey)["mask"], net(grey.expand(-1, 3, -1, -1))["mask"])


def test_encoder_and_the_rest_have_their_own_rates_and_norms_no_decay():
    net = models.build(SMALL, 3, pretrained=False)
    groups = net.parameter_groups(1e-3, 1e-4, 0.1)
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
    inside = {id(p) for p in net.body.encoder.parameters()}
    for g in groups:
        assert g["base_lr"] == (1e-4 if id(g["params"][0]) in inside else 1e-3)
        assert all((p.ndim > 1) == (g["weight_decay"] > 0) for p in g["params"])


# ------------------------------------------------------------------------------------------------------------------ losses

NAN = float("nan")
LOGITS = torch.tensor([0.0, math.log(3)])  # probabilities 1/2 and 3/4


def test_dice_by_hand_and_per_image():
    logits, target = LOGITS.view(1, 1, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    expected = 1 - (2 * 0.5 + 1) / (1.25 + 1 + 1)
    assert losses.dice(logits, target, Loss()).item() == pytest.approx(expected)
    empty_right = torch.full((1, 1, 1, 2), -50.0)
    both = losses.dice(torch.cat([logits, empty_right]), torch.cat([target, torch.zeros(1, 1, 1, 2)]), Loss())
    assert both.item() == pytest.approx(expected / 2), "an empty image rightly left empty costs nothing, and images count alike"
    empty_wrong = torch.full((1, 1, 1, 2), 50.0)
    assert losses.dice(empty_wrong, torch.zeros(1, 1, 1, 2), Loss()).item() == pytest.approx(2 / 3), "a false positive on a normal image costs"


def test_bce_and_focal_by_hand():
    logits, target = LOGITS.view(1, 1, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    assert losses.bce(logits, target, Loss()).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    by_hand = (0.5**2 * math.log(2) + 0.75**2 * math.log(4)) / 2
    assert losses.focal(logits, target, Loss(focal_gamma=2)).item() == pytest.approx(by_hand)


def test_label_losses_by_hand():
    logits, target = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), torch.tensor([1, 0])  # p_t: 3/4 and 1/2
    a, b = math.log(4 / 3), math.log(2)
    assert losses.cross_entropy(logits, target, None, Loss()).item() == pytest.approx((a + b) / 2)
    assert losses.cross_entropy(logits, target, None, Loss(label_smoothing=0.2)).item() == pytest.approx((0.9 * a + 0.1 * math.log(4) + b) / 2)
    weight = torch.tensor([3.0, 1.0])
    assert losses.cross_entropy(logits, target, weight, Loss()).item() == pytest.approx((a + 3 * b) / 4)
    assert losses.label_focal(logits, target, weight, Loss(focal_gamma=1)).item() == pytest.approx((0.25 * a + 3 * 0.5 * b) / 4)


def test_the_balance_weighs_mask_and_label():
    output = {"mask": LOGITS.view(1, 1, 1, 2), "label": torch.tensor([[0.0, 0.0]])}
    settings = Loss(balance=0.25, mask={"bce": 2}, label={"cross_entropy": 1})
    parts = losses.total(output, torch.tensor([1, 0]).view(1, 1, 1, 2), torch.tensor([1]), None, settings)
    assert parts["mask_loss"].item() == pytest.approx(math.log(2) + math.log(4))
    assert parts["loss"].item() == pytest.approx(0.25 * (math.log(2) + math.log(4)) + 0.75 * math.log(2))


def test_class_weights():
    labels = torch.tensor([0, 0, 0, 1])
    assert losses.class_weights("balanced", labels, 2, torch.device("cpu")).tolist() == pytest.approx([4 / 6, 2.0])
    with pytest.raises(InputError, match="2 values for 3 classes"):
        losses.class_weights([1.0, 2.0], labels, 3, torch.device("cpu"))


# ------------------------------------------------------------------------------------------------------- views and augmentation


@pytest.mark.parametrize("name", VIEWS)
def test_undoing_a_view_gives_the_image_back(name):
    x = torch.linspace(0, 1, 96).view(1, 1, 1, 96) * torch.linspace(0, 1, 96).view(1, 1, 96, 1)
    back = VIEWS[name].undo(VIEWS[name].do(x), 96)
    assert back.shape == x.shape
    if "scale" in name:
        assert (back - x).abs().max() < 0.02
        assert VIEWS[name].do(x).shape[-1] % 32 == 0 and VIEWS[name].do(torch.zeros(1, 1, 224, 224)).shape[-1] != 224, "at the usual size it is another one"
    else:
        assert torch.equal(back, x)
    assert name == "identity" or VIEWS[name].do(x).shape != x.shape or not torch.equal(VIEWS[name].do(x), x), "a view that changes nothing is none"


@pytest.mark.parametrize("name", augment.AUGMENTS)
def test_every_augmentation_keeps_shape_type_and_two_mask_values(name):
    import numpy as np

    compose = augment.build(name)
    image, mask = np.random.default_rng(0).integers(0, 256, (64, 64, 1), dtype=np.uint8), np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 1
    for seed in range(30):
        compose.set_random_seed(seed)
        out = compose(image=image, mask=mask)
        assert out["image"].shape == (64, 64, 1) and out["image"].dtype == np.uint8
        assert set(np.unique(out["mask"])) <= {0, 1}


# ------------------------------------------------------------------------------------------------------------ pre-trained weights


def encoder():
    return models.build(SMALL, 3, pretrained=False).body.encoder


@pytest.mark.parametrize("prefix", ["", "model.", "encoder."])
def test_weights_load_under_any_prefix_with_their_statistics(tmp_path, prefix, capsys):
    source, target = encoder(), encoder()
    extra = {"classifier.weight": torch.zeros(3)}
    torch.save({prefix + k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()} | extra, tmp_path / "e.pth")
    (tmp_path / "e.json").write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}))
    mean, std = load_encoder(target, tmp_path / "e.pth")
    assert mean == [0.1, 0.2, 0.3]
    name = "features.0.0.weight"
    assert torch.equal(target.state_dict()[name], source.state_dict()[name].half().float())
    assert "left 1 of the file's aside" in capsys.readouterr().out


def test_weights_of_another_encoder_are_refused(tmp_path):
    half = dict(list(encoder().state_dict().items())[:60])
    torch.save(half, tmp_path / "e.pth")
    with pytest.raises(InputError, match="only .* of the encoder's"):
        load_encoder(encoder(), tmp_path / "e.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(InputError, match="not readable as weights"):
        load_encoder(encoder(), tmp_path / "broken.pth")
    with pytest.raises(InputError, match="no such weights file"):
        models.build(SMALL.model_copy(update={"encoder_weights": str(tmp_path / "absent.pth")}), 3, pretrained=True)


@pytest.mark.parametrize("name", ["mobilenet_v2", "tu-mobilenet_edgetpu_100"])
def test_the_shared_encoders_load_whole(shared, name, capsys):
    settings = Model(arch="unet", encoder=name, weights_dir=str(shared.parents[1] / "weights"))
    net = models.build(settings, 3, pretrained=True)
    said = capsys.readouterr().out
    found, of = said.split("loaded ")[1].split(" tensors")[0].split(" of ")
    assert found == of and net.mean.flatten().tolist() == pytest.approx([127.5] * 3)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the model hub as a download needs: HEAD and GET of two files of one repository."""

    files: dict[str, bytes] = {}
    asked: list[str] = []

    def answer(self, body: bool):
        self.asked.append(self.path)
        content = self.files.get(self.path.rsplit("/", 1)[-1])
        self.send_response(200 if content is not None else 404)
        for name, value in (("ETag", f'"{hash(content) & 0xFFFF:x}"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", str(len(content or b"")))):
            self.send_header(name, value)
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def do_GET(self):
        self.answer(True)

    def do_HEAD(self):
        self.answer(False)

    def log_message(self, *_):
        pass


BUILD = """
from src.core.config import Model
from src.core.console import InputError
from src.parts import models
try:
    net = models.build(Model(arch="unet", encoder="mobilenet_v2", weights_dir="src"), 3, pretrained=True)
    print("first weight", net.body.encoder.state_dict()["features.0.0.weight"].flatten()[0].item(), "mean", net.mean.flatten()[0].item())
except InputError as error:
    print("error:", error)
"""


def build_with_hub(address: str, cache: Path) -> str:
    env = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_download_from_a_hub(tmp_path):
    from safetensors.torch import save

    state = encoder().state_dict()
    state["features.0.0.weight"] = torch.full_like(state["features.0.0.weight"], 0.125)
    Hub.files = {"model.safetensors": save(state), "config.json": json.dumps({"mean": [0.25, 0.25, 0.25], "std": [0.2, 0.2, 0.2], "input_space": "RGB", "input_range": [0, 1]}).encode()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        said = build_with_hub(f"http://127.0.0.1:{server.server_port}", tmp_path)
    finally:
        server.shutdown()
    assert "first weight 0.125 mean 63.75" in said and any("mobilenet_v2" in path for path in Hub.asked)


def test_a_failed_download_names_every_way_out(monkeypatch):
    """The hub library's own waits between retries are left out."""

    def offline(settings, classes, weights=None):
        if weights:
            raise OSError("no route to host")
        return models.SmpNetwork(settings, classes)

    monkeypatch.setitem(models.MODELS, "unet", offline)
    with pytest.raises(InputError) as error:
        models.build(Model(arch="unet", encoder="mobilenet_v2", weights_dir=str(ROOT / "src")), 3, pretrained=True)
    for way in ("connect to the network", "mobilenet_v2.pth", "model.weights_dir=", "model.encoder_weights=FILE", "model.encoder_weights=none"):
        assert way in str(error.value)
