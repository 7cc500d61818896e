"""Whatever lies in the data folder: done, or one clear line; within ten seconds and two gigabytes.

In the suite a few examples, always the same; FUZZ=1 tries many (FUZZ_EXAMPLES=n each).
"""

from __future__ import annotations

import io
import os
import re
import resource
import struct
import tempfile
import time
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import box, folder_data, picture, save, write_config
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from zygote import Zygote

from src.core.console import InputError
from src.core.settings import Competition, Submission
from src.data import dataset, rle
from src.data.images import read_image, read_mask
from src.data.problems import Problems
from src.submission.sample import read_sample

MANY = "FUZZ" in os.environ
SECONDS, BYTES = 10, 2 * 2**30


def examples(few: int):
    """A few in the suite, the same each time; `FUZZ_EXAMPLES` where FUZZ is set."""
    count = int(os.environ.get("FUZZ_EXAMPLES", 1000)) if MANY else few
    return settings(
        max_examples=count,
        derandomize=not MANY,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# ---------------------------------------- images


def _saved(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def _dicom(
    pixels: np.ndarray,
    compression: str = "1.2.840.10008.1.2.1",
    meaning: str = "MONOCHROME2",
    **more,
) -> bytes:
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    header.file_meta.MediaStorageSOPClassUID, header.file_meta.MediaStorageSOPInstanceUID = (
        "1.2.3",
        "1.2.3.4",
    )
    header.SOPClassUID, header.SOPInstanceUID = "1.2.3", "1.2.3.4"
    header.Rows, header.Columns = pixels.shape[:2]
    header.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        header.PlanarConfiguration = 0
    header.PhotometricInterpretation = meaning
    header.BitsAllocated = header.BitsStored = pixels.dtype.itemsize * 8
    header.HighBit, header.PixelRepresentation = header.BitsStored - 1, 0
    header.PixelData = pixels.tobytes()
    for name, value in more.items():
        setattr(header, name, value)
    if compression == "1.2.840.10008.1.2.5":
        header.compress(compression)
    header.file_meta.TransferSyntaxUID = compression
    file = io.BytesIO()
    pydicom.dcmwrite(file, header, enforce_file_format=True)
    return file.getvalue()


def seeds() -> list[tuple[str, bytes]]:
    """(suffix, bytes) of small images of many kinds."""
    grey = picture(1, 30, 40)
    colour = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=2)
    alpha = np.dstack([colour, grey])
    deep, mask = grey.astype(np.uint16) * 200, Image.fromarray(box(30, 40, 5, 5, 12))
    several = {"save_all": True, "append_images": [Image.fromarray(grey[::-1])]}
    found = [(".png", _saved(p, "PNG")) for p in (grey, colour, alpha, deep, mask)]
    found += [
        (".png", _saved(Image.fromarray(colour).quantize(16), "PNG", transparency=3)),
        (".png", _saved(grey, "PNG", **several)),
    ]
    found += [(".jpg", _saved(p, "JPEG")) for p in (grey, colour)]
    found += [
        (".jpg", _saved(Image.fromarray(colour).convert("CMYK"), "JPEG")),
        (".jpg", _saved(colour, "JPEG", progressive=True)),
    ]
    found += [(".bmp", _saved(p, "BMP")) for p in (grey, colour, mask)]
    found += [
        (".tif", _saved(p, "TIFF"))
        for p in (grey, colour, deep, grey.astype(np.float32), grey.astype(np.int32), mask)
    ]
    found += [
        (".tif", _saved(colour, "TIFF", compression=c))
        for c in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
    ]
    found += [
        (".tif", _saved(mask, "TIFF", compression="group4")),
        (".tif", _saved(grey, "TIFF", **several)),
    ]
    found += [(".png", _saved(grey, kind)) for kind in ("GIF", "WEBP", "JPEG2000", "PPM")]
    found += [
        (".png", _saved(grey, "GIF", **several)),
        (".png", _saved(colour, "WEBP", lossless=True)),
    ]
    found += [(".dcm", _dicom(p)) for p in (grey, deep)] + [(".dcm", _dicom(colour, meaning="RGB"))]
    found += [
        (".dcm", _dicom(grey, "1.2.840.10008.1.2.5")),
        (".dcm", _dicom(grey, "1.2.840.10008.1.2.1.99")),
    ]
    found += [(".dcm", _dicom(deep, meaning="MONOCHROME1", RescaleSlope="-1", NumberOfFrames="1"))]
    return found


SEEDS = seeds()
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
CHANGE = st.tuples(
    st.sampled_from(
        ["set", "set", "set", "number", "number", "cut", "double", "end", "splice", "flip"]
    ),
    st.integers(0, 2**16),
    st.integers(0, 2**16),
    st.sampled_from(EXTREMES),
)


def mutated(data: bytes, changes: list[tuple[str, int, int, int]]) -> bytes:
    made = bytearray(data)
    for kind, at, other, value in changes:
        at %= max(1, len(made))
        if at > 200 and other % 3:
            at %= 200  # where headers are
        if kind == "set":
            made[at : at + 1] = bytes([value & 0xFF])
        elif kind == "flip" and made:
            made[at] ^= 1 << other % 8
        elif kind == "number":
            layout = ("<H", ">H", "<I", ">I")[other % 4]
            made[at : at + struct.calcsize(layout)] = struct.pack(
                layout, value & (0xFFFF if layout[1] == "H" else 0xFFFFFFFF)
            )
        elif kind == "cut":
            del made[at : at + other % 64]
        elif kind == "double":
            made[at:at] = made[at : at + other % 512]
        elif kind == "end":
            del made[max(at, 8) :]
        elif kind == "splice":
            made[at:] = SEEDS[other % len(SEEDS)][1][at:]
    return bytes(made)


def with_sums(png: bytes) -> bytes:
    """The same PNG with right checksums: else most changes would be noticed by them alone."""
    made, at = png[:8], 8
    while at + 8 <= len(png):
        length = struct.unpack(">I", png[at : at + 4])[0]
        body = png[at + 4 : at + 8 + length]
        made += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return made


@contextmanager
def silence():
    """No warnings of the libraries below. libtiff, in C, may say a few words of its own."""
    with tempfile.TemporaryFile() as file:
        kept = [os.dup(n) for n in (1, 2)]
        for n in (1, 2):
            os.dup2(file.fileno(), n)
        try:
            yield
        finally:
            for n, old in zip((1, 2), kept):
                os.dup2(old, n)
                os.close(old)
        file.seek(0)
        said = file.read()
        assert not re.search(rb"(?i)warn|traceback|error:", said) and said.count(b"\n") < 20, said[
            :500
        ]


@contextmanager
def bounded():
    began, before = time.process_time(), peak()
    with silence():
        yield
    assert time.process_time() - began < SECONDS
    assert peak() <= max(before, BYTES)  # other tests of this process may have needed more


def peak() -> int:
    """Bytes of memory that this process has had at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read_all(file: Path, data: bytes) -> None:
    """As an image and as a mask: pixels, or a ValueError of one line."""
    file.write_bytes(data)
    for read in (read_image, lambda f: read_image(f, 3), lambda f: read_mask(f)[0]):
        with bounded():
            try:
                pixels = read(file)
            except ValueError as error:
                assert 0 < len(str(error)) < 300 and "\n" not in str(error), str(error)[:500]
                continue
        assert pixels.size and pixels.dtype in (np.uint8, bool)


@examples(250)
@given(st.integers(0, len(SEEDS) - 1), st.lists(CHANGE, min_size=1, max_size=6), st.booleans())
def test_any_image(folder, which, changes, sums):
    suffix, data = SEEDS[which]
    data = mutated(data, changes)
    if sums and data[:4] == b"\x89PNG":
        data = with_sums(data)
    read_all(folder / f"x{suffix}", data)


@examples(50)
@given(st.binary(max_size=400), st.sampled_from([".png", ".tif", ".dcm", ".jpg"]))
def test_any_bytes(folder, data, suffix):
    read_all(folder / f"x{suffix}", data)


# ---------------------------------------- run lengths

NUMBER = st.one_of(
    st.integers(-2, 60).map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.just("9" * 5000),
    st.sampled_from(["²", "٣", "1e5", "0x1", "1.0", "-0", "00012", "nan", "1_0", "+1", "\0", ""]),
)
SPACE = st.sampled_from([" ", " ", " ", "  ", "\t", ",", "\n", "\u2003"])
RUNS = st.lists(st.tuples(NUMBER, SPACE), max_size=12).map(lambda ws: "".join(a + b for a, b in ws))


@examples(300)
@given(
    st.one_of(RUNS, st.text(max_size=30)),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from(["row", "column"]),
    st.sampled_from([0, 1]),
    st.booleans(),
)
def test_any_run_lengths(text, height, width, order, first, relative):
    try:
        mask = rle.decode(text, height, width, order, first, relative=relative)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        return
    assert mask.shape == (height, width) and mask.dtype == bool
    again = rle.encode(mask, order, first, relative=relative)
    assert np.array_equal(rle.decode(again, height, width, order, first, relative=relative), mask)


# ---------------------------------------- tables

NAMES = ["0", "1", "2", "3", "a b", "é", "0.png", "images/1.png", "3_benign", "9", "=1", "²", ""]
CELL = st.one_of(
    st.sampled_from(
        [
            *NAMES,
            "benign",
            "malignant",
            "normal",
            "-1",
            "1 5",
            "7 9 20 3",
            "nan",
            "0.5",
            "1",
            "Normal",
        ]
    ),
    RUNS,
    st.text(max_size=8),
    st.just("x" * 140_000),
)
COLUMN = st.sampled_from(
    [
        "id",
        "label",
        "rle",
        "class",
        "image_id",
        "benign",
        "EncodedPixels",
        "mask",
        "predicted",
        "PredictionString",
        "confidence",
        "height",
        "width",
        "",
        "x",
        "p_normal",
        "\u2028",
        "a\nb",
    ]
)
QUOTED = {
    "never": lambda c: c,
    "always": lambda c: '"' + c.replace('"', '""') + '"',
    "badly": lambda c: '"' + c,
}


@st.composite
def tables(draw) -> bytes:
    """Mostly a table, in any dialect, with some changes of its bytes."""
    usual = draw(st.booleans())
    columns = ["id", "label", "rle"] if usual else draw(st.lists(COLUMN, max_size=6))
    ids = st.sampled_from(["0", "1", "2", "3", "0.png"])
    cells = (
        st.tuples(ids, st.sampled_from(["benign", "normal", "malignant"]), CELL)
        if usual
        else (st.lists(CELL, min_size=len(columns), max_size=len(columns)))
    )
    rows = [columns, *draw(st.lists(cells, max_size=8))]
    if draw(st.integers(0, 9)) == 0:
        rows.append(draw(st.lists(CELL, max_size=8)))
    delimiter, end = (
        draw(st.sampled_from([",", ",", ";", "\t", "|", " ", "~"])),
        draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])),
    )
    quote = QUOTED[
        draw(
            st.sampled_from(
                ["never", "never", "always", "badly"] if not usual else ["never", "always"]
            )
        )
    ]
    text = end.join(delimiter.join(quote(c) for c in row) for row in rows) + draw(
        st.sampled_from(["", end, end * 3])
    )
    data = text.encode(
        draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le"])), "replace"
    )
    changes = draw(st.lists(CHANGE, max_size=2)) if draw(st.integers(0, 3)) == 0 else []
    return mutated(data, changes) if changes else data


def with_tables(data: Path, train: bytes, sample: bytes) -> None:
    for i in range(4):
        for where in ("images", "test"):
            if not (data / where / f"{i}.png").is_file():
                save(data / where / f"{i}.png", picture(10 * (where == "test") + i, 20, 24))
    (data / "train.csv").write_bytes(train)
    (data / "sample_submission.csv").write_bytes(sample)


GOOD = b"id,label,rle\n0,benign,1 5\n1,malignant,1 5\n2,benign,7 9\n3,normal,\n"
GOOD_SAMPLE = b"id,label,rle\n0,normal,-1\n1,normal,-1\n2,normal,-1\n3,normal,-1\n"


@examples(200)
@given(st.one_of(tables(), st.just(GOOD)), st.one_of(tables(), st.just(GOOD_SAMPLE)))
def test_any_tables_are_found_or_refused(folder, train, sample):
    """The reading alone, many times."""
    with_tables(folder / "data", train, sample)
    began = time.process_time()
    for competition in (
        Competition(),
        Competition(data={"classes": ["benign", "normal"], "empty_class": "normal"}),
    ):
        problems = Problems()
        try:
            dataset.find(folder / "data", competition, problems)
        except InputError as error:
            assert len(str(error)) < 5000
        assert all(len(line) for line in problems.lines())
    assert time.process_time() - began < SECONDS


def zipped(method: int, pngs: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("submission.csv", GOOD_SAMPLE.replace(b",rle", b"").replace(b",-1", b""))
        for i in range(pngs):
            archive.writestr(
                f"masks/{i}.png", _saved(box(20, 24, 2, 2, 9).astype(np.uint8) * 255, "PNG")
            )
    return file.getvalue()


ZIPS = [
    zipped(method, pngs)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    for pngs in (0, 3)
]


@examples(150)
@given(st.sampled_from(ZIPS), st.lists(CHANGE, min_size=1, max_size=4), st.booleans())
def test_any_zip_as_a_sample(folder, data, changes, from_behind):
    """A zip begins at its end."""
    data = mutated(data[::-1], changes)[::-1] if from_behind else mutated(data, changes)
    (folder / "s.zip").write_bytes(data)
    with bounded():
        try:
            found = read_sample(folder / "s.zip", Submission())
        except InputError as error:
            assert len(str(error)) < 2000
            return
    assert found.columns and found.cells


@pytest.fixture(scope="module")
def zygote():
    with Zygote(
        "src.stages.prepare", "pandas", "scipy.sparse.csgraph", "PIL.Image", "pydicom.pixels"
    ) as ready:
        yield ready


def prepare(zygote, home: Path, *words: str) -> None:
    given_ = [
        "prepare",
        "--config",
        "configs/small.yaml",
        "--data",
        "data",
        "--work",
        "work",
        "--force",
        *words,
    ]
    answer = zygote.run(given_, home, timeout=60)
    assert answer.is_civil() and answer.seconds < SECONDS and answer.peak < BYTES, (
        answer.code,
        answer.err[-3000:],
    )
    assert len(answer.err) < 30_000


@examples(15)
@given(tables(), st.one_of(tables(), st.just(GOOD_SAMPLE)), st.booleans())
@example(GOOD, GOOD_SAMPLE, False)
def test_prepare_with_any_tables(zygote, folder, train, sample, skip):
    home = folder / "tables"
    home.mkdir(exist_ok=True)
    write_config(home)
    with_tables(home / "data", train, sample)
    prepare(zygote, home, *(["--set", "data.on_error=skip"] if skip else []))


@examples(10)
@given(
    st.lists(
        st.tuples(st.integers(0, len(SEEDS) - 1), st.lists(CHANGE, max_size=4)),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_prepare_with_any_images(zygote, folder, files, skip):
    home = folder / "images"
    home.mkdir(exist_ok=True)
    write_config(home)
    if not (home / "data").is_dir():
        folder_data(home / "data")
    made = []
    for n, (which, changes) in enumerate(files):
        suffix, data = SEEDS[which]
        stem = ("x", "x_mask", "y", "y_mask_2")[n]
        made.append(home / "data" / "train" / "benign" / f"{stem}{suffix}")
        made[-1].write_bytes(mutated(data, changes))
    try:
        prepare(zygote, home, *(["--set", "data.on_error=skip"] if skip else []))
    finally:
        for file in made:
            file.unlink()


def test_the_seeds_are_read(folder):
    """Else the fuzz would look at nothing."""
    read = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for suffix, data in SEEDS:
            (folder / f"x{suffix}").write_bytes(data)
            try:
                read += read_image(folder / f"x{suffix}").size > 0
            except ValueError as error:
                assert "several frames" in str(error), (suffix, error)
    assert read >= len(SEEDS) - 3
