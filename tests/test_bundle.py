"""bundle and infer: the same submission from the folder alone, without a network connection; what
is skipped when time is short; and what is refused."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, picture, refused, save
from test_chain import OTHER, SETTINGS, SMALL

from src.__main__ import main
from src.config.load import load
from src.core.console import StageError
from src.core.device import AUTO_AMP, NUMBERS
from src.core.paths import Paths
from src.core.settings import Experiment
from src.data.predictions import Predictions
from src.data.tables import read_folds, read_index
from src.parts import building
from src.parts.tta import TTA
from src.pipeline import networks
from src.pipeline.jobs import evaluate_job, weights_used
from src.stages import evaluate, predict
from src.tools import bundle, infer
from src.training import inference
from src.training import time_budget as budget
from src.training.checkpoint import load_weights, round_weights
from src.training.time_budget import NetworkRun

# without a gate, which would empty the masks of networks that have hardly learned
SETS = [*SETTINGS, "evaluate.empty_above=[1.0]", "evaluate.bootstrap=100"]
NO_NETWORK = """import socket
def no(*_, **__):
    open({marker!r}, "a").write("asked for the network\\n")
    raise OSError("the network is off")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = no
"""


@pytest.fixture(scope="module")
def home(demo, tmp_path_factory) -> Path:
    """configs/, data/ and a finished ensemble of two, one letterboxed, one of rounded weights; its
    bundle and submission."""
    home = tmp_path_factory.mktemp("bundled")
    (home / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "competition.yaml", home / "configs")
    for name, text in (
        ("ensemble", "members: [small, other]\nmethod: mean\n"),
        ("small", SMALL + "predict: {weights: float16}\n"),
        ("other", OTHER),
    ):
        (home / "configs" / f"{name}.yaml").write_text(text)
    shutil.copytree(demo, home / "data")
    for stage in ("prepare", "split", "train", "predict", "ensemble"):
        assert cli(home, stage) == 0
    config, paths = loaded(home)
    evaluate.run(evaluate_job(config, paths), config, paths)  # of the ensemble alone
    assert cli(home, "submit") == 0 and cli(home, "bundle") == 0
    return home


def cli(home: Path, *words: str, config: str = "ensemble") -> int:
    return main(
        [
            *words,
            "--config",
            str(home / "configs" / f"{config}.yaml"),
            "--data",
            str(home / "data"),
            "--work",
            str(home),
            *(w for s in SETS for w in ("--set", s)),
        ]
    )


def loaded(home: Path, name: str = "ensemble"):
    return load(home / "configs" / f"{name}.yaml", SETS), Paths(home, home / "data")


def made(home: Path, name: str = "ensemble") -> int:
    config, paths = loaded(home, name)
    return bundle.run(argparse.Namespace(sets=SETS), config, paths)


@pytest.fixture
def copy(home, tmp_path) -> Path:
    return Path(shutil.copytree(home, tmp_path / "home"))


@pytest.fixture
def only_test(home, tmp_path) -> Path:
    """The data as a code contest gives it: test images and the sample."""
    shutil.copytree(home / "data" / "test", tmp_path / "test only" / "test")
    shutil.copy(home / "data" / "sample_submission.csv", tmp_path / "test only")
    return tmp_path / "test only"


@pytest.fixture
def packed(home, tmp_path) -> Path:
    """The zip, unpacked elsewhere: nothing is executable, as in a Kaggle dataset."""
    with zipfile.ZipFile(Paths(home, home).bundle_zip("ensemble")) as archive:
        archive.extractall(tmp_path / "the bundle")
    return tmp_path / "the bundle"


@pytest.fixture
def offline(tmp_path) -> dict[str, str]:
    """An environment whose Pythons can reach nothing, and leave a mark where they try."""
    (tmp_path / "off").mkdir()
    (tmp_path / "off" / "sitecustomize.py").write_text(
        NO_NETWORK.format(marker=str(tmp_path / "asked"))
    )
    env = os.environ | {
        "PYTHONPATH": str(tmp_path / "off"),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    tried = subprocess.run(
        [sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert "the network is off" in tried.stderr and (tmp_path / "asked").is_file()
    (tmp_path / "asked").unlink()
    return env


def submission(work: Path) -> bytes:
    return Paths(work, work).submission("ensemble").read_bytes()


def rows(work: Path) -> list[dict[str, str]]:
    with open(Paths(work, work).submission("ensemble"), newline="") as file:
        return list(csv.DictReader(file))


def inferred(folder: Path, data: Path, work: Path, minutes: float | None = None, **options) -> int:
    config = load(folder / "configs" / "ensemble.yaml")
    return infer.run(
        argparse.Namespace(bundle=folder, minutes=minutes, data=data, work=work),
        config,
        Paths(work, data),
        **options,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()
    }


# ----------------------------------------------------------------------------------- the same bytes


def test_without_network_and_train_images_the_same_bytes(
    home, packed, only_test, offline, tmp_path
):
    before = files(packed)
    line = ["bash", packed / "run.sh", "infer", "--bundle", packed, "--data", only_test]
    line += ["--work", tmp_path / "work"]
    done = subprocess.run(line, env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    intricate = sum(len(row["rle"].split()) > 20 for row in rows(home))
    assert intricate > len(rows(home)) / 2, "masks of some form, or equality would mean little"
    assert submission(tmp_path / "work") == submission(home)
    assert sorted(f.name for f in (tmp_path / "work").rglob("*") if f.is_file()) == [
        "ensemble.csv",
        "ensemble.png",
    ]
    assert files(packed) == before and not (tmp_path / "asked").exists()


def test_the_notebook_without_network_gives_the_same_bytes(
    home, packed, only_test, offline, tmp_path, monkeypatch
):
    nbformat, nbclient, _ = (
        pytest.importorskip(name) for name in ("nbformat", "nbclient", "ipykernel")
    )
    notebook = nbformat.read(ROOT / "notebooks" / "kaggle_infer.ipynb", 4)
    nbformat.validate(notebook)
    assert (
        not any(c.get("outputs") or c.get("execution_count") for c in notebook.cells)
        and notebook.metadata.kernelspec.name == "python3"
    )
    (tmp_path / "work").mkdir()
    for name, value in (
        offline | {"BUNDLE": packed, "DATA": only_test, "WORK": tmp_path / "work", "MINUTES": 60}
    ).items():
        monkeypatch.setenv(name, str(value))
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert (tmp_path / "work" / "submission.csv").read_bytes() == submission(home)
    shown = [
        out.data for cell in notebook.cells for out in cell.get("outputs", []) if "data" in out
    ]
    said = "".join(
        out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", [])
    )
    assert "id,label,rle" in said and "image/png" in shown[0] and not (tmp_path / "asked").exists()


def test_a_longer_hidden_test_set(home, packed, tmp_path):
    """More images and rows than when the bundle was made; the train images are there this time, and
    do not matter."""
    data = Path(shutil.copytree(home / "data", tmp_path / "data"))
    lines = (data / "sample_submission.csv").read_text().splitlines()
    for i in range(3):
        save(data / "test" / f"new{i}.png", picture(7 + i, 70, 110))
        lines.insert(2, f"new{i},normal,-1")
    (data / "sample_submission.csv").write_text("\n".join(lines) + "\n")
    inferred(packed, data, tmp_path / "work")
    answered = rows(tmp_path / "work")
    assert [row["id"] for row in answered] == [line.split(",")[0] for line in lines[1:]]
    assert all(row["rle"] for row in answered)
    now, before = ({row["id"]: row["label"] for row in r} for r in (answered, rows(home)))
    assert now.items() >= before.items()


def test_a_stopped_run_goes_on(home, packed, only_test, tmp_path, monkeypatch):
    asked, real = [], networks.predict_proba

    def third_fails(*arguments):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(networks, "predict_proba", third_fails)
    with pytest.raises(KeyboardInterrupt):
        inferred(packed, only_test, tmp_path / "work")
    inferred(packed, only_test, tmp_path / "work")
    assert len(asked) == 3 + 2 and submission(tmp_path / "work") == submission(home)


def test_what_a_stopped_run_left_is_not_used_for_other_images(
    packed, only_test, tmp_path, monkeypatch
):
    real = networks.predict_proba
    monkeypatch.setattr(infer, "mix", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        inferred(packed, only_test, tmp_path / "work")
    monkeypatch.undo()
    asked = []
    monkeypatch.setattr(networks, "predict_proba", lambda *given: asked.append(1) or real(*given))
    file = next((only_test / "test").glob("*.png"))
    save(file, picture(3, 90, 150))
    inferred(packed, only_test, tmp_path / "work")
    assert len(asked) == 4


# ------------------------------------------------------------------------------------ short of time


class Clock:
    """Time that passes only while networks work: `seconds` per image and view."""

    def __init__(self, monkeypatch, seconds: float = 1.0):
        self.now, self.seconds, self.asked = 0.0, seconds, []
        real = networks.predict_proba

        def slow(net, images, rows, views, device, dtype, batch, advance=lambda n: None):
            self.asked.append((len(rows), len(views)))
            self.now += self.seconds * len(rows) * len(views)
            advance(0)
            return real(net, images, rows, views, device, dtype, batch, advance)

        monkeypatch.setattr(networks, "predict_proba", slow)

    def __call__(self) -> float:
        return self.now


def last(images: int = 6) -> float:
    """What infer keeps back for its last steps (networks of 64 and 96 px, two folds each)."""
    return (
        infer.LAST_SECONDS
        + images * infer.PER_IMAGE
        + 2 * images * 2 * (64**2 + 96**2) / infer.BYTES_PER_SECOND
    )


def test_with_enough_time_the_same_bytes(home, packed, only_test, tmp_path, monkeypatch, capfd):
    clock = Clock(monkeypatch)
    capfd.readouterr()
    inferred(packed, only_test, tmp_path / "work", minutes=10, clock=clock)
    assert (
        submission(tmp_path / "work") == submission(home)
        and clock.now == 2 * 6 + (2 + 1 + 2 + 1) * 6
    )  # the probe, and two folds of two views and of one
    out, err = capfd.readouterr()
    assert not err and "of 10 min" in out


@pytest.mark.parametrize(
    ("seconds", "asked", "said"),
    [
        (
            12 + 30 * budget.MEASURED,
            [2, 1, 1, 1],
            ["skipped to stay within --minutes: views: hflip of small fold 1."],
        ),  # probe and all networks, but for one view
        (
            12 + 18 * budget.MEASURED + 0.1,
            [1, 1, 1],
            ["views: hflip of small fold 0, hflip of small fold 1; networks: other fold 1."],
        ),
        (
            3,
            [1],
            [
                "too short even for small fold 0 with one view",
                "networks: small fold 1, other fold 0, other fold 1",
            ],
        ),
    ],
)
def test_what_does_not_fit_is_left_out(
    packed, only_test, tmp_path, monkeypatch, capfd, seconds, asked, said
):
    """Six images, a second for each and view; views first, the lightest member's last fold first
    (of equals the later one), then networks."""
    monkeypatch.setattr(budget, "ESTIMATED", budget.MEASURED)
    manifest = json.loads((packed / "bundle.json").read_text())
    for about in manifest["networks"].values():
        about["pace"] = 0.01  # alike, so that the first one tells of the other
    manifest["packages"]["timm"] = "0.0.1"
    (packed / "bundle.json").write_text(json.dumps(manifest))
    clock = Clock(monkeypatch)
    inferred(packed, only_test, tmp_path / "work", minutes=(last() + seconds) / 60, clock=clock)
    out, err = capfd.readouterr()
    assert [views for _, views in clock.asked[2:]] == asked  # after the probe
    assert all(text in err for text in said), err
    assert "The decision was tuned with all of it" in err and "made with timm 0.0.1 (here" in err
    assert clock.now <= seconds + last() or seconds == 3
    assert len(rows(tmp_path / "work")) == 6


def test_a_network_that_overruns_is_broken_off(packed, only_test, tmp_path, monkeypatch, capfd):
    clock, real = Clock(monkeypatch), infer.Work.ask

    def slower(work, unit, *arguments, **options):
        clock.seconds = 60.0 if unit.title == "small fold 1" else 1.0
        return real(work, unit, *arguments, **options)

    monkeypatch.setattr(infer.Work, "ask", slower)
    inferred(packed, only_test, tmp_path / "work", minutes=2, clock=clock)
    err = capfd.readouterr().err
    assert (
        "small fold 1 exceeded its time estimate" in err
        and "networks: small fold 1, other fold 1" in err
    )


def unit(member: str, fold: int, views: str = "ihs", rank: int = 0, answers="mask label"):
    tta = tuple({"i": "identity", "h": "hflip", "s": "scale_0.85"}[v] for v in views)
    return NetworkRun(member, fold, tta, rank, frozenset(answers.split()))


def test_views_go_before_networks_and_light_members_before_heavy_ones():
    waiting = [unit("a", 0), unit("b", 0, rank=1), unit("a", 1), unit("b", 1, rank=1)]

    def fitting(left, done=()):
        return [
            (u.member, u.fold, len(u.tta))
            for u in budget.select_runs(waiting, done, lambda u: len(u.tta), left)
        ]

    assert fitting(12) == [("a", 0, 3), ("b", 0, 3), ("a", 1, 3), ("b", 1, 3)]
    assert fitting(11) == [("a", 0, 3), ("b", 0, 3), ("a", 1, 3), ("b", 1, 2)]
    assert fitting(9) == [("a", 0, 3), ("b", 0, 2), ("a", 1, 2), ("b", 1, 2)]
    assert fitting(4) == [("a", 0, 1), ("b", 0, 1), ("a", 1, 1), ("b", 1, 1)]
    assert (
        fitting(3) == [("a", 0, 1), ("b", 0, 1), ("a", 1, 1)]
        and fitting(2) == [("a", 0, 1), ("a", 1, 1)]
        and fitting(0) == [("a", 0, 1)]
    )
    assert fitting(0, [unit("a", 2)]) == []
    assert budget.drop_view(("hflip", "identity")) == ("identity",) and budget.drop_view(
        ("identity", "hflip", "scale_0.85")
    ) == ("identity", "hflip")


def test_an_answer_is_never_given_up():
    """The only network of classes stays, light as it is."""
    waiting = [
        unit("masks", 0, "i", 0, "mask"),
        unit("masks", 1, "i", 0, "mask"),
        unit("classes", 0, "i", 1, "label"),
        unit("classes", 1, "i", 1, "label"),
    ]
    assert [u.title for u in budget.select_runs(waiting, [], lambda u: 1, 0)] == [
        "masks fold 0",
        "classes fold 0",
    ]


def test_an_experiment_not_yet_seen_is_as_much_slower_as_the_others():
    pace = budget.Pace({"a": 0.1, "b": 0.3, "c": None}, {"a": 0.2}, {"a": 5.0})
    assert pace.rate("b") == pytest.approx(0.6) and pace.rate("c") == 0.2
    assert pace.cost(unit("a", 0), 10) == pytest.approx(
        budget.MEASURED * (5 + 0.2 * 30)
    ) and pace.cost(unit("b", 0, "i"), 10) == pytest.approx(budget.ESTIMATED * (5 + 6))


# ------------------------------------------------------------------------------- what the bundle is


def test_what_is_in_it(home, packed):
    config, paths = loaded(home)
    again = load(packed / "configs" / "ensemble.yaml")
    assert (
        again.competition == config.competition
        and again.ensemble == config.ensemble
        and [m.experiment for m in again.members] == [m.experiment for m in config.members]
    )
    about = json.loads((packed / "bundle.json").read_text())
    assert {n: a["folds"] for n, a in about["networks"].items()} == {
        "small": [0, 1],
        "other": [0, 1],
    }
    weights = {name: network["weights"] for name, network in about["networks"].items()}
    assert weights["small"] == {"0": "float16", "1": "float16"}
    assert weights["other"].keys() == {"0", "1"}
    assert about["score"] == json.loads(paths.metrics("ensemble").read_text())["nested"][
        "score"
    ] and all(a["pace"] > 0 for a in about["networks"].values())
    lacking = [
        line
        for line in (packed / "packages.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert len(lacking) == 1 and lacking[0].startswith("segmentation-models-pytorch==")
    needed = {
        line.partition("#")[0].strip()
        for line in (packed / "requirements.txt").read_text().splitlines()
    }
    assert any(n.startswith("torch>=") for n in needed) and not any(
        n.startswith(word)
        for n in needed
        for word in ("albumentations", "kaggle", "pytest", "monai", "iterative")
    )
    with zipfile.ZipFile(paths.bundle_zip("ensemble")) as archive:
        assert {n: archive.read(n) for n in archive.namelist()} == files(paths.bundle("ensemble"))
        assert archive.getinfo("run.sh").external_attr >> 16 == 0o755


def test_weights_are_those_that_predict_used(home, packed):
    config, paths = loaded(home)
    for one in (config.owner("small"), config.owner("other")):
        e, kind = one.experiment, weights_used(one, paths, 1)
        kinds = {torch.float32, torch.int64} | ({torch.float16} if kind == "float16" else set())
        used, carried = (building.build(e, 3, pretrained=False) for _ in range(2))
        load_weights(paths.checkpoint(one.name, 1, e.predict.checkpoint), used, kind)
        file = Paths(packed, packed).checkpoint(one.name, 1, e.predict.checkpoint)
        load_weights(file, carried)
        assert all(
            torch.equal(a, b)
            for a, b in zip(used.state_dict().values(), carried.state_dict().values())
        )
        assert {v.dtype for v in torch.load(file)["ema"].values()} == kinds
        assert file.stat().st_size < paths.checkpoint(one.name, 1, "last").stat().st_size / 3


@pytest.mark.parametrize(
    "steady, kind, numbers", [(1.0, "float16", "bfloat16"), (-1.0, "float32", "float32")]
)
def test_weights_are_rounded_where_that_moves_no_score(copy, monkeypatch, steady, kind, numbers):
    """The predictions are of the very weights that the record names, also where predict was stopped
    in between."""
    config, paths = loaded(copy, "other")
    monkeypatch.setenv(AUTO_AMP, numbers)
    monkeypatch.setattr(predict, "TOLERANCE", steady)
    monkeypatch.setattr(predict, "mean_of_folds", stop)
    assert cli(copy, "predict", "--force", config="other") == 130
    assert {json.loads(paths.rounding("other", k).read_text())["weights"] for k in (0, 1)} == {kind}
    monkeypatch.undo()
    monkeypatch.setenv(AUTO_AMP, numbers)
    paths.part("other", 1, "oof").unlink()
    paths.part("other", 1, "test").unlink()
    assert cli(copy, "predict", config="other") == 0
    record = json.loads(paths.record("predict", "other").read_text())
    assert record["weights"] == {"0": kind, "1": kind} and not paths.rounding("other", 0).exists()
    index = read_index(paths, "train")
    held_out, e = np.flatnonzero(read_folds(paths, index["id"]) == 1), config.experiment
    net = building.build(e, 3, pretrained=False)
    load_weights(paths.checkpoint("other", 1, "best"), net, weights_used(config, paths, 1))
    _, label = inference.predict_proba(
        net,
        np.load(paths.images(Experiment(image_size=96, resize="letterbox")), mmap_mode="r"),
        held_out,
        [TTA["identity"]],
        torch.device("cpu"),
        NUMBERS[numbers],
        32,
    )
    assert np.array_equal(
        Predictions.load(paths.oof("other"), ["benign", "malignant", "normal"])
        .select(index["id"].to_numpy()[held_out])
        .label,
        label,
    )


def stop(*_):
    raise KeyboardInterrupt


def test_what_is_rounded():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)
    )
    net.register_buffer("table", torch.full((2, 2), 1 / 3))
    with torch.no_grad():
        net[2].weight[0, 0] = 1e6  # more than float16 holds
    state = net.state_dict()
    found = round_weights(state, net, "float16")
    assert [k for k, v in found.items() if v.dtype == torch.float16] == ["0.weight"]
    assert (found["0.weight"].float() - state["0.weight"]).abs().max() < 1e-3 * state[
        "0.weight"
    ].abs().max()
    assert (
        round_weights(found, net, "float16")["0.weight"] is found["0.weight"]
        and round_weights(state, net, "float32") is state
    )


def test_the_same_artifacts_give_the_same_bytes_and_wheels_stay(copy, monkeypatch, capfd):
    folder, archive = Paths(copy, copy).bundle("ensemble"), Paths(copy, copy).bundle_zip("ensemble")
    about, first = json.loads((folder / "bundle.json").read_text()), archive.read_bytes()
    monkeypatch.setattr(bundle, "imported_packages", lambda *_: about["packages"])
    assert made(copy) == 0 and archive.read_bytes() == first
    version = about["packages"]["segmentation-models-pytorch"]
    assert "pip download" in capfd.readouterr().out
    (folder / "wheels").mkdir()
    for name in (
        f"segmentation_models_pytorch-{version}-py3-none-any.whl",
        "segmentation_models_pytorch-0.0.1-py3-none-any.whl",
        "numpy-2.0.0-py3-none-any.whl",
    ):
        (folder / "wheels" / name).write_bytes(b"wheel")
    assert made(copy) == 0 and [f.name for f in (folder / "wheels").iterdir()] == [
        f"segmentation_models_pytorch-{version}-py3-none-any.whl"
    ]
    assert "pip download" not in capfd.readouterr().out
    with zipfile.ZipFile(archive) as packed:
        assert f"wheels/segmentation_models_pytorch-{version}-py3-none-any.whl" in packed.namelist()


# ---------------------------------------------------------------------------------- what is refused


def test_what_is_not_finished_or_stale_is_not_bundled(copy, tmp_path):
    config, paths = loaded(copy)
    stale = load(copy / "configs" / "ensemble.yaml", [*SETS, "train.lr=0.5"])
    with refused("not_finished", "train small fold 0", "stale: train.lr", "train --fold 0"):
        bundle.run(argparse.Namespace(sets=[]), stale, paths)
    paths.decision("ensemble").unlink()
    with refused("not_finished", "evaluate ensemble", "damaged", "./run.sh evaluate"):
        made(copy)
    paths.test("small").unlink()
    with refused("not_finished"):
        made(copy)
    assert not list(paths.bundle("ensemble").parent.glob(".*"))


def test_a_team_mates_predictions_cannot_be_bundled(copy, tmp_path):
    paths = Paths(copy, copy / "data")
    friend = tmp_path / "friend"
    friend.mkdir()
    for file in (paths.oof("small"), paths.test("small")):
        shutil.copy(file, friend)
    (copy / "configs" / "team.yaml").write_text(f"members: [small, {friend}]\n")
    assert cli(copy, "ensemble", config="team") == 0
    with refused("only_predictions", "friend"):
        made(copy, "team")


def test_stopped_it_leaves_the_bundle_before_it(copy, monkeypatch):
    paths = Paths(copy, copy / "data")
    before = files(paths.bundle("ensemble").parent)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "round_weights", stop)
    with pytest.raises(KeyboardInterrupt):
        made(copy)
    monkeypatch.undo()
    monkeypatch.setattr(
        bundle,
        "imported_packages",
        lambda *_: (_ for _ in ()).throw(StageError("the bundle does not load")),
    )
    with pytest.raises(StageError):
        made(copy)
    assert files(paths.bundle("ensemble").parent) == before and not list(
        paths.bundle("ensemble").parent.glob(".*")
    )


def test_a_bundle_that_does_not_load_is_none(copy, monkeypatch):
    def spoilt(config, folds, paths, inner, advance):
        for k in folds:
            file = inner.checkpoint(config.name, k, config.experiment.predict.checkpoint)
            file.parent.mkdir(parents=True)
            torch.save({"ema": {}}, file)

    monkeypatch.setattr(bundle, "write_weights", spoilt)
    with refused("bundle_fails", "checkpoint", kind=StageError):
        made(copy)


def test_a_damaged_bundle_is_named(packed, only_test, tmp_path):
    def fails(code, *words):
        with refused(code, *words):
            inferred(packed, only_test, tmp_path / "work")

    weights = packed / "artifacts" / "models" / "small" / "fold1" / "last.pt"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    fails("bundle_damaged", "fold1/last.pt", "upload all of it")
    weights.unlink()
    fails("bundle_damaged", "fold1/last.pt", "gone")
    weights.write_bytes(whole)
    (only_test / "sample_submission.csv").rename(only_test / "elsewhere.csv")
    fails("no_sample")
    (only_test / "elsewhere.csv").rename(only_test / "sample_submission.csv")
    first = sorted((only_test / "test").glob("*.png"))[0]
    first.write_bytes(b"no image")
    fails("data_unreadable", f"test/{first.name}", "on_error=skip")
    shutil.rmtree(only_test / "test")
    fails("no_test_images", "6 images")
    (packed / "bundle.json").write_text("{}")
    fails("damaged_json", "bundle.json")


def test_an_unreadable_image_may_be_skipped(packed, only_test, tmp_path, capfd):
    """A hidden test set may hold one; its row is answered with nothing."""
    first = sorted((only_test / "test").glob("*.png"))[0]
    first.write_bytes(b"no image")
    config = load(packed / "configs" / "ensemble.yaml", ["data.on_error=skip"])
    infer.run(
        argparse.Namespace(bundle=packed, minutes=None), config, Paths(tmp_path / "work", only_test)
    )
    answers = {row["id"]: row for row in rows(tmp_path / "work")}
    assert answers[first.stem]["label"] == "normal"
    assert answers[first.stem]["rle"] == "-1"
    assert len(answers) == 6
    assert np.mean([row["rle"] != "-1" for row in answers.values()]) > 0.5
    assert "left out: 1 unreadable file" in capfd.readouterr().err
