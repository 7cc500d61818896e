"""The dialects of run lengths: encoder and decoders of the tests against each other, and what
prepare finds out of a training table's. What cannot be known must be said to be assumed, never
guessed in silence."""

import csv

import numpy as np
import pytest
from dialects import (
    SALT,
    SIZES,
    bounds,
    connected,
    ellipse,
    kaggle,
    madison,
    one_size,
    outline,
    painted,
    pneumothorax,
    world,
    written,
)
from test_dialects import by_rows, check

from src.config.load import load
from src.data.rle import Truth
from src.stages import prepare

WAYS = [
    (order, first, relative)
    for order in ("column", "row")
    for first in (0, 1)
    for relative in (False, True)
]


# ---------------------------------------------------------- the decoders, before they are relied on


@pytest.mark.parametrize("way", WAYS)
def test_the_decoders_read_what_the_encoder_of_the_tables_writes(way):
    for number, size in enumerate([(23, 31), (31, 23), (20, 20)]):
        for mask in (
            outline(size, number),
            outline(size, 5),
            np.ones(size, bool),
            np.random.default_rng(number).random(size) < 0.4,
        ):
            assert np.array_equal(painted(written(mask, *way), *size, *way), mask)
            others = {
                ("column", 1, False): kaggle,
                ("row", 1, False): madison,
                ("column", 0, True): pneumothorax,
            }
            if way in others:
                assert np.array_equal(others[way](written(mask, *way), *size), mask)


def test_the_decoders_against_the_contests_own_examples():
    #  pixels of columns: 1 4 7 | 2 5 8 | 3 6 9; of rows: 1 2 3 | 4 5 6 | 7 8 9
    assert kaggle("1 3", 3, 3).tolist() == [[1, 0, 0]] * 3 and madison("1 3", 3, 3).tolist() == [
        [1, 1, 1],
        [0, 0, 0],
        [0, 0, 0],
    ]
    assert pneumothorax("1 1 2 3", 3, 3).tolist() == [
        [0, 0, 1],
        [1, 1, 0],
        [0, 1, 0],
    ]  # pixel 1, then from 2: two on, 4 to 6
    wrong = [
        (kaggle, "9 2"),
        (kaggle, "0 1"),
        (kaggle, "3 2 4 1"),
        (kaggle, "4 1 1 1"),
        (kaggle, "1 1 2"),
        (kaggle, "1 1.0"),
        (madison, "10 1"),
        (pneumothorax, "8 2"),
    ]
    for decode, text in wrong:
        with pytest.raises((AssertionError, IndexError)):
            decode(text, 3, 3)
    assert sorted(
        bounds(p)
        for p in connected(np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool))
    ) == [(0, 0, 3, 2), (0, 3, 1, 4)]


# ------------------------------------------ what the training table's run lengths say of themselves


@pytest.mark.parametrize("way", WAYS)
def test_the_way_of_counting_is_found_in_the_training_table(tmp_path, way, capsys):
    order, first, relative = way
    w = world(
        tmp_path,
        "id,rle\n{id},\n",
        SALT,
        "none",
        table={"order": order, "first": first, "relative": relative},
    )
    assert "assumed" not in "".join(capsys.readouterr())
    found_all(w, way)
    check(w, w.table(), "id", "rle", lambda text, h, w: painted(text, h, w, *way))


@pytest.mark.parametrize("way", [*WAYS[:2], *WAYS[-2:], ("row", 0, True)])
def test_square_images_show_where_their_lesions_are(tmp_path, way, capsys):
    """A transposed mask is a fine mask, but lies in the wrong place: lesions are brighter than
    their surroundings."""
    w = world(
        tmp_path,
        "id,rle\n{id},\n",
        SALT,
        "none",
        sizes=one_size(60, 60),
        table=dict(zip(("order", "first", "relative"), way)) | {"sizes": one_size(60, 60)},
    )
    assert "assumed" not in "".join(capsys.readouterr())
    found_all(w, way)
    check(w, w.table(), "id", "rle", lambda text, h, w: painted(text, h, w, *way))


def test_a_training_table_counted_at_a_size_of_its_own(tmp_path):
    """The images are of other sizes: masks are decoded at the table's size and brought to the
    images', and the answers are counted at it again."""
    w = world(
        tmp_path,
        "ImageId,Predicted\n{id},-1\n",
        SALT,
        "none",
        table={"order": "row", "counted": (96, 128)},
        size=[96, 128],
    )
    truth = Truth.load(w.paths.truth)
    for number, size in enumerate(SIZES):
        mask, true = truth.mask(f"b{number}"), outline(size, number)
        assert mask.shape == size and 2 * (mask & true).sum() / (mask.sum() + true.sum()) > 0.93
    check(w, w.table(), "ImageId", "Predicted", by_rows, empty="-1", size=(96, 128))


def found_all(w, way) -> None:
    """The facts, and every train mask, are those of the table's maker."""
    assert w.facts() == dict(zip(("order", "first", "relative"), way))
    truth = Truth.load(w.paths.truth)
    for number, size in enumerate(truth.sizes):
        if number < len(SIZES):
            assert np.array_equal(truth.mask(f"b{number}"), outline(tuple(size), number))


@pytest.mark.parametrize("way", [("column", 1, False), ("row", 1, False), ("row", 0, False)])
def test_what_cannot_be_known_is_said_to_be_assumed(tmp_path, way, capsys):
    """Discs on the diagonal of square images without any contrast: nothing tells columns from rows,
    and no disc at an edge tells 0 from 1."""
    masks = [ellipse((60, 60), y, y, 0.1, 0.1) for y in (0.3, 0.5, 0.6)]
    world(
        tmp_path,
        "id,rle\n{id},\n",
        SALT,
        "none",
        sizes=one_size(60, 60),
        table={"order": way[0], "first": way[1], "masks": masks, "visible": False},
    )
    assert "assumed" in capsys.readouterr().err


@pytest.mark.parametrize("way", [WAYS[0], *WAYS[2:6]])
def test_masks_away_from_the_corners_never_mislead_silently(tmp_path, way, capsys):
    """No run has the first or the last pixel of an image: what is found is right, or it is said to
    be assumed."""
    masks = [outline(size, k) for k, size in zip((0, 3, 5, 6, 7, 8), SIZES)]
    w = world(
        tmp_path,
        "id,rle\n{id},\n",
        SALT,
        "none",
        table=dict(zip(("order", "first", "relative"), way)) | {"masks": masks},
    )
    assert (
        w.facts() == dict(zip(("order", "first", "relative"), way))
        or "assumed" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("head", "id"),
    [
        (["id", "class", "segmentation"], "{id}"),
        (["ImageId_ClassId", "", "EncodedPixels"], "{id}.jpg_{class}"),
    ],
)
def test_a_training_table_with_a_row_an_image_and_class(tmp_path, head, id):
    """UW-Madison's and Severstal's: the rows of the other classes are without runs, and of an image
    without a lesion all are."""
    keys = ["1", "2", "3"]
    sample = "id,class,predicted\n" + "".join(f"{{id}},{key},\n" for key in keys)
    w = world(
        tmp_path,
        sample,
        [*keys, "none"],
        "none",
        table={"order": "row", "names": ("id", "class", "segmentation")},
        prepared=False,
    )
    file, config = w.paths.data / "train.csv", tmp_path / "configs" / "competition.yaml"
    with open(file, newline="") as lines:
        table = [
            (r["id"], key, r["segmentation"] if r["class"] == key else "")
            for r in csv.DictReader(lines)
            for key in keys
        ]
    with open(file, "w", newline="") as lines:
        rows = [
            (id.replace("{id}", stem).replace("{class}", key), key, runs)
            for stem, key, runs in table
        ]
        csv.writer(lines).writerows(
            [[cell for cell, name in zip(row, head) if name] for row in (head, *rows)]
        )
    about = config.read_text()
    for key, name in zip(("id", "class", "segmentation"), head):
        about = (
            about.replace(f": {key}\n", f": {name}\n")
            if name
            else about.replace("    label: class\n", "")
        )
    config.write_text(about)
    w.config = load(config.with_name("exp.yaml"))
    prepare.run(None, w.config, w.paths)
    found_all(w, ("row", 1, False))
    with open(w.paths.index, newline="") as lines:
        assert [(r["id"], r["label"]) for r in csv.DictReader(lines) if r["set"] == "train"] == [
            (f"b{n}", keys[n % 3] if n < 9 else "none") for n in range(11)
        ]


@pytest.mark.parametrize("first", [0, 1])
def test_one_run_over_the_end_of_a_line_is_no_proof(tmp_path, first, capsys):
    """Two specks, the last pixel of a column and the first of the next, are a run that looks
    shifted by one, and is not."""
    masks = [ellipse(size, 0.5, 0.4, 0.2, 0.15) for size in SIZES]
    for row, column in ((-1, 10), (0, 11)) if first else ((-1, 10), (0, 11), (1, 11)):
        masks[2][row, column] = True
    w = world(tmp_path, "id,rle\n{id},\n", SALT, "none", table={"first": first, "masks": masks})
    assert w.facts()["first"] == first or "first" in capsys.readouterr().err.split("assumed")[0]


@pytest.mark.parametrize("way", [("row", 0, True), ("column", 0, False), ("row", 1, True)])
def test_what_the_yaml_says_is_not_inferred(tmp_path, way, capsys):
    w = world(
        tmp_path,
        "id,rle\n{id},-1\n",
        SALT,
        "none",
        **dict(zip(("order", "first_pixel", "relative_starts"), way)),
        empty="nothing",
    )
    check(
        w,
        w.table(),
        "id",
        "rle",
        lambda text, h, wide: painted(text, h, wide, *way),
        empty="nothing",
    )
    said = capsys.readouterr().out
    assert "inferred rle" in said and not any(
        f"inferred {word}" in said for word in ("order", "first_pixel", "relative_starts", "empty")
    )
