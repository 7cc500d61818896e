"""Data that nobody means and that comes all the same: no files, odd names, giants, any tables."""

from __future__ import annotations

import os
import socket
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import box, folder_data, picture, prepared, refused, save, write_config
from PIL import Image
from test_evaluate import FEW, messy, write_table
from test_submit import evaluated, ready, settings  # noqa: F401  fixtures
from zygote import Zygote

from src.core.console import InputError, counted
from src.core.settings import Competition, Experiment
from src.data.cells import as_text, is_formula
from src.data.dataset import find_test, natural
from src.data.files import data_files
from src.data.images import read_image, read_mask
from src.data.problems import Problems
from src.data.tables import read_index
from src.kaggle_io import log
from src.parts import filters
from src.parts.pretrained import find_weights
from src.pipeline.jobs import submit_job
from src.report import figures as pictures
from src.stages import submit
from src.tools import explore


@pytest.fixture(scope="module")
def zygote():
    with Zygote(
        "src.stages.prepare", "pandas", "scipy.sparse.csgraph", "PIL.Image"
    ) as ready_to_fork:
        yield ready_to_fork


@pytest.fixture
def run(zygote, tmp_path):
    """run('prepare', …) -> how the command ended on the data of tmp_path/data."""
    write_config(tmp_path)

    def run(*words: str, timeout: float = 20):
        given = ["--config", "configs/small.yaml", "--data", "data", "--work", "work"]
        answer = zygote.run([*words[:1], *given, *words[1:]], tmp_path, timeout=timeout)
        assert answer.is_civil() and not answer.timed_out, (answer.code, answer.err[-2000:])
        return answer

    return run


def stopped(run, *texts: str, code: str = "") -> str:
    """prepare ends at once with one line that holds all these texts."""
    answer = run("prepare")
    (line,) = answer.errors
    assert answer.code == 2 and all(t in line for t in texts) and code in line, line
    return line


# ---------------------------------------- what is no file


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have only a hundred letters
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


NO_FILES = {
    "a named pipe": pipe,
    "a socket": unix_socket,
    "a folder": Path.mkdir,
    "a link to itself": lambda p: p.symlink_to(p),
    "a broken link": lambda p: p.symlink_to("gone"),
    "a device": lambda p: p.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_called_like_an_image_and_is_none_is_named(kind, tmp_path, run):
    data = folder_data(tmp_path / "data")
    NO_FILES[kind](data / "train" / "benign" / "odd.png")
    line = stopped(run, f"train/benign/odd.png ({kind}, not a file)", "data.on_error=skip")
    assert "1 unreadable file" in line
    run("status")
    answer = run("prepare", "--set", "data.on_error=skip")
    assert answer.code == 0 and f"odd.png ({kind}" in answer.err
    assert answer.seconds < 10


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a broken link"])
@pytest.mark.parametrize("name", ["sample_submission.csv", "train.csv"])
def test_a_table_that_is_no_file_is_named(kind, name, tmp_path, run):
    data = tmp_path / "data"
    if name == "train.csv":
        for i in range(3):
            save(data / "images" / f"{i}.png", picture(i))
    else:
        folder_data(data)
        (data / name).unlink()
    NO_FILES[kind](data / name)
    stopped(run, f"is {kind}, not a file", name, code="[not_a_file]")
    run("status")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, make_config, monkeypatch):
    data, scandir = folder_data(tmp_path / "data"), os.scandir

    def refusing(folder="."):  # root may read everything
        if Path(folder).name == "malignant":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refusing)
        with refused("unreadable_folder", "Permission denied", "train/malignant"):
            prepared(data, tmp_path, make_config())


def test_links_in_a_circle_are_named(tmp_path, run):
    data = folder_data(tmp_path / "data")
    for name in ("again", "once_more"):
        (data / "train" / name).symlink_to(data)
    stopped(run, "a folder above it", "Remove the link", code="[link_loop]")


@pytest.mark.parametrize("name", ["train/malignant", "train/benign/notes", "test/more"])
@pytest.mark.parametrize("kind", ["a broken link", "a link to itself"])
def test_a_link_that_may_have_been_a_folder_of_images_is_named(kind, name, tmp_path, run):
    data = folder_data(tmp_path / "data")
    if (data / name).exists():
        (data / name).rename(tmp_path / "unplugged")
    NO_FILES[kind](data / name)
    stopped(run, f"this is {kind}", f"data/{name}", "remove the link", code="[broken_link]")
    run("status")


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_a_test_image_of_a_kind_that_is_not_read_is_named(suffix, tmp_path, run):
    data = folder_data(tmp_path / "data")
    (data / "test" / "t1.png").rename(data / "test" / f"t1.{suffix}")
    stopped(run, f"t1 (t1.{suffix} is not read: save it as png)", code="[data_sample_only]")
    (data / "test" / "t0.png").rename(data / "test" / f"t0.{suffix}")
    stopped(run, f"t1.{suffix}", "not read", "Save them as png", code="[no_test_images]")


def test_a_maze_of_links_is_named(tmp_path):
    """Twenty floors, and from each two links to the next: a million ways."""
    floors = [tmp_path / f"{i:02d}" for i in range(20)]
    for floor in floors:
        floor.mkdir()
    for floor, below in zip(floors, floors[1:]):
        for name in "xy":
            (floor / name).symlink_to(below)
    with refused("link_loop", "more than 8 ways"):
        data_files(floors[0])


def test_a_link_to_a_folder_beside_it_is_followed(tmp_path):
    save(tmp_path / "elsewhere" / "x.png", picture(1))
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "benign").symlink_to(tmp_path / "elsewhere")
    assert data_files(tmp_path / "data") == [tmp_path / "data" / "train" / "benign" / "x.png"]


# ---------------------------------------- names


def test_a_name_that_is_not_utf_8_is_named(tmp_path, run):
    data = folder_data(tmp_path / "data")
    try:
        Path(os.fsdecode(os.fsencode(data / "train" / "normal") + b"/bad\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes no such name")
    stopped(run, "train/normal/bad\\xff.png (its name is not UTF-8 text: rename it)")
    answer = run("prepare", "--set", "data.on_error=skip")
    assert answer.code == 0 and "bad\\xff.png" in answer.err


@pytest.mark.parametrize(
    ("name", "shown", "why"),
    [
        ("a\rb", "a\\rb", "holds control characters"),
        ("a\nb", "a\\nb", "holds control characters"),
        ("esc\x1b[2J", "esc\\x1b[2J", "holds control characters"),
        ("a\u2028b", "a\\u2028b", "holds control characters"),
        ("end ", "end ", "begins or ends with white space"),
        (" start", " start", "begins or ends with white space"),
    ],
)
def test_a_name_that_no_table_gives_back_is_named(name, shown, why, tmp_path, make_config):
    data = folder_data(tmp_path / "data")
    save(data / "train" / "normal" / f"{name}.png", picture(50))
    with pytest.raises(InputError) as raised:
        prepared(data, tmp_path, make_config())
    assert f"train/normal/{shown}.png (its name {why}: rename it)" in str(raised.value)


def test_an_odd_test_image_is_named_where_there_is_no_training(tmp_path):
    data, problems = folder_data(tmp_path / "data"), Problems()
    os.mkfifo(data / "test" / "t7.png")
    os.mkfifo(data / "train" / "normal" / "odd.png")  # not asked for
    assert len(find_test(data, Competition(), problems)) == 2
    assert problems.found["unreadable"] == ["test/t7.png (a named pipe, not a file)"]


def test_names_of_any_letters_pass_through_prepare(tmp_path, make_config):
    data = folder_data(tmp_path / "data")
    names = [
        "a$b$",
        "x_^{2}\\",
        "a b",
        "a\xa0b",
        "良性",
        "😀",
        "²",
        "1²",
        "-12",
        "=1",
        "001",
        "1e5",
        "a'b\"c",
    ]
    for n, name in enumerate(names):
        save(data / "train" / "normal" / f"{name}.png", picture(50 + n))
    index = read_index(prepared(data, tmp_path, make_config()), "train")
    assert set(names) <= set(index["id"])


def test_prepare_warns_of_formulas_and_keeps_them_exactly(tmp_path, make_config, capsys):
    data = folder_data(tmp_path / "data")
    for n, name in enumerate(("=1+1", "@x", "-12")):
        save(data / "test" / f"{name}.png", picture(90 + n))
    (data / "sample_submission.csv").write_text(
        "id,label,rle\n" + "".join(f"{i},normal,-1\n" for i in ("t0", "t1", "=1+1", "@x", "-12"))
    )
    paths = prepared(data, tmp_path, make_config())
    (line,) = [t for t in capsys.readouterr().err.splitlines() if "formula" in t]
    assert "2 ids or classes begin" in line and "=1+1, @x" in line
    assert list(read_index(paths, "test")["id"]) == ["t0", "t1", "=1+1", "@x", "-12"]


@pytest.mark.parametrize(
    "message", ["=HYPERLINK(1)", "+x", "-x", "@x", "'=1", "''@", "it's", "-1", "'", "\t=1".strip()]
)
def test_a_message_in_the_log_is_no_formula_and_comes_back(message, tmp_path):
    row = log.Row("2026-11-01T10:00:00Z", "c", "f.csv", message=message)
    log.edit(tmp_path / "log.csv", lambda rows: rows.append(row))
    assert not any(
        is_formula(c) for c in (tmp_path / "log.csv").read_text().replace("\n", ",").split(",")
    )
    assert log.read(tmp_path / "log.csv") == [row]


def test_numbers_in_a_table_for_people_stay_numbers():
    cells = ["=1", "-0.25", "-x", "b", -0.5]
    assert [as_text(c) for c in cells] == ["'=1", "-0.25", "'-x", "b", -0.5]


HARD = [
    "$",
    "a$b$c",
    r"x\$y",
    "$x^{",
    "_under",
    "a_b^c",
    "back\\slash",
    "two\nlines",
    "bell\a",
    "esc\x1b[31m",
    "良性",
    "恶性",
    "😀👩‍⚕️",
    "\u202eright",
    "n" * 300,
    "%s {x}",
    "",
    " ",
]


def test_names_are_text_in_every_picture(tmp_path):
    """As they are, and without a word of matplotlib's."""
    rng = np.random.default_rng(0)
    probs, truth = rng.dirichlet(np.ones(len(HARD)), 40), rng.integers(0, len(HARD), 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for names in (HARD[:6], HARD[6:12], HARD[12:]):
            pictures.save(
                pictures.confusion_matrix(np.ones((len(names),) * 2, int), names),
                tmp_path / "a.png",
            )
        figure, _ = pictures.reliability(truth, probs, HARD)
        pictures.save(figure, tmp_path / "b.png")
        assert (
            len(figure.axes[0].get_legend().get_texts()) == len(HARD) - 1
        )  # the one without a name has no line
        captions = [f"{name}\n{name} (0.93)\nDice 0.5" for name in HARD]
        pictures.save(
            pictures.sheet([pictures.Tile(np.zeros((9, 9, 3), np.uint8), c) for c in captions]),
            tmp_path / "c.png",
        )
    assert pictures.plain("a$b") == r"a\$b" and pictures.plain("良") == "\\u826f"
    assert pictures.plain("x", "monospace") == "x" and len(pictures.plain("n" * 300)) == 40


def test_names_are_text_in_the_pictures_of_explore(tmp_path):
    classes = ["$b_{", "恶$^$", "_n"]
    config = write_config(tmp_path, yaml="image_size: 64\n")
    config.competition.data.classes[:], config.competition.data.empty_class = classes, "_n"
    for c, label in enumerate(classes):
        for i in range(3):
            save(tmp_path / "data" / "train" / label / f"$\\frac{c}{i}.png", picture(10 * c + i))
            if label != "_n":
                save(tmp_path / "data" / "train" / label / f"$\\frac{c}{i}_mask.png", box())
    paths = prepared(tmp_path / "data", tmp_path, config)
    facts = explore.load(paths.work, paths.data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in (
            explore.sizes,
            explore.area_histogram,
            explore.places,
            explore.outlines,
            explore.light_figure,
            explore.histograms,
        ):
            draw(facts).savefig(tmp_path / "x.png")
    assert "$b_{" in explore.light(facts).index  # a table has no need of it


# ---------------------------------------- images


def animation(path: Path, kind: str, frames: int = 3) -> Path:
    images = [Image.fromarray(picture(i)) for i in range(frames)]
    options = {"duration": 100} if kind != "TIFF" else {}
    if kind == "WEBP":
        options |= {"lossless": True}
    images[0].save(path, format=kind, save_all=True, append_images=images[1:], **options)
    return path


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
def test_several_frames_are_refused(kind, tmp_path, run):
    data = folder_data(tmp_path / "data")
    file = animation(data / "train" / "normal" / "moving.tif", kind)
    for read in (read_image, read_mask):
        with pytest.raises(ValueError, match=f"{kind} of several frames; save one frame a file"):
            read(file)
    stopped(run, f"moving.tif ({kind} of several frames")


def test_one_frame_and_a_preview_are_one_image(tmp_path):
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        assert np.array_equal(read_image(animation(tmp_path / "one.tif", kind, 1)), picture(0))
    whole, small = Image.fromarray(picture(3)), Image.fromarray(picture(4)[::4, ::4])
    small.encoderinfo = {"tiffinfo": {254: 1}}
    whole.save(tmp_path / "preview.tif", save_all=True, append_images=[small])
    with Image.open(tmp_path / "preview.tif") as image:
        assert image.n_frames == 2
    assert np.array_equal(read_image(tmp_path / "preview.tif"), picture(3))
    Image.fromarray(picture(5)).save(
        tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[small], quality=95
    )
    assert read_image(tmp_path / "phone.jpg").shape == (60, 80)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(value, tmp_path):
    pixels = picture(1).astype(np.float32)
    pixels[3, 4] = value
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    for read in (read_image, read_mask):
        with pytest.raises(ValueError, match="1 of its values are not finite numbers"):
            read(tmp_path / "x.tif")


def test_large_numbers_keep_their_differences(tmp_path):
    """float32 would make steps of 64 of these."""
    pixels = (2**30 + picture(1).astype(np.int32) // 2 * 2).astype(np.int32)
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    found = read_image(tmp_path / "x.tif")
    assert len(np.unique(found)) == len(np.unique(pixels))


def bomb(path: Path, side: int) -> Path:
    """A grey PNG of side×side pixels in a file of some kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    return path


def test_a_giant_in_a_small_file_is_refused(tmp_path, run):
    data = folder_data(tmp_path / "data")
    bomb(data / "train" / "normal" / "bomb.png", 50_000)
    line = stopped(run, "bomb.png (50000x50000 pixels, more than 134,217,728: make it smaller)")
    assert "Decompression" not in line
    answer = run("prepare", "--set", "data.on_error=skip")
    assert answer.code == 0 and answer.err.count("\n") < 4, answer.err


def test_only_formats_of_pictures_are_opened(tmp_path):
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    with pytest.raises(ValueError, match="not an image"):
        read_image(tmp_path / "x.png")


# ---------------------------------------- run lengths


def table_data(data: Path, text: str | bytes) -> Path:
    for i in range(4):
        save(data / "images" / f"{i}.png", picture(i))
    (data / "train.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return data


GOOD = "id,label,rle\n0,benign,1 5\n1,malignant,1 5\n2,benign,7 9\n3,normal,\n"


@pytest.mark.parametrize("cell", ["1 9223372036854775800", "٣ ٤"])
def test_run_lengths_of_no_image_are_one_line(cell, tmp_path, run):
    table_data(tmp_path / "data", GOOD.replace("7 9", cell))
    stopped(run, "run length")


# ---------------------------------------- tables


TABLES = {
    "nothing": (b"", "no column"),
    "blank": (b"\n\n \n", "no column"),
    "NUL": (GOOD.replace("benign", "be\0ign").encode(), "[not_utf8]"),
    "UTF-16": (GOOD.encode("utf-16"), "[not_utf8]"),
    "UTF-16 without mark": (GOOD.encode("utf-16-le"), "[not_utf8]"),
    "Latin-1": (GOOD.replace("benign", "bénin").encode("latin-1"), "[not_utf8]"),
    "too few cells": (
        GOOD.replace("1 5\n1", "\n1").replace("3,normal,", "3,normal").encode(),
        "line 5 has 2 cells instead of 3",
    ),
    "too many cells": (GOOD.replace("7 9", "7,9").encode(), "line 4 has 4 cells instead of 3"),
    "columns twice": (
        GOOD.replace("id,label,rle", "id,label,label").encode(),
        "columns twice: label",
    ),
    "an open quote": (GOOD.replace("7 9", '"7 9').encode(), "1 run length that fits no mask"),
    "a million columns": (
        b",".join(b"c%d" % i for i in range(10**6)) + b"\n",
        "[too_many_columns]",
    ),
    "many columns": ((",".join(f"c{i}" for i in range(5000)) + "\n").encode() * 2, "[no_column]"),
    "one column": (b"id\n0\n1\n", "[no_column]"),
    "no delimiter": (GOOD.replace(",", "~").encode(), "[no_column]"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_train_table_that_is_none_is_one_line(kind, tmp_path, run):
    content, text = TABLES[kind]
    table_data(tmp_path / "data", content)
    assert len(stopped(run, "train.csv" if kind != "an open quote" else "", text)) < 2500


SAMPLE = "id,label,rle\nt1,normal,-1\nt0,normal,-1\n"
SAMPLES = {
    "nothing": (b"", "[empty_table]"),
    "NUL": (SAMPLE.replace("normal", "nor\0mal").encode(), "[not_utf8]"),
    "UTF-16": (SAMPLE.encode("utf-16"), "[not_utf8]"),
    "many columns": (b",".join(b"c%d" % i for i in range(10**5)) + b"\n", "[too_many_columns]"),
    "columns twice": (SAMPLE.replace("label", "rle").encode(), "[odd_columns]"),
    "a line break in a name": (SAMPLE.replace("rle", '"r\nle"').encode(), "[odd_columns]"),
    "too few cells": (SAMPLE.replace("t0,normal,-1", "t0").encode(), "[ragged_table]"),
    "a giant number": (
        SAMPLE.replace("-1\nt0", "9" * 5000 + " 1\nt0").replace(",-1\n", ",\n").encode(),
        "",
    ),
    "giant classes": (SAMPLE.replace("normal", "7" * 5000).encode(), "[unknown_class]"),
    "odd digits": (SAMPLE.replace("normal", "²").encode(), "[unknown_class]"),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_sample_that_is_none_is_one_line(kind, tmp_path, run):
    content, text = SAMPLES[kind]
    data = folder_data(tmp_path / "data")
    (data / "sample_submission.csv").write_bytes(content)
    if not text:
        assert run("prepare").code == 0
    else:
        assert len(stopped(run, "sample_submission.csv", text)) < 2500


@pytest.mark.parametrize(
    "setting, said",
    [
        ("empty==1+1", "'=1+1', which a spreadsheet takes for a formula"),
        ("empty=", "'', which is empty"),
        ("empty=' '", "a space before or behind it"),
        ("labels={benign: =A1, malignant: m, normal: n}", "'=A1', which a spreadsheet"),
        ("labels={benign: '', malignant: m, normal: n}", "which is empty"),
    ],
)
def test_a_cell_that_would_be_taken_for_something_else_is_refused(setting, said, tmp_path, run):
    folder_data(tmp_path / "data")
    answer = run("prepare", "--set", f"submission.{setting}")
    (line,) = answer.errors
    assert answer.code == 2 and said in line and line.endswith("[odd_cell]"), line


def test_a_cell_that_the_sample_has_is_taken(tmp_path, run):
    data = folder_data(tmp_path / "data")
    (data / "sample_submission.csv").write_text("id,label,rle\nt1,normal,\nt0,normal,=0\n")
    for empty in ("", "=0", "-"):
        answer = run("prepare", "--set", f"submission.empty={empty}")
        assert answer.code == 0, answer.err


def test_oddities_of_tables_that_are_understood(tmp_path, run):
    rows = GOOD.replace(",", ";").replace("benign", '"benign"').replace("\n", "\r\n")
    long = (
        " ".join(f"{1 + 20 * i} 9" for i in range(230)) + " " * 200_000
    )  # more than csv takes by itself
    table_data(tmp_path / "data", b"\xef\xbb\xbf\r\n" + rows.replace("7 9", f'"{long}"').encode())
    assert run("prepare").code == 0


def test_numbers_in_ids_stay_text(tmp_path, make_config):
    data, ids = tmp_path / "data", ["001", "1e5", "0x10", "1.0", "nan", "1_000", "+5"]
    for n, name in enumerate(ids):
        save(data / "images" / f"{name}.png", picture(n))
    (data / "train.csv").write_text("id,label,rle\n" + "".join(f"{i},benign,1 5\n" for i in ids))
    assert set(read_index(prepared(data, tmp_path, make_config()), "train")["id"]) == set(ids)


def test_a_zip_that_unpacks_to_a_giant_is_one_line(tmp_path, run):
    data = folder_data(tmp_path / "data")
    (data / "sample_submission.csv").unlink()
    file = data / "sample_submission.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("s.csv", bytes(2**20))
    size = struct.pack(
        "<I", 2**20
    )  # as it says itself: that alone is looked at before it is unpacked
    file.write_bytes(file.read_bytes().replace(size, struct.pack("<I", 2**31)))
    stopped(run, "sample_submission.zip", code="[not_a_table]")


def test_natural_order():
    odd = ["x10", "²", "1²", "10", "9", "٣", "9" * 5000]
    assert sorted(sorted(odd, key=natural)) == sorted(odd)
    assert sorted(["b10", "b9", "a"], key=natural) == ["a", "b9", "b10"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clahe", {"tiles": 5000}),
        ("clahe", {"tiles": 1e10}),
        ("despeckle", {"window": 100_001}),
        ("despeckle", {"noise": 1e300}),
    ],
)
def test_giant_options_of_a_filter_are_refused(name, options):
    with refused("invalid_value", name, f"{next(iter(options))} is"):
        filters.check(Experiment(filter=name, filter_options=options))


def test_weights_that_are_no_file_are_named(tmp_path):
    (tmp_path / "resnet18.pth").mkdir()
    with refused("not_a_file", "encoder's weights", "a folder", "resnet18.pth"):
        find_weights("resnet18", "imagenet", str(tmp_path))


# ---------------------------------------- rows of one class, and masks alone


@pytest.mark.parametrize("form", ["column", "name"])
def test_masks_alone_answer_rows_of_one_class(ready, form):  # noqa: F811  the fixture
    ids = [f"i{i}" for i in range(15, 21)]
    if form == "column":
        write_table(
            ready.data / "sample_submission.csv",
            ["id", "class", "rle"],
            [[i, "benign", "-1"] for i in ids],
        )
        given = {"key": "class"}
    else:
        write_table(
            ready.data / "sample_submission.csv",
            ["id", "rle"],
            [[f"{i}_benign", "-1"] for i in ids],
        )
        given = {"name": "{id}_{class}"}
    only = messy(ids)
    only.label = None
    only.save(ready.test("exp"))
    config = settings(submission=given, evaluate=FEW)
    config.experiment = Experiment(task="mask")
    submit.run(submit_job(config, ready), config, ready)
    rows = ready.submission("exp").read_text().splitlines()[1:]
    assert len(rows) == 6 and any(not row.endswith(",-1") for row in rows)


def test_one_is_not_several():
    assert [counted(n, "id is", "ids are") for n in (1, 2)] == ["1 id is", "2 ids are"]
