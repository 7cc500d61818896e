"""The generated images: the same every time, in BUSI's layout, with its traps."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from PIL import Image

from src.data.images import read_image, read_mask
from src.tools import demo_data


def digest(folder: Path) -> str:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return hashlib.sha256(
        b"".join(f.relative_to(folder).as_posix().encode() + f.read_bytes() for f in files)
    ).hexdigest()


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    def make(name: str, seed: int) -> str:
        return digest(demo_data.make(tmp_path / name, 12, 3, seed=seed, size=(60, 90)))

    assert make("a", 0) == make("b", 0) != make("c", 1)


def test_a_finished_folder_is_not_made_again_and_others_are_not_touched(tmp_path):
    folder = demo_data.make(tmp_path / "data", 12, 3, size=(60, 90))
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    assert demo_data.make(folder, 12, 3, size=(60, 90)) == folder and before == {
        f: f.stat().st_mtime_ns for f in folder.rglob("*")
    }
    demo_data.make(folder, 12, 4, size=(60, 90))
    assert len(list((folder / "test").iterdir())) == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with refused("not_generated", "mine"):
        demo_data.make(tmp_path / "mine", 12, 3)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_stopped_in_the_middle_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(
        demo_data, "_make_test", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        demo_data.make(tmp_path / "data", 12, 3, size=(60, 90))
    assert not (tmp_path / "data").exists()
    monkeypatch.undo()
    assert (
        demo_data.make(tmp_path / "data", 12, 3, size=(60, 90)) / "sample_submission.csv"
    ).is_file()


def test_proportions():
    for n in (12, 24, 60, 168, 780):
        counts = demo_data.class_counts(n)
        assert sum(counts.values()) == n and list(counts) == ["benign", "malignant", "normal"]
        assert counts["benign"] >= counts["malignant"] >= counts["normal"] >= n // 6
    assert min(demo_data.class_counts(168).values()) >= 40
    assert demo_data.class_counts(780)["malignant"] == 211


def test_busi_s_traps_are_in_it(demo):
    images = [f for f in demo.rglob("*.png") if "_mask" not in f.name]
    masks = list(demo.rglob("*_mask*.png"))

    def modes(files):
        return {Image.open(f).mode for f in files}

    assert modes(images) == {"L", "RGB"}
    assert modes(f for f in masks if "normal" not in f.name) == {"1", "RGBA"}
    assert modes(f for f in masks if "normal" in f.name) == {"RGB"}
    assert any(f.name.endswith("_mask_1.png") for f in masks)
    assert len({Image.open(f).size for f in images}) > 15
    for f in masks:
        mask, two_valued = read_mask(f)
        assert (
            two_valued
            and mask.any() == ("normal" not in f.name)
            and mask.shape == read_image(f.with_name(f.name.split("_mask")[0] + ".png")).shape
        )
        if Image.open(f).mode == "RGBA":
            assert np.asarray(Image.open(f))[..., 3].min() == 255
    lines = (demo / "sample_submission.csv").read_text().splitlines()
    assert lines[0] == "id,label,rle" and {line.split(",")[0] for line in lines[1:]} == {
        f.stem for f in (demo / "test").iterdir()
    }
    assert all(line.endswith(",normal,-1") for line in lines[1:])


def test_lesions_look_as_they_should(demo):
    """Dark against their surroundings; malignant ones upright and with a shadow below, benign ones
    flat: what a network is to learn."""
    upright, below = {"benign": [], "malignant": []}, {"benign": [], "malignant": []}
    for label in upright:
        for file in sorted((demo / "train" / label).glob(f"{label} (*).png")):
            image, mask = (
                read_image(file).astype(float),
                read_mask(file.with_name(f"{file.stem}_mask.png"))[0],
            )
            rows, columns = np.nonzero(mask)
            assert image[mask].mean() < 0.75 * image[~mask].mean()
            upright[label].append(np.ptp(rows) / np.ptp(columns))
            end = min(rows.max() + 2 + image.shape[0] // 8, image.shape[0])
            if end - rows.max() > 6:
                strip = image[rows.max() + 2 : end]
                middle = slice(
                    int(columns.mean() - np.ptp(columns) / 5),
                    int(columns.mean() + np.ptp(columns) / 5),
                )
                beside = np.delete(strip, np.arange(columns.min(), columns.max() + 1), axis=1)
                below[label].append(strip[:, middle].mean() / beside.mean())
    assert np.median(upright["benign"]) < 0.8 < 1.1 < np.median(upright["malignant"])
    assert np.median(below["malignant"]) < 0.7 < 0.9 < np.median(below["benign"])
