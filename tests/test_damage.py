"""A submission that is damaged in one place, and a sample that does not go with the files: every
one is refused by an error that names the ids and the fault."""

import io
import re
import zipfile

import numpy as np
import pytest
from conftest import refused
from dialects import world
from PIL import Image

from src.core.console import InputError
from src.pipeline.jobs import form_of
from src.stages import prepare
from src.submission import writer

FULL, OTHER = 2, 5  # numbers of images with a mask: of two parts, of whole rows
WORLDS = {  # name: arguments of world(), how a line of the image begins
    "pneumothorax": (
        {
            "sample": "ImageId,EncodedPixels\n{id},-1\n",
            "classes": ["pneumothorax", "none"],
            "none": "none",
            "first_pixel": 0,
            "relative_starts": True,
        },
        "{id}",
    ),
    "steel": (
        {
            "sample": "ImageId_ClassId,EncodedPixels\n{id}.png_1,\n{id}.png_2,\n",
            "classes": ["1", "2", "none"],
            "none": "none",
        },
        "{id}.png_{class}",
    ),
    "bowel": (
        {
            "sample": "id,class,predicted\n{id},large,\n{id},small,\n",
            "classes": ["large", "small", "none"],
            "none": "none",
            "order": "row",
        },
        "{id},{class}",
    ),
    "breast": ({"sample": "id;label;rle\n{id};normal;-1\n"}, "{id}"),
}


@pytest.fixture(scope="module")
def submitted(tmp_path_factory):
    """name -> a world and its right submission, each made once."""
    made = {}

    def get(name: str, **arguments):
        if name not in made:
            w = world(tmp_path_factory.mktemp("damage"), **(arguments or WORLDS[name][0]))
            w.run()
            made[name] = (
                w,
                (w.paths.archive("exp") if "masks" in arguments else w.file).read_bytes(),
            )
        return made[name]

    return get


def line_of(name: str, w, lines: list[str], number: int) -> tuple[int, str]:
    """The line that carries the mask of the image of this number, and the row's id."""
    stem, start = w.ids[number], WORLDS[name][1]
    label = (
        w.of_class(
            stem, [c for c in w.predictions.classes if c != w.config.competition.data.empty_class]
        )
        if "{class}" in start
        else ""
    )
    row = start.replace("{id}", stem).replace("{class}", label)
    [found] = [
        k
        for k, line in enumerate(lines)
        if line.startswith(f"{row};" if name == "breast" else f"{row},")
    ]
    return found, row.split(",")[0]


def damaged(lines: list[str], kind: str, at: int, other: int) -> str:
    """The fault, by its short names; the lines are changed in place."""
    if kind == "missing":
        del lines[at]
        return "ids_missing|not_as_decided"
    if kind == "null":  # where no runs are an answer, too, it is not the one that was decided
        lines[at] = re.sub(r"[^,;]*$", "", lines[at])
        return "empty_cells|not_as_decided"
    if kind == "out of bounds":
        lines[at] = re.sub(r"\d+$", lambda m: str(int(m[0]) + 10**6), lines[at])
        return "bad_runs"
    if kind == "swapped":
        lines[at], lines[other] = lines[other], lines[at]
        return "wrong_order"
    lines.insert(at, lines[at])
    return "id_twice"


@pytest.mark.parametrize("kind", ["missing", "null", "out of bounds", "swapped", "doubled"])
@pytest.mark.parametrize("name", WORLDS)
def test_a_submission_damaged_in_one_place(submitted, name, kind):
    w, whole = submitted(name)
    lines = whole.decode().splitlines()
    (at, id), (other, other_id) = line_of(name, w, lines, FULL), line_of(name, w, lines, OTHER)
    fault = damaged(lines, kind, at, other)
    try:
        w.file.write_text("\n".join(lines) + "\n")
        with pytest.raises(InputError) as error:
            writer.recheck(form_of(w.config, w.paths), w.config, w.paths)
        assert error.value.code in fault.split("|"), error.value
        assert (w.ids[FULL] if "no row" in str(error.value) else id) in str(error.value) or (
            kind == "swapped" and other_id in str(error.value)
        )
    finally:
        w.file.write_bytes(whole)
    writer.recheck(form_of(w.config, w.paths), w.config, w.paths)


CELLS = [  # what stands in the cell of an image's mask, the error, and a word of it
    ("10 5 12 4", "bad_runs", "overlap"),
    ("20 5 10 5", "bad_runs", "sorted"),
    ("10 5 20", "bad_runs", "pairs"),
    ("10 5 20 0", "bad_runs", "outside"),
    ("0 5", "bad_runs", "outside"),
    ("-3 5", "bad_runs", "pairs"),
    ("10 five", "bad_runs", "pairs"),
    ("10.0 5.0", "bad_runs", "pairs"),
    ("10  5", "bad_runs", "pairs"),
    ("nan", "empty_cells", "column rle"),
    ("-1", "not_as_decided", "run lengths"),
    ("10 5", "not_as_decided", "run lengths"),
]


@pytest.mark.parametrize(("cell", "fault", "word"), CELLS)
def test_runs_that_are_none(submitted, cell, fault, word):
    w, whole = submitted("breast")
    check(
        w,
        whole,
        re.sub(rf"(?m)^({w.ids[FULL]};\w+;).*$", rf"\g<1>{cell}", whole.decode()),
        fault,
        w.ids[FULL],
        word,
    )


@pytest.mark.parametrize(
    ("pattern", "by", "fault"),
    [
        (r"(?m)^({id});\w+;", r"\1;;", "empty_cells"),
        (r"(?m)^({id});\w+;", r"\1;tumour;", "unknown_class"),
        (r"(?m)^({id});malignant;", r"\1;benign;", "not_as_decided"),
        (r"(?m)^({id});(\w+);.*$", r"\1;\2", "ragged_table"),
        (r"(?m)^({id});", r"who;", "ids_missing"),
        (r"(?m)^({id});", r";", "ids_missing"),
    ],
)
def test_labels_and_ids_that_are_none(submitted, pattern, by, fault):
    w, whole = submitted("breast")
    id = next(stem for stem in w.ids if w.meant(stem)[1] == "malignant")
    text = whole.decode()
    spoilt = re.sub(pattern.replace("{id}", id), by, text)
    assert spoilt != text
    check(w, whole, spoilt, fault, id)


@pytest.mark.parametrize(
    "head",
    [
        "id;label",
        "id;label;mask",
        "ID;label;rle",
        "id,label,rle",
        "label;id;rle",
        "id; label; rle",
        "",
    ],
)
def test_a_wrong_header(submitted, head):
    w, whole = submitted("breast")
    check(
        w, whole, head + "\n" * bool(head) + whole.decode().partition("\n")[2], "wrong_header", ""
    )


def test_nothing_or_half_of_a_file(submitted):
    w, whole = submitted("breast")
    for text in ("", whole.decode().partition("\n")[0] + "\n"):
        check(w, whole, text, "ids_missing" if text else "wrong_header", "")
    check(w, whole, "\n".join(whole.decode().splitlines()[:4]) + "\n", "ids_missing", w.ids[-1])
    w.file.unlink()
    with refused("no_submission"):
        writer.recheck(form_of(w.config, w.paths), w.config, w.paths)
    w.file.write_bytes(whole)


def check(w, whole: bytes, text: str, fault: str, *words: str) -> None:
    assert text.encode() != whole
    w.file.write_text(text)
    try:
        with refused(fault, *words):
            writer.recheck(form_of(w.config, w.paths), w.config, w.paths)
    finally:
        w.file.write_bytes(whole)


@pytest.mark.parametrize(
    ("cell", "fault"),
    [(cell, "bad_probabilities") for cell in ("0.9", "-0.1", "1.5", "high")]
    + [(cell, "empty_cells") for cell in ("nan", "")],
)
def test_probabilities_that_are_none(submitted, cell, fault):
    w, whole = submitted(
        "chances", sample="id,benign,malignant,normal\n{id},0,0,1\n", answers=("label",)
    )
    check(
        w,
        whole,
        re.sub(rf"(?m)^({w.ids[4]}),[^,]*,", rf"\g<1>,{cell},", whole.decode()),
        fault,
        w.ids[4],
    )


@pytest.mark.parametrize(
    ("by", "fault"),
    [
        (r"\1 0.5", "bad_boxes"),
        ("0.5 5 5 5000 9", "bad_boxes"),
        ("0.5 0 0 {beyond} 1", "bad_boxes"),
        ("0.5 0 0 {width} 1", "not_as_decided"),
        ("0.5 0 0 1 1", "not_as_decided"),
        ("0.5 1 1 1 2", "bad_boxes"),
        ("0.5 9 5 5 9", "bad_boxes"),
        ("2 0 0 5 5", "bad_boxes"),
        ("0.5 a b c d", "bad_boxes"),
        ("", "not_as_decided"),
        (r"\1 \1", "not_as_decided"),
    ],
)
def test_malformed_boxes_are_refused(submitted, by, fault):
    w, whole = submitted(
        "boxes", sample="patientId,PredictionString\n{id},\n", boxes="PredictionString"
    )
    width = w.sizes[w.ids[0]][1]
    by = by.replace("{width}", str(width)).replace("{beyond}", str(width + 1))
    check(
        w,
        whole,
        re.sub(
            rf"(?m)^({w.ids[0]}),(.*)$",
            lambda m: f"{m[1]},{by}".replace(r"\1", m[2]),
            whole.decode(),
        ),
        fault,
        w.ids[0],
    )


def test_a_zip_of_masks_damaged_in_one_place(submitted):
    w, whole = submitted("masks", sample="id,label\n{id},normal\n", masks="masks/{id}.png")
    archive, name = w.paths.archive("exp"), f"masks/{w.ids[FULL]}.png"

    def refused_with(change, fault: str) -> None:
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(archive, "w") as new:
            for entry in old.namelist():
                data = old.read(entry)
                if entry == name:
                    pixels = change(np.asarray(Image.open(io.BytesIO(data))))
                    if pixels is None:
                        continue
                    file = io.BytesIO()
                    Image.fromarray(pixels).save(file, "PNG")
                    data = file.getvalue()
                new.writestr(entry, data)
        with refused(fault, w.ids[FULL]):
            writer.recheck(form_of(w.config, w.paths), w.config, w.paths)

    refused_with(lambda pixels: None, "ids_missing")
    refused_with(lambda pixels: pixels.T.copy(), "bad_masks")
    refused_with(lambda pixels: pixels // 255, "bad_masks")
    refused_with(lambda pixels: pixels * 0, "bad_masks")
    refused_with(lambda pixels: np.dstack([pixels] * 3), "bad_masks")
    archive.write_bytes(whole)
    writer.recheck(form_of(w.config, w.paths), w.config, w.paths)


# ------------------------------------------------------------------------- the sample and the files


@pytest.mark.parametrize("name", WORLDS)
def test_a_sample_that_is_short_of_images(tmp_path, name):
    """A contest's own sample has been a hundred rows short of its test images."""
    arguments = WORLDS[name][0]
    w = world(tmp_path, **arguments, prepared=False)
    sample = w.paths.data / "sample_submission.csv"
    lines = sample.read_text().splitlines()
    absent = [w.ids[1], w.ids[6]]
    sample.write_text(
        "\n".join(line for line in lines if re.split(r"[.,;]", line)[0] not in absent) + "\n"
    )
    with refused("data_test_only") as error:
        prepare.run(None, w.config, w.paths)
    assert all(f"{stem}.png" in str(error.value) for stem in absent)
    assert not any(
        re.search(rf"\b{stem}\b", str(error.value)) for stem in w.ids if stem not in absent
    )


@pytest.mark.parametrize("name", WORLDS)
def test_a_sample_of_images_that_are_not_there(tmp_path, name):
    w = world(tmp_path, **WORLDS[name][0], prepared=False)
    (w.paths.data / "test" / f"{w.ids[4]}.png").unlink()
    with refused("data_sample_only") as error:
        prepare.run(None, w.config, w.paths)
    assert w.ids[4] in str(error.value) and w.ids[5] not in str(error.value)


def test_a_sample_that_was_replaced_since_prepare(tmp_path, capsys):
    w = world(tmp_path, **WORLDS["breast"][0])
    sample = w.paths.data / "sample_submission.csv"
    whole = sample.read_text()
    sample.write_text(
        "\n".join(line for line in whole.splitlines() if not line.startswith(w.ids[2] + ";")) + "\n"
    )
    assert len(w.table(";")) == len(w.ids) - 1
    assert f"not in the sample, and so not in the submission: {w.ids[2]}" in capsys.readouterr().err
    w.file.unlink()
    sample.write_text(whole + "who;normal;-1\n")
    with refused("no_test_image", "who"):
        w.run()
    sample.write_text(whole + f"{w.ids[2]};normal;-1\n")
    with refused("id_twice", w.ids[2]):
        w.run()
    assert not w.file.exists()
