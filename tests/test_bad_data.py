"""Every mistake in the data: one error that names the file, and data.on_error=skip goes on without
it."""

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


def cut(file):
    file.write_bytes(file.read_bytes()[:200])


# what to do to data/train or data/test; its kind among problems.KINDS, the file or id that it must
# name, and the train ids that `skip` leaves out
MISTAKES = {
    "unreadable image": (
        lambda d: cut(d / "train/benign/benign (2).png"),
        ("unreadable", "benign (2).png", ["benign (2)"]),
    ),
    "unreadable mask": (
        lambda d: (d / "train/benign/benign (2)_mask.png").write_bytes(b"no"),
        ("unreadable", "benign (2)_mask.png", ["benign (2)"]),
    ),
    "unreadable test image": (
        lambda d: (d / "test/t0.png").write_bytes(b"no"),
        ("unreadable", "t0.png", []),
    ),
    "mask without image": (
        lambda d: save(d / "train/benign/gone_mask_1.png", box()),
        ("orphan", "gone_mask_1.png", []),
    ),
    "no mask": (
        lambda d: (d / "train/benign/benign (3)_mask.png").unlink(),
        ("no_mask", "benign (3).png", ["benign (3)"]),
    ),
    "size": (
        lambda d: save(d / "train/benign/benign (1)_mask.png", box(61, 80)),
        ("size", "benign (1)_mask.png", ["benign (1)"]),
    ),
    "empty": (
        lambda d: save(d / "train/benign/benign (1)_mask.png", box(side=0)),
        ("empty", "benign (1).png", ["benign (1)"]),
    ),
    "not empty": (
        lambda d: save(d / "train/normal/normal (1)_mask.png", box()),
        ("not_empty", "normal (1).png", ["normal (1)"]),
    ),
    "values": (
        lambda d: save(d / "train/benign/benign (1)_mask.png", picture(5)),
        ("values", "benign (1)_mask.png", ["benign (1)"]),
    ),
    "unknown class": (
        lambda d: save(d / "train/Benin/x.png", picture(6)),
        ("class", "Benin", []),
    ),
    "twice": (
        lambda d: save(d / "train/normal/benign (1).png", picture(7)),
        ("twice", "benign (1)", ["benign (1)"]),
    ),
    "twice in one folder": (
        lambda d: save(d / "train/benign/benign (1).jpg", picture(7)),
        ("twice", "benign (1).jpg", ["benign (1)"]),
    ),
    "sample without image": (
        lambda d: (d / "test/t0.png").unlink(),
        ("sample_only", "t0", []),
    ),
    "image not in sample": (
        lambda d: save(d / "test/t9.png", picture(8)),
        ("test_only", "t9.png", []),
    ),
}


def spoil(kind: str, data):
    do, about = MISTAKES[kind]
    do(data)
    return about


@pytest.mark.parametrize("kind", MISTAKES)
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
        "id,label,rle\n0,benign,1 5\n1,benin,1 5\n2,benign,4790 500\n"
        "3,normal,-1\n7,normal,-1\n0,benign,3 9\n"
    )
    with refused("data_several"):
        prepared(data, tmp_path, make_config())
    said = capsys.readouterr().err
    for text in ("benin of 1 (Did you mean benign)", "without image: 7", "2 (a run lies outside"):
        assert text in said, text
    (data / "train.csv").write_text("name,label\nwho,benign\n")
    with refused("no_column", "column id"):
        prepared(data, tmp_path, make_config())
