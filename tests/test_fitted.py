"""Members without gradient training: the support vector machine, the classical masks, and their way
through the chain."""

from __future__ import annotations

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, refused
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.svm import LinearSVC

from src.__main__ import main
from src.config.load import load
from src.core.paths import Paths
from src.core.settings import Experiment, Model
from src.data.predictions import Predictions
from src.data.tables import read_folds, read_index
from src.parts import building, fitted, models
from src.pipeline import jobs as stages

SVM = Model(arch="svm", encoder="tu-lcnet_035", encoder_weights="none")

# ------------------------------------------------------------------------------------------ the SVM


def examples(labels: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised images whose colour depends on the class, in groups of two."""
    y = torch.tensor(labels)
    noise = torch.randn(len(y), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    colours = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [0, 1, -1]])[y]
    return noise + 2 * colours[..., None, None], y, torch.arange(len(y)) // 2


def machine(classes: int = 3) -> fitted.Svm:
    torch.manual_seed(0)
    return fitted.Svm(SVM, classes)


@pytest.mark.parametrize(
    "labels, classes", [([0, 1, 2, 1] * 10, 3), ([0, 1] * 12, 2), ([0, 0, 2, 2] * 8, 3)]
)
def test_the_svms_probabilities_are_sklearns(labels, classes):
    net = machine(classes).eval()
    images, y, groups = examples(labels)
    net.fit((images[i : i + 8], y[i : i + 8], groups[i : i + 8]) for i in range(0, len(y), 8))
    with torch.no_grad():
        x, p = net.features(images).numpy(), torch.softmax(net(images)["label"], 1).numpy()
    x = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    splits = list(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(x, y, groups))
    reference = CalibratedClassifierCV(
        LinearSVC(C=1e-4, class_weight="balanced", random_state=0, max_iter=20_000),
        cv=splits,
        ensemble=False,
    ).fit(x, y.numpy())
    assert np.allclose(p[:, np.unique(labels)], reference.predict_proba(x), atol=1e-5)
    assert p[:, [c for c in range(classes) if c not in labels]].sum() < 1e-9, (
        "a class without training images has no share"
    )
    assert (p.argmax(1) == y.numpy()).mean() > 0.7


def test_what_the_svm_has_learned_is_in_its_state_dict():
    net, other = machine(), machine()
    images, y, groups = examples([0, 1, 2] * 6)
    before = {k: v.clone() for k, v in net.encoder.state_dict().items()}
    net.train()
    net.fit([(images, y, groups)])
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net(images)["label"], other.eval()(images)["label"]) and not torch.equal(
            net(images)["label"], machine()(images)["label"]
        )
    assert all(torch.equal(v, net.encoder.state_dict()[k]) for k, v in before.items()), (
        "the encoder stays as it was, BatchNorm's statistics too"
    )
    assert not [p for p in net.parameters() if p.requires_grad] and list(other(images)) == ["label"]


def test_autocast_changes_nothing_of_the_svm():
    net = machine().eval()
    images, y, groups = examples([0, 1, 2] * 6)
    net.fit([(images, y, groups)])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = net(images)["label"]
    with torch.no_grad():
        assert torch.equal(inside, net(images)["label"])


def test_near_duplicates_stay_together_where_the_svm_is_calibrated(monkeypatch):
    given = []
    real = CalibratedClassifierCV.fit
    monkeypatch.setattr(
        CalibratedClassifierCV, "fit", lambda self, *a: (given.append(self.cv), real(self, *a))[1]
    )
    images, y, groups = examples([0, 0, 1, 1] * 5)
    machine(2).fit([(images, y, groups)])
    assert len(given[0]) == 5
    for seen, held_out in given[0]:
        assert not {*groups[seen].tolist()} & {*groups[held_out].tolist()} and set(
            y[seen].tolist()
        ) == {0, 1}


@pytest.mark.parametrize("labels", [[1] * 8, [0, 0, 0, 0, 1, 1]])
def test_too_few_images_for_an_svm_are_told(labels):
    images, y, groups = examples(labels)  # one class, or a class of one image and its twin
    with refused("too_few_images"):
        machine(2).fit([(images, y, groups)])


def test_options_that_are_none_are_refused():
    for arch, call in fitted.FITTED.items():
        with pytest.raises(ValueError, match="no option"):
            call(SVM.model_copy(update={"arch": arch, "options": {"kernel": "rbf"}}), 3, None)


# -------------------------------------------------------------------------------------------- masks


def phantom(
    height: int, width: int, centre: tuple[float, float] = (0.4, 0.55), radius: float = 0.14
) -> tuple[np.ndarray, np.ndarray]:
    """A dark disc in bright speckle: image (H,W) uint8, the disc (H,W) bool."""
    y, x = np.mgrid[0:height, 0:width]
    disc = np.hypot(y - centre[0] * height, x - centre[1] * width) < radius * min(height, width)
    speckle = np.random.default_rng(0).normal(1, 0.2, (height, width))
    return (np.where(disc, 40, 140) * speckle).clip(0, 255).astype(np.uint8), disc


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("name", fitted.CLASSICAL)
def test_classical_masks_find_a_dark_disc(name):
    segment = fitted.CLASSICAL[name]
    for height, width in ((96, 96), (120, 180)):
        image, disc = phantom(height, width)
        before, mask = image.copy(), segment(image)
        assert mask.dtype == bool and mask.shape == image.shape and dice(mask, disc) > 0.8
        assert np.array_equal(mask, segment(image)) and np.array_equal(image, before)
        assert cv2.connectedComponents(mask.astype(np.uint8))[0] == 2 and not (
            cv2.connectedComponents((~mask).astype(np.uint8))[0] > 2
        ), "one part without holes"
    assert (
        not segment(np.full((64, 64), 90, np.uint8)).any()
        and not segment(np.zeros((40, 64), np.uint8)).any()
    )
    for shape in ((1, 1), (3, 50)):
        assert (
            segment(np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)).shape
            == shape
        )


@pytest.mark.parametrize("name", fitted.CLASSICAL)
def test_classical_masks_as_a_network(name):
    net = fitted.FITTED[name](Model(arch=name), 3, None)
    image, disc = phantom(96, 96)
    pixels = torch.from_numpy(np.stack([image, image // 2 + 60]))[:, None].float()
    mean, std = (
        255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1),
        255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1),
    )
    out = net((pixels - mean) / std)
    assert (
        list(out) == ["mask"]
        and out["mask"].shape == (2, 1, 96, 96)
        and {*out["mask"].unique().tolist()} == {-4.0, 4.0}
    )
    low, high = int(image.min()), int(image.max())
    assert np.array_equal(
        out["mask"][0, 0].numpy() > 0,
        fitted.CLASSICAL[name](
            ((image.astype(float) - low) * 255 / (high - low)).round().astype(np.uint8)
        ),
    )
    assert dice(out["mask"][1, 0].numpy() > 0, disc) > 0.85, "brightness and contrast do not matter"
    large, disc = phantom(320, 320)
    assert (
        dice(
            net(torch.from_numpy(large)[None, None].float().repeat(1, 3, 1, 1))["mask"][
                0, 0
            ].numpy()
            > 0,
            disc,
        )
        > 0.85
    )
    assert not net.state_dict() and not list(net.parameters())


# ---------------------------------------------------------------------------------------- the chain

CONFIGS = {
    "svm": "task: class\nimage_size: 64\n"
    "model: {arch: svm, encoder: tu-lcnet_035, encoder_weights: none}\n",
    "otsu": "task: mask\nimage_size: 64\nfilter: despeckle\nmodel: {arch: otsu}\n"
    "predict: {tta: [identity], checkpoint: best}\n",
    "both": "members: [svm, otsu]\n",
}
SETTINGS = ["split.folds=2", "train.workers=0"]
CLASSES = ["benign", "malignant", "normal"]


@pytest.fixture(scope="module")
def home(demo, tmp_path_factory):
    """A finished run of an ensemble of labels by svm and masks by otsu."""
    with pytest.MonkeyPatch.context() as patch:
        for name in fitted.FITTED.keys() - models.MODELS.keys():
            patch.setitem(models.MODELS, name, fitted.FITTED[name])
        home = tmp_path_factory.mktemp("fitted")
        (home / "configs").mkdir()
        shutil.copy(ROOT / "configs" / "competition.yaml", home / "configs")
        for name, text in CONFIGS.items():
            (home / "configs" / f"{name}.yaml").write_text(text)
        shutil.copytree(demo, home / "data")
        assert run(home) == 0
        yield home


def run(home, *more: str, config: str = "both") -> int:
    sets = [w for s in SETTINGS for w in ("--set", s)]
    return main(
        [
            *more,
            "--config",
            str(home / "configs" / f"{config}.yaml"),
            "--data",
            str(home / "data"),
            "--work",
            str(home),
            *sets,
        ]
    )


def test_a_fitted_fold_leaves_what_every_fold_leaves(home):
    paths = Paths(home, home / "data")
    for name in ("svm", "otsu"):
        for fold in (0, 1):
            record = json.loads(paths.record("train", name, fold).read_text())
            with open(paths.log(name, fold), newline="") as file:
                rows = list(csv.DictReader(file))
            assert (
                len(rows) == 1
                and rows[0]["epoch"] == "1"
                and float(rows[0]["score"]) == pytest.approx(record["score"], abs=1e-5)
            )
            last, best = (
                torch.load(paths.checkpoint(name, fold, which), weights_only=True)
                for which in ("last", "best")
            )
            assert (
                last["ema"].keys() == best["ema"].keys()
                and record["epochs"] == 1
                and record["ended"]
            )
        loaded = load(home / "configs" / f"{name}.yaml", SETTINGS)
        assert all(
            job.state().done
            for job in stages.plan(loaded, paths)
            if job.stage in ("prepare", "split", "train", "predict")
        )


def test_labels_of_one_and_masks_of_the_other_become_one_prediction(home):
    paths = Paths(home, home / "data")
    ids = read_index(paths, "train")["id"]
    svm, otsu, both = (
        Predictions.load(paths.oof(n), CLASSES).select(ids) for n in ("svm", "otsu", "both")
    )
    assert svm.mask is None and otsu.label is None
    assert np.array_equal(both.label, svm.label) and np.array_equal(both.mask, otsu.mask)
    metrics = json.loads(paths.metrics("both").read_text())
    assert {"dice", "macro_f1"} <= metrics["nested"]["metrics"].keys() and paths.submission(
        "both"
    ).is_file()
    assert json.loads(paths.weights("both").read_text())["label"]["weights"] == {"svm": 1.0}


def test_an_svms_fold_has_not_seen_what_it_answers_for(home):
    """Fitted again on the other fold's images alone, it says the same."""
    paths, config = (
        Paths(home, home / "data"),
        load(home / "configs" / "svm.yaml", SETTINGS + ["predict.tta=[identity]"]),
    )
    index = read_index(paths, "train")
    folds, labels = (
        read_folds(paths, index["id"]),
        index["label"].map(CLASSES.index).to_numpy(np.int64),
    )
    torch.manual_seed(0)
    net = building.build(config.experiment, 3, pretrained=True).eval()
    saved = torch.load(paths.checkpoint("svm", 0, "last"), weights_only=True)["ema"]
    net.load_state_dict(saved)
    x = torch.from_numpy(np.load(paths.images(Experiment(image_size=64, resize="stretch"))))[
        :, None
    ]
    seen = np.flatnonzero(folds != 0)
    net.body.fit(
        [
            (
                (x[seen].float() - net.mean) / net.std,
                torch.from_numpy(labels[seen]),
                torch.from_numpy(index["group"].to_numpy(np.int64)[seen]),
            )
        ]
    )
    assert all(torch.allclose(v, saved[k], atol=1e-4) for k, v in net.state_dict().items())


def test_a_second_run_does_nothing_and_epochs_do_not_resume_a_fit(home, capfd):
    assert run(home) == 0
    assert "everything is up to date" in capfd.readouterr().out
    paths = Paths(home, home / "data")
    record = paths.record("train", "svm", 0)
    record.write_text(json.dumps(json.loads(record.read_text()) | {"ended": None}))
    before = torch.load(paths.checkpoint("svm", 0, "last"), weights_only=True)["ema"]
    assert run(home, "train", "--fold", "0", config="svm") == 0
    after = torch.load(paths.checkpoint("svm", 0, "last"), weights_only=True)["ema"]
    assert all(torch.equal(before[k], after[k]) for k in before), "fitted anew, to the same numbers"


def test_a_task_that_it_has_no_answer_for_is_told(home, tmp_path, capfd):
    copy = shutil.copytree(home, tmp_path / "home")
    (copy / "configs" / "svm.yaml").write_text(CONFIGS["svm"].replace("task: class", "task: mask"))
    assert run(copy, "train", config="svm") == 2
    err = capfd.readouterr().err
    assert "task" in err and "[wrong_answer]" in err
