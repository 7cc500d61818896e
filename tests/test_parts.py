"""Views and weights: undo(view(x)) = x, pre-trained weights from files and over the network."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import ROOT, refused

from src.core.settings import Experiment, Model
from src.parts import building, models
from src.parts.pretrained import load_encoder
from src.parts.tta import TTA

SMALL = Experiment(model=Model(arch="unet", encoder="mobilenet_v2", encoder_weights="none"))


def with_model(**settings) -> Experiment:
    return Experiment(model=Model(**settings))


# -------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("name", TTA)
def test_undoing_a_view_gives_the_image_back(name):
    x = torch.linspace(0, 1, 96).view(1, 1, 1, 96) * torch.linspace(0, 1, 96).view(1, 1, 96, 1)
    back = TTA[name].undo(TTA[name].do(x), 96)
    assert back.shape == x.shape
    if "scale" in name:
        assert (back - x).abs().max() < 0.02
        assert (
            TTA[name].do(x).shape[-1] % 32 == 0
            and TTA[name].do(torch.zeros(1, 1, 224, 224)).shape[-1] != 224
        ), "at the usual size it is another one"
    else:
        assert torch.equal(back, x)
    assert (
        name == "identity"
        or TTA[name].do(x).shape != x.shape
        or not torch.equal(TTA[name].do(x), x)
    ), "a view that changes nothing is none"


# ------------------------------------------------------------------------------ pre-trained weights


def encoder():
    return building.build(SMALL, 3, pretrained=False).body.encoder


@pytest.mark.parametrize("prefix", ["", "model.", "encoder."])
def test_weights_load_under_any_prefix_with_their_statistics(tmp_path, prefix, capsys):
    source, target = encoder(), encoder()
    extra = {"classifier.weight": torch.zeros(3)}
    torch.save(
        {
            prefix + k: v.half() if v.is_floating_point() else v
            for k, v in source.state_dict().items()
        }
        | extra,
        tmp_path / "e.pth",
    )
    (tmp_path / "e.json").write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}))
    mean, std = load_encoder(target, tmp_path / "e.pth")
    assert mean == [0.1, 0.2, 0.3]
    name = "features.0.0.weight"
    assert torch.equal(target.state_dict()[name], source.state_dict()[name].half().float())
    assert "left 1 of the file's aside" in capsys.readouterr().out


def test_weights_of_another_encoder_are_refused(tmp_path):
    half = dict(list(encoder().state_dict().items())[:60])
    torch.save(half, tmp_path / "e.pth")
    with refused("weights_of_another", "e.pth"):
        load_encoder(encoder(), tmp_path / "e.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with refused("weights_unreadable", "broken.pth"):
        load_encoder(encoder(), tmp_path / "broken.pth")
    with refused("no_weights", "absent.pth"):
        building.build(
            with_model(encoder="mobilenet_v2", encoder_weights=str(tmp_path / "absent.pth")),
            3,
            pretrained=True,
        )


@pytest.mark.parametrize("name", ["mobilenet_v2", "tu-mobilenet_edgetpu_100"])
def test_the_shared_encoders_load_whole(shared, name, capsys):
    settings = with_model(arch="unet", encoder=name, weights_dir=str(shared.parents[1] / "weights"))
    net = building.build(settings, 3, pretrained=True)
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
        for name, value in (
            ("ETag", f'"{hash(content) & 0xFFFF:x}"'),
            ("X-Repo-Commit", "0" * 40),
            ("Content-Length", str(len(content or b""))),
        ):
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
from src.core.settings import Experiment, Model
from src.core.console import InputError
from src.parts import building, models
try:
    model = Model(arch="unet", encoder="mobilenet_v2", weights_dir="src")
    net = building.build(Experiment(model=model), 3, pretrained=True)
    first = net.body.encoder.state_dict()["features.0.0.weight"].flatten()[0]
    print("first weight", first.item(), "mean", net.mean.flatten()[0].item())
except InputError as error:
    print("error:", error)
"""


def build_with_hub(address: str, cache: Path) -> str:
    env = os.environ | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", BUILD],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_download_from_a_hub(tmp_path):
    from safetensors.torch import save

    state = encoder().state_dict()
    state["features.0.0.weight"] = torch.full_like(state["features.0.0.weight"], 0.125)
    Hub.files = {
        "model.safetensors": save(state),
        "config.json": json.dumps(
            {
                "mean": [0.25, 0.25, 0.25],
                "std": [0.2, 0.2, 0.2],
                "input_space": "RGB",
                "input_range": [0, 1],
            }
        ).encode(),
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        said = build_with_hub(f"http://127.0.0.1:{server.server_port}", tmp_path)
    finally:
        server.shutdown()
    assert "first weight 0.125 mean 63.75" in said and any(
        "mobilenet_v2" in path for path in Hub.asked
    )


def test_a_failed_download_names_every_way_out(monkeypatch):
    """The hub library's own waits between retries are left out."""

    def offline(settings, classes, weights=None):
        if weights:
            raise OSError("no route to host")
        return models.SmpNetwork(settings, classes)

    monkeypatch.setitem(models.MODELS, "unet", offline)
    with refused("no_download", "mobilenet_v2") as error:
        building.build(
            with_model(arch="unet", encoder="mobilenet_v2", weights_dir=str(ROOT / "src")),
            3,
            pretrained=True,
        )
    for way in (
        "connect to the network",
        "mobilenet_v2.pth",
        "model.weights_dir=",
        "model.encoder_weights=FILE",
        "model.encoder_weights=none",
    ):
        assert way in str(error.value)
