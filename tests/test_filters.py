"""Filters in prepare, and DICOM files."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
from conftest import box, folder_data, leftovers, picture, prepared, save

from src.__main__ import main
from src.core.console import InputError
from src.core.paths import Paths, store_name
from src.core.settings import Experiment
from src.data.images import read_image, read_mask, resize
from src.data.tables import read_index
from src.parts import filters
from src.pipeline.jobs import plan

# -------------------------------------------------------------------------------------- the filters


@pytest.mark.parametrize("name", filters.FILTERS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (60, 80)])
def test_every_filter_keeps_shape_and_input_and_is_the_same_on_grey_in_three_channels(name, shape):
    grey = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    before = grey.copy()
    out = filters.apply(grey, name, {})
    assert out.shape == shape and out.dtype == np.uint8 and np.array_equal(grey, before)
    colour = filters.apply(np.repeat(grey[..., None], 3, 2), name, {})
    assert np.array_equal(colour, np.repeat(out[..., None], 3, 2))
    flat = np.full(shape, 77, np.uint8)
    assert len(np.unique(filters.apply(flat, name, {}))) == 1


def test_equalise_makes_levels_their_rank():
    """16 pixels of 4 levels, as often as each other: (cumulated − first) / (all − first) · 255, by
    hand 0, 85, 170, 255."""
    grey = np.repeat(np.array([10, 11, 12, 13], np.uint8), 4).reshape(4, 4)
    assert filters.apply(grey, "equalise", {}).ravel()[::4].tolist() == [0, 85, 170, 255]


def test_clahe_is_cv2s_with_the_options_and_its_clip_limits_the_contrast():
    grey = (picture(1) // 8 + 100).astype(np.uint8)
    assert np.array_equal(
        filters.apply(grey, "clahe", {}), cv2.createCLAHE(2.0, (10, 10)).apply(grey)
    )
    assert np.array_equal(
        filters.apply(grey, "clahe", {"clip": 4.0, "tiles": 8.0}),
        cv2.createCLAHE(4.0, (8, 8)).apply(grey),
    )
    spread = [
        filters.apply(grey, "clahe", {"clip": clip, "tiles": 2.0}).std()
        for clip in (1.0, 4.0, 40.0)
    ]
    assert spread == sorted(spread) and grey.std() < spread[-1]


def test_the_lee_filter_by_hand():
    """A 3×3 window, noise s = 0.5. Around the middle: mean 20, variance (8·10² + 80²) / 9 = 800;
    Q = (800 − 0.25·400) / 1.25 = 560; k = 560 / (560 + 100) = 0.8485; answer
    20 + k·(100 − 20) = 87.9. Where all is 10, it stays 10."""
    grey = np.full((9, 9), 10, np.uint8)
    grey[4, 4] = 100
    out = filters.apply(grey, "despeckle", {"window": 3.0, "noise": 0.5})
    assert out[4, 4] == 88 and (out[:2] == 10).all()


def test_despeckling_smooths_speckle_and_keeps_edges():
    rng = np.random.default_rng(0)
    truth = np.where(np.arange(100)[None] < 50, 50, 150) * np.ones((100, 1))
    noisy = (truth * rng.normal(1, 0.15, truth.shape)).clip(0, 255).astype(np.uint8)
    out = filters.apply(noisy, "despeckle", {})
    assert (
        out[:, 5:40].std() < 0.5 * noisy[:, 5:40].std()
        and out[:, 60:95].std() < 0.5 * noisy[:, 60:95].std()
    )
    step = [x[:, 51:54].mean() - x[:, 46:49].mean() for x in (out, cv2.blur(noisy, (7, 7)))]
    assert step[0] > 85 and step[0] > step[1] + 10


def test_colour_is_filtered_in_its_luminance():
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = np.repeat(np.arange(100, 108, dtype=np.uint8), 8).reshape(8, 8)
    out = filters.apply(red, "equalise", {})
    assert out[-1, 0, 1] > 100 and (out[..., 0] >= out[..., 1]).all(), "brighter, and still reddish"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"filter": "clae"}, ["unknown filter 'clae'", "Did you mean clahe?"]),
        (
            {"filter": "clahe", "filter_options": {"clips": 2}},
            ["no option 'clips'", "Did you mean clip?"],
        ),
        ({"filter": "none", "filter_options": {"clip": 2}}, ["no option 'clip'", "takes none"]),
        ({"filter": "clahe", "filter_options": {"tiles": 2.5}}, ["tiles is 2.5", "whole number"]),
        ({"filter": "clahe", "filter_options": {"clip": 0}}, ["clip is 0"]),
        ({"filter": "despeckle", "filter_options": {"window": 4}}, ["window is 4", "odd"]),
    ],
)
def test_a_wrong_filter_is_told(settings, words):
    from src.core.settings import Experiment

    with pytest.raises(InputError) as error:
        filters.check(Experiment(**settings))
    assert all(word in str(error.value) for word in words)


# --------------------------------------------------------------------------------- the pixel stores


def test_stores_of_different_filters_lie_beside_each_other(tmp_path, make_config):
    data = folder_data(tmp_path / "data")
    paths = prepared(data, tmp_path, make_config())
    stored = {"": np.load(paths.images(Experiment(image_size=64, resize="stretch")))}
    for yaml in (
        "filter: clahe\n",
        "filter: clahe\nfilter_options: {tiles: 8, clip: 4}\n",
        "filter: equalise\nresize: letterbox\n",
    ):
        config = make_config(yaml="image_size: 64\n" + yaml)
        prepared(data, tmp_path, config)
        assert all(job.state().done for job in plan(config, paths) if job.stage == "prepare")
        name, resizing = store_name(config.experiment), config.experiment.resize
        stored[name] = np.load(paths.images(config.experiment))
        for part in ("train", "test"):
            rows = read_index(paths, part)
            raw = [read_image(data / file) for file in rows["image"]]
            expected = [
                resize(
                    filters.apply(x, config.experiment.filter, config.experiment.filter_options),
                    64,
                    resizing,
                )
                for x in raw
            ]
            assert np.array_equal(np.load(paths.images(config.experiment, part)), expected), (
                "filtered at the original size, then resized"
            )
        assert np.array_equal(
            np.load(paths.masks(config.experiment)),
            [
                resize(box() & (label != "normal"), 64, resizing, is_mask=True)
                for label in read_index(paths, "train")["label"]
            ],
        )
    assert list(stored) == ["", "64_clahe", "64_clahe_clip4_tiles8", "64_letterbox_equalise"]
    assert paths.images(config.experiment, "test").name == "images_64_letterbox_equalise_test.npy"
    assert len({x.tobytes() for x in stored.values()}) == 4 and np.array_equal(
        np.load(paths.images(Experiment(image_size=64, resize="stretch"))), stored[""]
    )
    assert all(
        job.state().done for job in plan(make_config(), paths) if job.stage == "prepare"
    ) and not leftovers(paths)


def test_near_duplicates_do_not_depend_on_the_filter(demo, tmp_path, make_config, demo_prepared):
    paths = prepared(demo, tmp_path, make_config(yaml="image_size: 64\nfilter: equalise\n"))
    assert (
        paths.index.read_bytes() == demo_prepared.index.read_bytes()
        and paths.truth.read_bytes() == demo_prepared.truth.read_bytes()
    )


def test_prepare_refuses_an_unknown_filter_before_it_reads(tmp_path, make_config, capfd):
    config, data = (
        make_config(yaml="image_size: 64\nfilter: clae\n"),
        folder_data(tmp_path / "data"),
    )
    assert (
        main(
            [
                "prepare",
                "--config",
                str(config.file),
                "--data",
                str(data),
                "--work",
                str(tmp_path / "work"),
            ]
        )
        == 2
    )
    err = capfd.readouterr().err
    assert (
        "Did you mean clahe?" in err
        and "[unknown_part]" in err
        and not Paths(tmp_path / "work", data).index.is_file()
    )


# -------------------------------------------------------------------------------------------- DICOM


def dicom(file, pixels: np.ndarray, meaning: str = "MONOCHROME2", **tags):
    """A DICOM file with these pixels (H,W), (H,W,3) or (frames,H,W)."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = (
        UltrasoundImageStorage,
        generate_uid(),
        ExplicitVRLittleEndian,
    )
    header = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    bits = 8 * pixels.dtype.itemsize
    colour = meaning in ("RGB", "YBR_FULL")
    header.Rows, header.Columns = (
        pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:]
    )
    header.SamplesPerPixel, header.PhotometricInterpretation = 3 if colour else 1, meaning
    header.BitsAllocated = header.BitsStored = bits
    header.HighBit, header.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    if colour:
        header.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(header, name, value)
    header.PixelData = pixels.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(file, enforce_file_format=True)
    return file


def test_dicom_is_read_like_any_other_file(tmp_path):
    grey = picture(1)
    assert np.array_equal(read_image(dicom(tmp_path / "x.dcm", grey)), grey), (
        "8 bits stay as they are"
    )
    assert np.array_equal(read_image(dicom(tmp_path / "x.DICOM", grey, "MONOCHROME1")), 255 - grey)
    assert np.array_equal(
        read_image(
            dicom(tmp_path / "m.dcm", grey, "MONOCHROME1", RescaleSlope=-1, RescaleIntercept=255)
        ),
        grey,
    ), "twice the other way round"
    deep = np.linspace(1000, 4095, 60 * 80).reshape(60, 80).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    as_png = read_image(tmp_path / "deep.png")
    assert np.array_equal(
        read_image(dicom(tmp_path / "d.dcm", deep, BitsStored=12, HighBit=11)), as_png
    ), "12 bits in 16: scaled by their own range"
    assert (
        np.abs(
            read_image(
                dicom(tmp_path / "e.dcm", deep, "MONOCHROME1", BitsStored=12, HighBit=11)
            ).astype(int)
            - (255 - as_png)
        ).max()
        <= 1
    )
    assert np.array_equal(
        read_image(dicom(tmp_path / "s.dcm", (deep.astype(int) - 2000).astype(np.int16))), as_png
    ), "signed, as CT is"
    colour = np.zeros((5, 6, 3), np.uint8)
    colour[..., 0] = 200
    assert np.array_equal(read_image(dicom(tmp_path / "c.dcm", colour, "RGB"), 3), colour)
    ybr = np.zeros((5, 6, 3), np.uint8) + np.array([76, 85, 255], np.uint8)  # JPEG's red
    assert (
        np.abs(
            read_image(dicom(tmp_path / "y.dcm", ybr, "YBR_FULL"), 3)[0, 0].astype(int)
            - [254, 0, 0]
        ).max()
        <= 2
    )
    table = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 8] for c in ("Red", "Green", "Blue")}
    table |= {
        f"{c}PaletteColorLookupTableData": bytes(np.roll(np.arange(256, dtype=np.uint8), k))
        for k, c in enumerate(("Red", "Green", "Blue"))
    }
    assert read_image(
        dicom(tmp_path / "p.dcm", np.full((5, 6), 9, np.uint8), "PALETTE COLOR", **table), 3
    )[0, 0].tolist() == [9, 8, 7]
    mask, two_valued = read_mask(dicom(tmp_path / "mask.dcm", box().astype(np.uint8)))
    assert two_valued and np.array_equal(mask, box())


def test_dicom_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGLSLossless

    whole = dicom(tmp_path / "whole.dcm", picture(2))
    (tmp_path / "cut.dcm").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.dcm").write_bytes(b"<html>404</html>")
    dicom(tmp_path / "film.dcm", np.stack([picture(3)] * 4), NumberOfFrames=4)
    import pydicom

    header = pydicom.dcmread(whole)
    header.file_meta.TransferSyntaxUID, header.PixelData = (
        JPEGLSLossless,
        encapsulate([b"\xff\xd8\xff\xf7ab"]),
    )
    header.save_as(tmp_path / "packed.dcm")
    del header.PixelData
    header.save_as(tmp_path / "report.dcm")
    wrong = {
        "cut": "damaged",
        "text": "not a DICOM file",
        "film": "4 frames",
        "packed": "decode.*JPEG-LS|damaged",
        "report": "without an image",
    }
    for name, reason in wrong.items():
        with pytest.raises(ValueError, match=reason) as error:
            read_image(tmp_path / f"{name}.dcm")
        assert len(str(error.value)) < 90 and "\n" not in str(error.value), name
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match="pip install pydicom"):
        read_image(whole)


def test_prepare_finds_dicom_images_with_masks_of_another_kind(tmp_path, make_config):
    data = folder_data(tmp_path / "data")
    for png in [*(data / "train" / "benign").glob("*).png"), data / "test" / "t0.png"]:
        dicom(
            png.with_suffix(".dcm"),
            read_image(png).astype(np.uint16) * 16,
            BitsStored=12,
            HighBit=11,
        )
        png.unlink()
    save(data / "train" / "benign" / "benign (1)_mask_1.png", box(top=2))
    paths = prepared(data, tmp_path, make_config())
    index = read_index(paths)
    assert len(index) == 11 and (index["image"].str.endswith(".dcm")).sum() == 4
    assert index.set_index("id").loc["benign (1)", ["masks", "area"]].tolist() == [2, 2 * 15 * 15]


def test_prepare_names_a_broken_dicom_file(tmp_path, make_config, capfd):
    data = folder_data(tmp_path / "data")
    (data / "test" / "t0.png").rename(data / "test" / "t0.dcm")
    config = make_config()
    assert (
        main(
            [
                "prepare",
                "--config",
                str(config.file),
                "--data",
                str(data),
                "--work",
                str(tmp_path / "work"),
            ]
        )
        == 2
    )
    assert "t0.dcm (not a DICOM file)" in capfd.readouterr().err
