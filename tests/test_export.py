"""export: a fold's network as ONNX, with torch's answers at any batch size, and everything in it
that one must know to serve it."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, refused
from test_chain import SETTINGS, SMALL

from src.__main__ import main
from src.config.load import Config, load
from src.core.console import StageError
from src.core.paths import Paths
from src.core.settings import Competition, Experiment
from src.data.tables import read_folds, read_index
from src.parts import building
from src.tools import export
from src.training.checkpoint import load_weights, save_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def home(demo, tmp_path_factory) -> Path:
    """configs/ and the two trained folds of a tiny experiment."""
    home = tmp_path_factory.mktemp("exported")
    (home / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "competition.yaml", home / "configs")
    (home / "configs" / "small.yaml").write_text(SMALL)
    shutil.copytree(demo, home / "data")
    for stage in ("prepare", "split", "train"):
        assert cli(home, stage) == 0
    return home


def cli(home: Path, *words: str) -> int:
    return main(
        [
            *words,
            "--config",
            str(home / "configs" / "small.yaml"),
            "--data",
            str(home / "data"),
            "--work",
            str(home),
            *(w for s in SETTINGS for w in ("--set", s)),
        ]
    )


def asked(file: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, {"images": images})))


def test_a_fold_answers_as_torch_does(home, capfd):
    assert cli(home, "export", "--fold", "1") == 0
    out, err = capfd.readouterr()
    paths, config = Paths(home, home / "data"), load(home / "configs" / "small.yaml", SETTINGS)
    file = paths.onnx("small", 1)
    assert (
        "largest difference from torch" in out
        and "model.onnx" in out.splitlines()[-1]
        and not paths.onnx("small", 0).exists()
        and not err
    )
    index = read_index(paths, "train")
    rows = np.flatnonzero(read_folds(paths, index["id"]) == 1)[:5]
    images = np.load(paths.images(Experiment(image_size=64, resize="stretch")))[rows][:, None]
    net = building.build(config.experiment, 3, pretrained=False)
    load_weights(paths.checkpoint("small", 1, "last"), net)
    with torch.inference_mode():
        wanted = net.eval()(torch.from_numpy(images))
    for n in (1, 2, 5):
        found = asked(file, images[:n])
        assert (
            found["mask"].shape == (n, 64, 64)
            and found["label"].shape == (n, 3)
            and found["mask"].dtype == found["label"].dtype == np.float32
        )
        assert np.abs(found["mask"] - torch.sigmoid(wanted["mask"])[:n, 0].numpy()).max() < 1e-3
        assert np.abs(found["label"] - torch.softmax(wanted["label"], 1)[:n].numpy()).max() < 1e-3


def test_what_one_must_know_is_in_it(home):
    paths = Paths(home, home / "data")
    if not paths.onnx("small", 1).is_file():
        assert cli(home, "export", "--fold", "1") == 0
    written = onnx.load(paths.onnx("small", 1))
    facts = {p.key: p.value for p in written.metadata_props}
    assert json.loads(facts["classes"]) == ["benign", "malignant", "normal"]
    assert {k: facts[k] for k in ("size", "resize", "fold", "experiment")} == {
        "size": "64",
        "resize": "stretch",
        "fold": "1",
        "experiment": "small",
    }
    assert json.loads(facts["mean"]) == [0.485, 0.456, 0.406] and json.loads(facts["std"]) == [
        0.229,
        0.224,
        0.225,
    ]
    (given,) = written.graph.input
    assert (
        given.name == "images"
        and given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        and given.type.tensor_type.shape.dim[0].dim_param
    )
    assert (
        str(ROOT).encode() not in paths.onnx("small", 1).read_bytes()
        and b"site-packages" not in paths.onnx("small", 1).read_bytes()
    )


@pytest.mark.parametrize(
    ("settings", "channels", "names"),
    [
        ({"task": "mask", "predict": {"weights": "float16"}}, 3, ["mask"]),
        ({"task": "class"}, 1, ["label"]),
    ],
)
def test_one_answer_alone_and_colour(tmp_path, settings, channels, names):
    model = {"arch": "monai_unet", "options": {"channels": [8, 16, 32], "strides": [2, 2]}}
    config = Config(
        "one",
        Path("one.yaml"),
        Competition(data={"channels": channels}),
        experiment=Experiment(image_size=64, model=model, **settings),
    )
    torch.manual_seed(0)
    save_weights(
        tmp_path / "last.pt", building.build(config.experiment, 3, pretrained=False), 0, 0.0
    )
    images = np.random.default_rng(0).integers(
        0, 255, (3, 64, 64, 3)[: 4 if channels == 3 else 3], dtype=np.uint8
    )
    assert export.export(config, tmp_path / "last.pt", images, tmp_path / "model.onnx", {}) < 1e-3
    found = asked(
        tmp_path / "model.onnx",
        images.transpose(0, 3, 1, 2)[:2] if channels == 3 else images[:2, None],
    )
    assert list(found) == names and len(found[names[0]]) == 2
    assert (
        json.loads(
            {p.key: p.value for p in onnx.load(tmp_path / "model.onnx").metadata_props}["channels"]
        )
        == channels
    )


def test_what_differs_from_torch_is_not_written(tmp_path, monkeypatch):
    config = Config(
        "one",
        Path("one.yaml"),
        Competition(),
        experiment=Experiment(
            image_size=64, task="class", model={"arch": "fpn", "encoder": "tu-lcnet_035"}
        ),
    )
    save_weights(
        tmp_path / "last.pt", building.build(config.experiment, 3, pretrained=False), 0, 0.0
    )
    monkeypatch.setattr(export, "difference", lambda *_: 0.5)
    monkeypatch.setattr(
        torch.onnx,
        "export",
        lambda *_, **__: onnx.save(
            onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])), _[2]
        ),
    )
    with refused("onnx_differs", "5.0e-01", kind=StageError):
        export.export(
            config,
            tmp_path / "last.pt",
            np.zeros((3, 64, 64), np.uint8),
            tmp_path / "model.onnx",
            {},
        )
    monkeypatch.setattr(
        torch.onnx,
        "export",
        lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no such operator\nand so on")),
    )
    with refused("no_onnx", "fpn / tu-lcnet_035 of one", ": no such operator", kind=StageError):
        export.export(
            config,
            tmp_path / "last.pt",
            np.zeros((3, 64, 64), np.uint8),
            tmp_path / "model.onnx",
            {},
        )
    assert [f.name for f in tmp_path.iterdir()] == ["last.pt"] and logging.root.manager.disable == 0


def test_what_cannot_be_exported_is_said(home, monkeypatch):
    paths = Paths(home, home / "data")

    def fails(code, words, fold=None, *overrides):
        with refused(code, *words):
            export.run(
                argparse.Namespace(fold=fold),
                load(home / "configs" / "small.yaml", [*SETTINGS, *overrides]),
                paths,
            )

    fails("no_such_fold", ["fold 7", "0, 1"], 7)
    fails(
        "not_finished",
        ["train small fold 0", "stale: train.lr", "train --fold 0"],
        None,
        "train.lr=0.5",
    )
    fails("not_by_gradients", ["otsu"], None, "model={arch: otsu, options: {}}", "task=mask")
    fails("not_by_gradients", ["svm"], None, "model={arch: svm, options: {}}", "task=class")
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name
    )
    fails("no_package", ["pip install onnxscript"])
