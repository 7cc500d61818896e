"""Every dialect of a submission, written from a hand-made sample and read by a decoder of its own
(dialects.py): the rows are the sample's, the masks and classes those that were decided. The YAML
says only what sample and data cannot."""

import io
import re
import zipfile

import numpy as np
import pytest
from dialects import (
    CLASSES,
    DECISION,
    EMPTY,
    SALT,
    STEMS,
    bounds,
    connected,
    kaggle,
    madison,
    one_size,
    outline,
    painted,
    pneumothorax,
    rows,
    world,
)
from PIL import Image

from src.parts.postprocess import Decision


def check(
    world,
    found: list[dict],
    id: str,
    rle: str,
    decode,
    name: str = "{id}",
    empty: str = "",
    size=None,
) -> None:
    """One row an image, in the sample's order, each with the mask that was meant."""
    assert [row[id] for row in found] == [name.replace("{id}", stem) for stem in world.ids]
    for stem, row in zip(world.ids, found):
        mask, _ = world.meant(stem, size)
        assert (row[rle] == empty) == (not mask.any()) == (stem == world.ids[EMPTY]), stem
        if row[rle] != empty:
            assert np.array_equal(decode(row[rle], *mask.shape), mask), stem


def check_keys(world, found: list[tuple[str, str, str]], keys: list[str], decode) -> None:
    """(stem, class, runs), one row an image and class in the sample's order: the mask is in the row
    of its class, the others are empty."""
    assert [(stem, key) for stem, key, _ in found] == [
        (stem, key) for stem in world.ids for key in keys
    ]
    full = 0
    for stem, key, runs in found:
        mask, _ = world.meant(stem)
        if mask.any() and key == world.of_class(stem, keys):
            assert np.array_equal(decode(runs, *mask.shape), mask), (stem, key)
            full += 1
        else:
            assert runs == "", (stem, key)
    assert full == len(world.ids) - 1 and len({world.of_class(s, keys) for s in world.ids}) > 1


# ------------------------------------------------------------------------------------- the contests


def test_siim_acr_pneumothorax(tmp_path, capsys):
    stems = [
        f"1.2.276.0.7230010.3.1.4.8323329.{5000 + 7 * k}.15178752{k}.{850800 + k}"
        for k in (3, 1, 2, 9, 8, 7, 4, 5, 6)
    ]
    table = {
        "order": "column",
        "first": 0,
        "relative": True,
        "sizes": one_size(64, 64),
        "token": "-1",
        "names": ("ImageId", "", " EncodedPixels"),
    }
    w = world(
        tmp_path,
        "ImageId,EncodedPixels\n{id},-1\n",
        ["pneumothorax", "none"],
        "none",
        stems,
        one_size(64, 64),
        table=table,
    )
    assert w.facts() == {"order": "column", "first": 0, "relative": True}
    check(w, w.table(), "ImageId", "EncodedPixels", pneumothorax, empty="-1")
    assert "inferred" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("classes", "row", "keys", "submission"),
    [
        (["1", "2", "3", "4", "none"], "{id}.jpg_%s", ["1", "2", "3", "4"], {}),
        (
            ["pitted", "inclusion", "scratch", "patch", "none"],
            "{id}.jpg_%s",
            ["1", "2", "3", "4"],
            {},
        ),  # Kaggle's integers are the classes in their order, from 1
        (
            ["none", "pitted", "scratch"],
            "{id}.jpg_%s",
            ["1", "2"],
            {},
        ),  # the background counts as 0
        (["pitted", "inclusion", "scratch", "none"], "{id}.jpg_%s", ["0", "1", "2"], {}),
        (
            ["hex_nut", "washer", "ball_bearing", "none"],
            "{id}.png_%s",
            ["hex_nut", "washer", "ball_bearing"],
            {},
        ),
        (
            ["pitted", "scratch", "none"],
            "{id}-%s",
            ["S", "P"],
            {"name": "{id}-{class}", "labels": {"pitted": "P", "scratch": "S"}},
        ),
    ],
)
def test_severstal_steel(tmp_path, classes, row, keys, submission):
    sample = "ImageId_ClassId,EncodedPixels\n" + "".join(f"{row % key},1 1\n" for key in keys)
    w = world(
        tmp_path,
        sample,
        classes,
        "none",
        [f"{k}04f40c73" for k in "cab0e1f23"],
        one_size(32, 200),
        suffix=".jpg",
        **submission,
    )
    found = w.table()
    assert [r["ImageId_ClassId"] for r in found] == [
        row.replace("{id}", stem) % key for stem in w.ids for key in keys
    ]
    of = (
        {"S": "scratch", "P": "pitted"}
        if submission
        else dict(zip(keys, [c for c in classes if c != "none"]))
    )
    stems = [stem for stem in w.ids for _ in keys]
    check_keys(
        w,
        [
            (stem, of[key], r["EncodedPixels"])
            for stem, key, r in zip(stems, keys * len(w.ids), found)
        ],
        [of[k] for k in keys],
        kaggle,
    )


def test_tgs_salt(tmp_path):
    stems = [
        "3e06571ef3",
        "0061281350",
        "155e410609",
        "a51b08d882",
        "c32590b06f",
        "1e22000000",
        "4875705fb0",
        "00000000e9",
        "1234567890",
    ]  # no numbers, whatever they look like
    w = world(tmp_path, "id,rle_mask\n{id},1 1\n", SALT, "none", stems, one_size(101, 101))
    check(w, w.table(), "id", "rle_mask", kaggle)


def test_ultrasound_nerve_segmentation(tmp_path):
    stems = ["1", "2", "3", "4", "5", "6", "9", "10", "11"]
    sample = "img,pixels\n" + "".join(
        f"{stem},{'1 1 5 1' if stem == '1' else '1 1'}\n" for stem in stems
    )
    w = world(tmp_path, sample, ["nerve", "none"], "none", stems, one_size(42, 58), suffix=".tif")
    check(w, w.table(), "img", "pixels", kaggle)


@pytest.mark.parametrize("told", [True, False])
def test_uw_madison_gi_tract(tmp_path, told):
    classes, stems = (
        ["large_bowel", "small_bowel", "stomach", "none"],
        [f"case{100 - k}_day{k}_slice_00{k}5" for k in range(9)],
    )
    table = None if told else {"order": "row", "names": ("id", "class", "segmentation")}
    sample = "id,class,predicted\n{id},stomach,\n{id},large_bowel,\n{id},small_bowel,\n"
    w = world(
        tmp_path, sample, classes, "none", stems, table=table, **({"order": "row"} if told else {})
    )
    check_keys(
        w,
        [(r["id"], r["class"], r["predicted"]) for r in w.table()],
        ["stomach", "large_bowel", "small_bowel"],
        madison,
    )


@pytest.mark.parametrize(("head", "cell"), [("id,predicted", ""), ("id,rle", "12 34")])
def test_hubmap(tmp_path, head, cell):
    stems = [
        "2ec3f1bb9",
        "3589adb90",
        "d488c759a",
        "aa05346ff",
        "57512b7f1",
        "10078",
        "b9a3865fc",
        "8242609fa",
        "e79de561c",
    ]
    w = world(
        tmp_path, f"{head}\n{{id}},{cell}\n", ["glomeruli", "none"], "none", stems, suffix=".tiff"
    )
    check(w, w.table(), "id", head.split(",")[1], kaggle)


@pytest.mark.parametrize("told", [True, False])
def test_airbus_ships_have_a_row_each(tmp_path, told):
    table = (
        None
        if told
        else {
            "several": True,
            "id": "{id}.jpg",
            "sizes": one_size(76, 76),
            "names": ("ImageId", "", "EncodedPixels"),
        }
    )
    stems = [f"{k}0002bd58" for k in "903a5f712"]
    submission = {"row_per_component": True} if told else {}
    w = world(
        tmp_path,
        "ImageId,EncodedPixels\n{id}.jpg,1 2\n",
        ["ship", "none"],
        "none",
        stems,
        one_size(76, 76),
        suffix=".jpg",
        table=table,
        **submission,
    )
    found = w.table()
    assert len(found) > len(stems) + 2
    check_parts(w, found, "ImageId", "EncodedPixels", "{id}.jpg")


def check_parts(world, found: list[dict], id: str, rle: str, name: str) -> None:
    """A row each connected part, an image's rows consecutive, the images in the sample's order; a
    row without runs where there is no part."""
    place = 0
    for stem in world.ids:
        mask, _ = world.meant(stem)
        parts = connected(mask)
        mine = found[place : place + max(1, len(parts))]
        place += len(mine)
        assert {r[id] for r in mine} == {name.replace("{id}", stem)}
        drawn = [kaggle(r[rle], *mask.shape) for r in mine if r[rle]]
        assert sorted(d.tobytes() for d in drawn) == sorted(p.tobytes() for p in parts)
        assert bool(drawn) == (stem != world.ids[EMPTY])
    assert place == len(found)


@pytest.mark.parametrize("more", [False, True])
def test_google_contrails(tmp_path, more):
    stems = [str(1000834164244036115 + 1002653297254493 * k) for k in (0, 4, 2, 8, 1, 7, 3, 6, 5)]
    sample = "record_id,encoded_pixels\n" + "".join(
        f"{s},{'1 1 5 1' if s == stems[0] else '-'}\n" for s in stems
    )
    sample = "record_id,encoded_pixels,height,width\n{id},-,64,64\n" if more else sample
    w = world(
        tmp_path,
        sample,
        ["contrail", "none"],
        "none",
        stems,
        one_size(64, 64),
        **({"passthrough": ["height", "width"]} if more else {}),
    )
    found = w.table()
    check(w, found, "record_id", "encoded_pixels", kaggle, empty="-")
    assert list(found[0]) == sample.split("\n")[0].split(",")
    assert all((r["height"], r["width"]) == ("64", "64") for r in found if more)


def by_rows(text: str, height: int, width: int) -> np.ndarray:
    return painted(text, height, width, "row", 1, False)


def test_512_by_512_in_rows(tmp_path):
    w = world(
        tmp_path,
        "ImageId,Predicted\n{id}_segmentation,-1\n",
        SALT,
        "none",
        order="row",
        size=[512, 512],
    )
    check(w, w.table(), "ImageId", "Predicted", by_rows, "{id}_segmentation", "-1", (512, 512))


def test_512_by_512_in_rows_found_in_the_training_table(tmp_path):
    table = {
        "order": "row",
        "sizes": one_size(512, 512),
        "masks": [outline((512, 512), k) for k in (0, 3, 5, 6, 7, 8)],
        "id": "{id}_segmentation",
    }
    w = world(
        tmp_path,
        "ImageId,Predicted\n{id}_segmentation,-1\n",
        SALT,
        "none",
        sizes=one_size(512, 512),
        table=table,
    )
    assert w.facts() == {"order": "row", "first": 1, "relative": False}
    check(w, w.table(), "ImageId", "Predicted", by_rows, "{id}_segmentation", "-1")


@pytest.mark.parametrize(
    ("cell", "empty"),
    [
        ("12 34", ""),
        ("1 4096", ""),
        ("0 0", "0 0"),
        ("1 0", "1 0"),
        ("0", "0"),
        ("none", "none"),
        ("no mask", "no mask"),
    ],
)
def test_what_stands_for_an_empty_mask(tmp_path, cell, empty):
    """As the sample writes it; runs that stand in every row are examples, and the cell stays empty.
    A column of the name rle holds runs, even where a class is called none."""
    w = world(tmp_path, f"id,rle\n{{id}},{cell}\n", SALT, "none")
    check(w, w.table(), "id", "rle", kaggle, empty=empty)


@pytest.mark.parametrize("apart", [False, True])
def test_a_sample_with_several_rows_an_image(tmp_path, apart):
    """Its parts stand together at the place of its first row, as many as there are."""
    twice = STEMS[:4]
    lines = (
        [*STEMS, *twice] if apart else [stem for stem in STEMS for _ in range(1 + (stem in twice))]
    )
    w = world(
        tmp_path,
        "id,rle\n" + "".join(f"{stem},{k + 1} 2\n" for k, stem in enumerate(lines)),
        SALT,
        "none",
    )
    check_parts(w, w.table(), "id", "rle", "{id}")


# ------------------------------------------------------------------------ classes and probabilities


@pytest.mark.parametrize(
    ("cells", "names", "submission"),
    [
        (["normal"], CLASSES, {}),
        (["0", "1", "2"], ["0", "1", "2"], {}),
        (["1", "2", "3"], ["1", "2", "3"], {}),
        (["B"], ["B", "M", "-"], {"labels": {"benign": "B", "malignant": "M", "normal": "-"}}),
    ],
)
@pytest.mark.parametrize("runs", [True, False])
def test_id_label_and_runs_or_the_label_alone(tmp_path, cells, names, submission, runs):
    head = "image,class,mask" if runs else "image,class"
    sample = "\n".join(
        [
            head,
            *(f"{stem},{cells[k % len(cells)]}" + ",-1" * runs for k, stem in enumerate(STEMS)),
            "",
        ]
    )
    w = world(tmp_path, sample, answers=("mask", "label") if runs else ("label",), **submission)
    found = w.table()
    if runs:
        check(w, found, "image", "mask", kaggle, empty="-1")
    of = dict(zip(CLASSES, names))
    decided = (
        [w.meant(stem)[1] for stem in STEMS]
        if runs
        else [CLASSES[k] for k in w.predictions.label.argmax(1)]
    )
    assert [(r["image"], r["class"]) for r in found] == [
        (stem, of[label]) for stem, label in zip(STEMS, decided)
    ]
    assert len(set(decided)) == 3


def test_a_class_that_is_called_like_nothing(tmp_path):
    w = world(tmp_path, "id,label\n{id},none\n", SALT, "none")
    assert [r["label"] for r in w.table()] == [w.meant(stem)[1] for stem in STEMS]
    assert "none" in w.text()


NAMED = {"probabilities": {"benign": "p_b", "malignant": "p_m", "normal": "p_n"}}


@pytest.mark.parametrize(
    ("head", "submission"), [("id,malignant,normal,benign", {}), ("image_id,p_m,p_n,p_b", NAMED)]
)
def test_probabilities_alone(tmp_path, head, submission):
    w = world(tmp_path, f"{head}\n{{id}},0.5,0.25,0.25\n", answers=("label",), **submission)
    id, *columns = head.split(",")
    found = w.table()
    assert [r[id] for r in found] == STEMS and list(found[0]) == [id, *columns]
    told = np.array([[float(r[c]) for c in columns] for r in found])
    assert np.allclose(told, w.predictions.label[:, [1, 2, 0]], atol=1e-5)
    assert np.allclose(told.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("lesion", [255, 1])
def test_png_masks_in_a_zip_beside_the_csv(tmp_path, lesion):
    w = world(
        tmp_path,
        "id,label\n{id},normal\n",
        masks="masks/{id}.png",
        **({"mask_value": 1} if lesion == 1 else {}),
    )
    w.run()
    with zipfile.ZipFile(w.paths.archive("exp")) as archive:
        assert archive.testzip() is None
        tables = [n for n in archive.namelist() if n.endswith(".csv")]
        assert sorted(archive.namelist()) == sorted(
            [*tables, *(f"masks/{stem}.png" for stem in STEMS)]
        )
        assert len(tables) == 1
        assert [(r["id"], r["label"]) for r in rows(archive.read(tables[0]).decode())] == [
            (stem, w.meant(stem)[1]) for stem in STEMS
        ]
        for stem in STEMS:
            pixels = np.asarray(Image.open(io.BytesIO(archive.read(f"masks/{stem}.png"))))
            assert pixels.dtype == np.uint8 and np.array_equal(
                pixels, w.meant(stem)[0] * np.uint8(lesion)
            ), stem


@pytest.mark.parametrize(
    ("box", "cell", "empty"),
    [
        (None, "", ""),
        (None, "0.5 0 0 100 100", "inferred"),
        (None, "-1", "-1"),
        ("confidence xmin ymin width height", "0.5 0 0 100 100", ""),  # RSNA
        (
            "label confidence xmin ymin xmax ymax",
            "14 1 0 0 1 1",
            "14 1 0 0 1 1",
        ),  # VinBigData, whose class 14 is no finding
    ],
)
def test_boxes(tmp_path, box, cell, empty):
    submission, empty = (
        {"boxes": "PredictionString"} if empty != "inferred" else {},
        empty.replace("inferred", ""),
    )
    submission |= {"box": box} if box else {}
    submission |= (
        {"empty": empty, "labels": {"benign": "3", "malignant": "11", "normal": "14"}}
        if box and "label" in box
        else {}
    )
    w = world(
        tmp_path,
        f"patientId,PredictionString\n{{id}},{cell}\n",
        decision=Decision(**(vars(DECISION) | {"agree": "mask"})),
        **submission,
    )
    words, found = (box or "confidence xmin ymin xmax ymax").split(), w.table()
    assert [r["patientId"] for r in found] == STEMS
    for stem, row in zip(STEMS, found):
        mask, label = w.meant(stem)
        if not mask.any():
            assert row["PredictionString"] == empty
            continue
        cells = row["PredictionString"].split(" ")
        boxes = [
            dict(zip(words, cells[k : k + len(words)], strict=True))
            for k in range(0, len(cells), len(words))
        ]
        for one in boxes:
            assert re.fullmatch(r"0\.\d{4}|1\.0000", one["confidence"])
            assert one.get("label") in (None, {"benign": "3", "malignant": "11"}[label])
            left, top = int(one["xmin"]), int(one["ymin"])
            one["corners"] = (
                (left, top, int(one["xmax"]), int(one["ymax"]))
                if "xmax" in one
                else (left, top, left + int(one["width"]), top + int(one["height"]))
            )
        assert sorted(b["corners"] for b in boxes) == sorted(bounds(p) for p in connected(mask)), (
            stem
        )
    assert sum(bool(w.meant(s)[0].any()) for s in STEMS) > 3


# ---------------------------------------------------------------------------- files and their names


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters(tmp_path, delimiter):
    w = world(tmp_path, "id,label,rle\n{id},normal,-1\n".replace(",", delimiter))
    found = w.table(delimiter)
    check(w, found, "id", "rle", kaggle, empty="-1")
    assert [r["label"] for r in found] == [w.meant(stem)[1] for stem in STEMS]


@pytest.mark.parametrize(
    ("head", "end"),
    [
        ("\ufeffid,label,rle", "\n"),
        ("id, label, rle", "\n"),
        ('"id","label","rle"', "\n"),
        ("id,label,rle  ", "\n"),
        ('\ufeff"id", label ,rle', "\r\n"),
    ],
)
def test_the_header_is_the_samples_own_letter_for_letter(tmp_path, head, end):
    w = world(tmp_path, head + end + "".join(f"{stem},normal,-1{end}" for stem in STEMS))
    first, _, rest = w.text().replace("\r\n", "\n").partition("\n")
    assert first.strip("\ufeff") == head.strip("\ufeff")
    found = rows("id,label,rle\n" + rest)
    check(w, found, "id", "rle", kaggle, empty="-1")
    assert [r["label"] for r in found] == [w.meant(stem)[1] for stem in STEMS]


@pytest.mark.parametrize(
    ("name", "stems", "suffix", "submission"),
    [
        ("test/{id}.png", STEMS, ".png", {}),
        ("{id}.JPG", STEMS, ".JPG", {}),
        ("stage1/test/{id}", STEMS, ".png", {}),
        ("image-{id}", STEMS, ".png", {"name": "image-{id}"}),
        ("{id}", [f"us ({k}).v2.png" for k in range(1, 10)], ".png", {}),  # us (1).v2.png.png
        ("{id}.png", [f"us ({k}).v{k}" for k in range(1, 10)], ".png", {}),
        ("{id}", [f"us, ({k}) ü" for k in range(9, 0, -1)], ".png", {}),
    ],
)
def test_ids_and_the_names_of_files(tmp_path, name, stems, suffix, submission):
    sample = "id,rle\n" + "".join(f'"{name.replace("{id}", stem)}",-1\n' for stem in stems)
    w = world(tmp_path, sample, SALT, "none", stems, suffix=suffix, **submission)
    check(w, w.table(), "id", "rle", kaggle, name, "-1")
