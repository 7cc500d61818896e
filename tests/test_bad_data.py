"""Every mistake in the data: one error that names the file, and data.on_error=skip goes on without it."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import box, folder_data, leftovers, picture, prepared, refused, save

from src.core.paths import Paths
from src.core.settings import Experiment
from src.data import problems
from src.data.images import read_image, resize
from src.data.tables import read_index
from src.stages import prepare

SMALL = Experiment(image_size=64)


def spoil(kind: str, data):
    """Make one mistake; returns (its kind among problems.KINDS, the file or id that it must name, the train ids that `skip` leaves out)."""
    benign, normal = data / "train" / "benign", data / "train" / "normal"
    if kind == "unreadable image":
        file = benign / "benign (2).png"
        file.write_bytes(file.read_bytes()[:200])
        return "unreadable", "benign (2).png", ["benign (2)"]
    if kind == "unreadable mask":
        (benign / "benign (2)_mask.png").write_bytes(b"no")
        return "unreadable", "benign (2)_mask.png", ["benign (2)"]
    if kind == "unreadable test image":
        (data / "test" / "t0.png").write_bytes(b"no")
        return "unreadable", "t0.png", []
    if kind == "mask without image":
        save(benign / "gone_mask_1.png", box())
        return "orphan", "gone_mask_1.png", []
    if kind == "no mask":
        (benign / "benign (3)_mask.png").unlink()
        return "no_mask", "benign (3).png", ["benign (3)"]
    if kind == "size":
        save(benign / "benign (1)_mask.png", box(61, 80))
        return "size", "benign (1)_mask.png", ["benign (1)"]
    if kind == "empty":
        save(benign / "benign (1)_mask.png", box(side=0))
        return "empty", "benign (1).png", ["benign (1)"]
    if kind == "not empty":
        save(normal / "normal (1)_mask.png", box())
        return "not_empty", "normal (1).png", ["normal (1)"]
    if kind == "values":
        save(benign / "benign (1)_mask.png", picture(5))
        return "values", "benign (1)_mask.png", ["benign (1)"]
    if kind == "unknown class":
        save(data / "train" / "Benin" / "x.png", picture(6))
        return "class", "Benin", []
    if kind == "twice":
        save(normal / "benign (1).png", picture(7))
        return "twice", "benign (1)", ["benign (1)"]
    if kind == "twice in one folder":
        save(benign / "benign (1).jpg", picture(7))
        return "twice", "benign (1).jpg", ["benign (1)"]
    if kind == "sample without image":
        (data / "test" / "t0.png").unlink()
        return "sample_only", "t0", []
    if kind == "image not in sample":
        save(data / "test" / "t9.png", picture(8))
        return "test_only", "t9.png", []
    raise AssertionError(kind)


KINDS = [
    "unreadable image",
    "unreadable mask",
    "unreadable test image",
    "mask without image",
    "no mask",
    "size",
    "empty",
    "not empty",
    "values",
    "unknown class",
    "twice",
    "twice in one folder",
    "sample without image",
    "image not in sample",
]


@pytest.mark.parametrize("kind", KINDS)
def test_each_mistake_is_one_error_that_names_the_file_and_skip_goes_on(
    kind, tmp_path, make_config, capsys
):
    data = folder_data(tmp_path / "data")
    found, name, gone = spoil(kind, data)
    with refused(f"data_{found}", name, "data.on_error=skip") as error:
        prepared(data, tmp_path, make_config())
    assert "\n" not in str(error.value)
    paths = Paths(tmp_path / "work", data)
    assert not paths.index.exists() and not leftovers(paths)

    capsys.readouterr()
    config = make_config("data.on_error=skip")
    prepare.run(None, config, paths)
    said = capsys.readouterr().err
    assert problems.KINDS[found][0] in said and name in said
    train = read_index(paths, "train")
    assert set(train["id"]) == {
        f"{c} ({i})" for c in ("benign", "malignant", "normal") for i in (1, 2, 3)
    } - set(gone)
    images, masks = (
        np.load(paths.images(SMALL)),
        np.load(paths.masks(SMALL)),
    )
    assert len(images) == len(masks) == len(train)
    for row in train.itertuples():  # the rows of the store are the rows of the index
        assert np.array_equal(
            images[row.Index], resize(read_image(data / row.image), 64)
        ) and masks[row.Index].any() == (row.label != "normal")
    test = read_index(paths, "test")
    assert len(np.load(paths.images(SMALL, "test"))) == len(test) == (1 if "t0" in name else 2)
    assert prepare.run(None, config, paths) is False
    assert prepare.run(
        None, make_config("data.on_error=skip", yaml="image_size: 32\n"), paths
    ) and len(np.load(paths.images(Experiment(image_size=32, resize="stretch")))) == len(train)


def test_all_mistakes_are_told_at_once(tmp_path, make_config, capsys):
    data = folder_data(tmp_path / "data")
    together = [
        "unreadable image",
        "mask without image",
        "no mask",
        "not empty",
        "unknown class",
        "image not in sample",
    ]
    told = [spoil(kind, data)[:2] for kind in together]
    with refused("data_several", "6 problems of 6 kinds"):
        prepared(data, tmp_path, make_config())
    said = capsys.readouterr().err.splitlines()
    for found, name in told:
        line = next(line for line in said if problems.KINDS[found][0] in line)
        assert name in line, (found, line)


def test_a_folder_without_data_says_what_to_do(tmp_path, make_config):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "notes.txt").write_text("x")
    for data, code in ((tmp_path / "absent", "no_such_folder"), (tmp_path / "bare", "no_images")):
        with refused(code, "--data DIR", "./run.sh demo"):
            prepared(data, tmp_path, make_config())


def test_mistakes_in_the_table(tmp_path, make_config, capsys):
    data = tmp_path / "data"
    for i in range(4):
        save(data / "images" / f"{i}.png", picture(i))
    (data / "train.csv").write_text(
        "id,label,rle\n0,benign,1 5\n1,benin,1 5\n2,benign,4790 500\n3,normal,-1\n7,normal,-1\n0,benign,3 9\n"
    )
    with refused("data_several"):
        prepared(data, tmp_path, make_config())
    said = capsys.readouterr().err
    for text in ("benin of 1 (Did you mean benign)", "without image: 7", "2 (a run lies outside"):
        assert text in said, text
    (data / "train.csv").write_text("name,label\nwho,benign\n")
    with refused("no_column", "column id"):
        prepared(data, tmp_path, make_config())
