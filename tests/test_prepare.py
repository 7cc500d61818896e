"""prepare: every layout, every trap of the data, near-duplicates, being stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, box, folder_data, leftovers, picture, prepared, save

from src.core.paths import Paths
from src.core.settings import Experiment
from src.data import duplicates, rle
from src.data.images import read_image, read_mask, resize
from src.data.problems import Problems
from src.data.tables import read_index
from src.pipeline import jobs as stages
from src.pipeline.store import find_test_images, write_test_stores
from src.stages import prepare

SMALL = Experiment(image_size=64)


def test_demo_data_with_all_its_traps(demo, demo_prepared):
    index = read_index(demo_prepared)
    train, test = index[index["set"] == "train"], read_index(demo_prepared, "test")
    assert (
        len(train) == 24 and len(test) == 6 and list(index["set"]) == ["train"] * 24 + ["test"] * 6
    )
    assert (
        list(train["id"])[:3] == ["benign (1)", "benign (2)", "benign (3)"]
        and list(train["id"])[9] == "benign (10)"
    )  # natural order
    assert test["id"].tolist() == [
        line.split(",")[0] for line in (demo / "sample_submission.csv").read_text().split()[1:]
    ]
    assert (
        test["area"].isna().all()
        and (train["area"][train["label"] == "normal"] == 0).all()
        and (train["area"][train["label"] != "normal"] > 0).all()
    )
    truth = rle.Truth.load(demo_prepared.truth)
    images, masks = (
        np.load(demo_prepared.images(SMALL), mmap_mode="r"),
        np.load(demo_prepared.masks(SMALL), mmap_mode="r"),
    )
    assert images.shape == masks.shape == (24, 64, 64) and images.dtype == masks.dtype == np.uint8
    shown = np.load(demo_prepared.images(SMALL, "test"), mmap_mode="r")
    assert shown.shape == (6, 64, 64)
    for row in test.itertuples():
        assert np.array_equal(shown[row.Index], resize(read_image(demo / row.image), 64))
    for row in train.itertuples():
        image = read_image(demo / row.image)
        files = sorted((demo / row.image).parent.glob(f"{row.id}_mask*.png"))
        union = np.any([read_mask(f)[0] for f in files], axis=0)
        assert (
            (row.height, row.width) == image.shape
            and row.masks == len(files)
            and row.area == union.sum()
        )
        assert np.array_equal(truth.mask(row.id), union)
        assert np.array_equal(images[row.Index], resize(image, 64)) and np.array_equal(
            masks[row.Index], resize(union, 64, is_mask=True)
        )
    assert (train["masks"] > 1).any(), "the demo data has images with several masks"


def test_busi_as_downloaded_without_test_set(tmp_path, make_config):
    for number, top in enumerate(("Dataset_BUSI_with_GT", ".")):
        data = tmp_path / f"download{number}"
        folder_data(data)
        shutil.rmtree(data / "test"), (data / "sample_submission.csv").unlink()
        (data / top).mkdir(exist_ok=True)
        for label in ("benign", "malignant", "normal"):
            (data / "train" / label).rename(data / top / label)
        paths = Paths(tmp_path / f"work{number}", data)
        config = make_config()
        prepare.run(None, config, paths)
        assert len(read_index(paths)) == 9 and not paths.images(SMALL, "test").exists()
        assert not stages.has_test(paths) and not prepare.run(None, config, paths)


def test_table_with_folders_of_masks(tmp_path, make_config):
    data = tmp_path / "data"
    lines = ["id,label"]
    for i, label in enumerate(["benign", "malignant", "normal"] * 2):
        save(data / "train_images" / f"{i:03d}.png", picture(i))
        if label != "normal":
            save(data / "train_masks" / f"{i:03d}.png", box())
        lines.append(f"{i:03d},{label}")
    (data / "train.csv").write_text("\n".join(lines))
    index = read_index(prepared(data, tmp_path, make_config()))
    assert index["id"].tolist() == ["000", "001", "002", "003", "004", "005"]
    assert index["area"].tolist() == [225, 225, 0] * 2


@pytest.mark.parametrize("dialect", [("column", 1), ("row", 0)])
def test_table_with_run_lengths(tmp_path, make_config, dialect):
    data, (order, first) = tmp_path / "data", dialect
    lines = ["name,kind,mask"]
    one, two = box(top=2, left=3, side=5), box(top=30, left=40, side=9)
    for i, label in enumerate(["benign", "malignant", "normal"]):
        save(data / "images" / f"{i}.png", picture(i))
        masks = {"benign": [one, two], "malignant": [one], "normal": [one & two]}[label]
        lines += [f"{i}.png,{label},{rle.encode(m, order, first)}" for m in masks]
    (data / "train.csv").write_text("\n".join(lines))
    columns = "data.table_columns={id: name, label: kind, rle: mask}"
    paths = prepared(
        data,
        tmp_path,
        make_config(columns, f"submission.order={order}", f"submission.first_pixel={first}"),
    )
    truth = rle.Truth.load(paths.truth)
    assert (
        np.array_equal(truth.mask("0"), one | two)
        and np.array_equal(truth.mask("1"), one)
        and not truth.mask("2").any()
    )
    assert read_index(paths)["masks"].tolist() == [2, 1, 0]


def test_letterbox_and_three_channels_are_stores_of_their_own(tmp_path, make_config):
    data = folder_data(tmp_path / "data")
    paths = prepared(data, tmp_path, make_config())
    before = paths.index.stat().st_mtime_ns
    assert prepare.run(None, make_config(yaml="image_size: 32\nresize: letterbox\n"), paths)
    assert paths.index.stat().st_mtime_ns == before, "only the new pixels are made"
    assert (
        np.load(paths.images(Experiment(image_size=32, resize="letterbox"))).shape == (9, 32, 32)
        and paths.images(SMALL).is_file()
    )
    colour = Paths(tmp_path / "colour", data)
    prepare.run(None, make_config("data.channels=3"), colour)
    assert np.load(colour.images(SMALL)).shape == (9, 64, 64, 3) and np.load(
        colour.masks(SMALL)
    ).shape == (9, 64, 64)


@pytest.mark.parametrize("damaged", [False, True])
def test_test_images_alone_make_the_same_store(tmp_path, make_config, damaged):
    data, config = folder_data(tmp_path / "data"), make_config("data.on_error=skip")
    if damaged:
        (data / "test" / "t1.png").write_bytes(b"no")  # the first row
    made = prepared(data, tmp_path, config).images(SMALL, "test").read_bytes()
    problems, alone = Problems(), tmp_path / "alone.npy"
    items = find_test_images(data, config.competition, problems)
    items, sizes = write_test_stores(items, {alone: SMALL}, data, config.competition, problems)
    assert [item.id for item in items] == (["t0"] if damaged else ["t1", "t0"])
    assert sizes == [(60, 80)] * len(items) and alone.read_bytes() == made


def test_a_second_run_does_nothing_and_a_changed_file_redoes_it(tmp_path, make_config):
    data, config = folder_data(tmp_path / "data"), make_config()
    paths = prepared(data, tmp_path, config)
    assert all(j.state().done for j in stages.plan(config, paths) if j.stage == "prepare")
    assert prepare.run(None, config, paths) is False
    save(data / "train" / "benign" / "benign (1)_mask_1.png", box(top=0, left=0))
    assert prepare.run(None, config, paths) is True
    assert read_index(paths)["masks"][0] == 2 and read_index(paths)["area"][0] == 450


# ---------------------------------------------------------------------------------- near-duplicates


def test_near_duplicates_are_found_also_mirrored(tmp_path, make_config):
    data = folder_data(tmp_path / "data", per_class=4)
    first, mask = picture(0), box(left=5)
    train = data / "train"
    save(train / "benign" / "benign (1)_mask.png", mask)
    save(
        train / "benign" / "benign (2).png", np.ascontiguousarray(first[:, ::-1])
    )  # mirrored, its mask too
    save(train / "benign" / "benign (2)_mask.png", np.ascontiguousarray(mask[:, ::-1]))
    save(
        train / "malignant" / "malignant (3).png", np.ascontiguousarray(first[::-1])
    )  # upside down: another class, another mask
    save(train / "malignant" / "malignant (3)_mask.png", box(top=0, left=0))
    save(
        train / "normal" / "normal (1).png", np.zeros((60, 80), np.uint8)
    )  # constant images are nobody's twin
    save(train / "normal" / "normal (2).png", np.zeros((60, 80), np.uint8))
    save(data / "test" / "t0.png", first[1:, 1:])
    paths = prepared(data, tmp_path, make_config())
    report = json.loads(paths.report.read_text())
    index = read_index(paths).set_index("id")
    group = index["group"]
    assert group["benign (1)"] == group["benign (2)"] == group["malignant (3)"] == group["t0"]
    assert (group == group["benign (1)"]).sum() == 4 and group.nunique() == 14 - 3
    assert (
        report["counts"]["duplicate_groups"] == 1
        and report["counts"]["surplus"] == 3
        and report["counts"]["test_twins"] == 1
    )
    assert ["benign (1)", "malignant (3)"] in report["contradicting_labels"] and [
        "benign (1)",
        "benign (2)",
    ] not in report["contradicting_labels"]
    assert ["benign (1)", "malignant (3)"] in report["contradicting_masks"] and [
        "benign (1)",
        "benign (2)",
    ] not in report["contradicting_masks"]
    assert {b for _, b in report["test_twins"]} == {"t0"}


def test_pairs_do_not_depend_on_the_blocks(monkeypatch):
    thumbs = np.random.default_rng(0).integers(0, 255, (30, 64, 64)).astype(np.uint8)
    thumbs[7], thumbs[21], thumbs[29] = thumbs[2], thumbs[2][:, ::-1], thumbs[11]
    pairs = duplicates.find_pairs(thumbs, 25, 0.95)
    expected = [(2, 7, 0), (2, 21, 1), (7, 21, 1), (11, 29, 0)]
    assert sorted(zip(pairs.first, pairs.second, pairs.flip)) == expected
    monkeypatch.setattr(duplicates, "BLOCK", 4)
    pairs = duplicates.find_pairs(thumbs, 25, 0.95)
    assert sorted(zip(pairs.first, pairs.second, pairs.flip)) == expected
    group = duplicates.groups(30, pairs)
    assert (
        group[2] == group[7] == group[21]
        and group[11] == group[29]
        and len(set(group)) == 27
        and group[:7].tolist() == list(range(7))
    )


def test_two_test_images_are_not_compared():
    thumbs = np.random.default_rng(0).integers(0, 255, (6, 64, 64)).astype(np.uint8)
    thumbs[5] = thumbs[4]
    assert len(duplicates.find_pairs(thumbs, 4, 0.95)) == 0


def test_constant_images_have_no_twins_and_divide_by_nothing():
    thumbs = np.repeat(np.array([0, 0, 255, 7], np.uint8), 64 * 64).reshape(4, 64, 64)
    with np.errstate(all="raise"):
        assert len(duplicates.find_pairs(thumbs, 4, 0.95)) == 0


# ------------------------------------------------------------------------------------ being stopped


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_leaves_nothing_that_looks_done(kill, tmp_path, make_config):
    data = folder_data(tmp_path / "data")
    config, paths = make_config(), Paths(tmp_path / "work", data)
    code = f"""
import signal, sys, time
# a job in the background starts with it ignored, and hands that down
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from src.config import load as config
from src.core import console
from src.core.paths import Paths
from src.data import dataset
from src.stages import prepare
load = dataset.load
def load_slowly(*a):
    time.sleep(0.3)
    return load(*a)
dataset.load = load_slowly
print("ready", flush=True)
try:
    paths = Paths(Path({str(paths.work)!r}), Path({str(data)!r}))
    prepare.run(None, config.load(Path({str(config.file)!r})), paths)
except console.Stopped as stopped:
    print("stopped:", stopped)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    while not leftovers(paths) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    # Ctrl+C reaches the whole process group, SIGKILL only the parent
    os.killpg(process.pid, kill) if kill == signal.SIGINT else process.kill()
    out, err = process.communicate(timeout=20)
    if kill == signal.SIGINT:
        assert "stopped:" in out and err == "" and not leftovers(paths)
    assert not paths.index.exists() and not paths.images(SMALL).exists()
    assert prepare.run(None, config, paths) and not leftovers(paths)


def test_the_real_images(shared, tmp_path, make_config):
    """The facts that ../shared/README.md states about them, on the pictures themselves."""
    paths = prepared(shared, tmp_path, make_config())
    counts = json.loads(paths.report.read_text())
    assert counts["classes"] == {"benign": 350, "malignant": 168, "normal": 106}
    assert counts["counts"]["test"] == 156 and counts["counts"]["test_twins"] == 0
    assert counts["counts"]["duplicate_groups"] == 93 and counts["counts"]["surplus"] == 117
    index = read_index(paths, "train")
    assert ((index["area"] > 0) == (index["label"] != "normal")).all() and (
        index["masks"] > 1
    ).sum() == 15
