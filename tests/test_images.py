"""Reading files of every kind, and making them square and back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import box, picture, save
from PIL import Image

from src.data.images import content, read_image, read_mask, resize, restore


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "jpg"])
def test_reads_each_format(tmp_path, suffix):
    grey = picture(1)
    read = read_image(save(tmp_path / f"ünïcode {suffix}.{suffix}", grey))
    assert read.dtype == np.uint8 and read.shape == grey.shape
    assert np.abs(read.astype(int) - grey).mean() < (10 if suffix == "jpg" else 1e-9)


def test_grey_rgb_rgba_palette_and_1_bit_read_alike(tmp_path):
    grey = picture(2)
    image = Image.fromarray(grey)
    for mode in ("RGB", "RGBA", "LA", "P"):
        image.convert(mode).save(tmp_path / f"{mode}.png")
        assert np.array_equal(read_image(tmp_path / f"{mode}.png"), grey), mode
        assert np.array_equal(
            read_image(tmp_path / f"{mode}.png", 3), np.repeat(grey[..., None], 3, 2)
        ), mode
    assert np.array_equal(np.unique(read_image(save(tmp_path / "bit.png", box()))), [0, 255])
    image.convert("CMYK").save(
        tmp_path / "print.tif"
    )  # four channels that are not red, green, blue, alpha
    assert np.abs(read_image(tmp_path / "print.tif").astype(int) - grey).max() <= 2


def test_colours_are_red_green_blue(tmp_path):
    red = np.zeros((5, 6, 3), np.uint8)
    red[..., 0] = 200
    assert read_image(save(tmp_path / "red.png", red), 3)[0, 0].tolist() == [200, 0, 0]
    deep = np.zeros((5, 6, 3), np.uint16)
    deep[..., 2], deep[0, 0, 2] = 40000, 0  # cv2 writes blue, green, red
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert read_image(tmp_path / "deep.png", 3)[1, 1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_by_their_own_range(tmp_path, suffix):
    deep = (
        np.linspace(1000, 4095, 60 * 80).reshape(60, 80).astype(np.uint16)
    )  # 12-bit data: shifting by 8 bits would leave 16 grey levels
    cv2.imwrite(str(tmp_path / f"deep.{suffix}"), deep)
    read = read_image(tmp_path / f"deep.{suffix}")
    assert read.min() == 0 and read.max() == 255 and len(np.unique(read)) == 256
    cv2.imwrite(str(tmp_path / f"flat.{suffix}"), np.full((9, 9), 700, np.uint16))
    assert read_image(tmp_path / f"flat.{suffix}").max() == 0


def test_truncated_and_foreign_files_are_unreadable(tmp_path):
    whole = save(tmp_path / "whole.png", picture(3)).read_bytes()
    save(tmp_path / "whole.jpg", picture(3))
    damaged = {
        "cut.png": whole[: len(whole) // 2],
        "empty.png": b"",
        "text.png": b"<html>404</html>",
        "cut.jpg": (tmp_path / "whole.jpg").read_bytes()[:1500],
    }
    for name, bytes_ in damaged.items():
        (tmp_path / name).write_bytes(bytes_)
        with pytest.raises(ValueError, match=r"^.{3,80}$"):
            read_image(tmp_path / name)
    with pytest.raises(ValueError):
        read_image(tmp_path / "absent.png")


def test_masks_of_every_kind_are_the_same_mask(tmp_path):
    mask = box()
    plane = mask.astype(np.uint8)
    opaque = np.full_like(plane, 255)
    kinds = {
        "1 bit": Image.fromarray(plane * 255).convert("1"),
        "0 and 255": Image.fromarray(plane * 255),
        "0 and 1": Image.fromarray(plane),
        "rgb": Image.fromarray(np.stack([plane * 255] * 3, 2)),
        "red": Image.fromarray(np.stack([plane * 255, plane * 0, plane * 0], 2)),
        "opaque alpha": Image.fromarray(np.stack([plane * 255] * 3 + [opaque], 2)),
        "only alpha": Image.fromarray(np.stack([opaque] * 3 + [plane * 255], 2)),
        "palette": Image.fromarray(plane * 255).convert("P"),
        "16 bit": Image.fromarray(plane.astype(np.uint16) * 65535),
    }
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
        read, two_valued = read_mask(tmp_path / f"{name}.png")
        assert two_valued and np.array_equal(read, mask), name
    Image.fromarray(plane * 255).save(tmp_path / "mask.jpg", quality=75)
    read, two_valued = read_mask(tmp_path / "mask.jpg")
    assert two_valued and (read != mask).sum() <= 4
    cv2.imwrite(
        str(tmp_path / "blurred.png"),
        cv2.GaussianBlur(box(120, 160, 30, 40, 50).astype(np.uint8) * 255, (3, 3), 0),
    )
    read, two_valued = read_mask(tmp_path / "blurred.png")
    assert two_valued and np.array_equal(read, box(120, 160, 30, 40, 50))


def test_empty_masks_and_what_is_no_mask(tmp_path):
    zero = np.zeros((9, 9, 3), np.uint8)
    for name, pixels in {
        "rgb zero": zero,
        "rgba zero": np.dstack([zero, zero[..., 0] + 255]),
    }.items():
        read, two_valued = read_mask(save(tmp_path / f"{name}.png", pixels))
        assert two_valued and not read.any(), name
    Image.fromarray(np.random.default_rng(0).integers(0, 4, (60, 80)).astype(np.uint8)).save(
        tmp_path / "noise.jpg"
    )
    read, two_valued = read_mask(tmp_path / "noise.jpg")
    assert two_valued and not read.any()
    classes = np.repeat(np.arange(3, dtype=np.uint8), 20)[:, None] * np.ones((1, 50), np.uint8)
    third = box().astype(np.uint8) * 255
    third[:8, :8] = 130  # a small region of a third value is another class, not a blurred edge
    two_colours = np.zeros((9, 9, 3), np.uint8)
    two_colours[:4, :, 0], two_colours[4:, :, 1] = 255, 255
    for name, pixels in {
        "photo": picture(4),
        "three classes": classes,
        "small third class": third,
        "two colours": two_colours,
    }.items():
        assert not read_mask(save(tmp_path / f"{name}.png", pixels))[1], name


# --------------------------------------------------------------------------------- making it square


@pytest.mark.parametrize("shape", [(50, 120), (120, 50), (300, 201), (64, 64), (3, 500)])
@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_restore_is_the_inverse_of_resize(shape, mode):
    height, width = shape
    y, x = np.mgrid[0:height, 0:width]
    smooth = (255 * (0.5 + 0.5 * np.sin(3 * y / height) * np.cos(2 * x / width))).astype(np.uint8)
    square = resize(smooth, 64, mode)
    assert square.shape == (64, 64) and square.dtype == np.uint8
    top, left, inner_height, inner_width = content(height, width, 64, mode)
    if mode == "letterbox":
        assert (
            max(inner_height, inner_width) == 64
            and abs(inner_height / inner_width - height / width) < 0.05 * max(height / width, 1)
            or min(shape) == 3
        )
        outside = square.copy()
        outside[top : top + inner_height, left : left + inner_width] = 0
        assert not outside.any()
    if min(shape) > 3:
        back = restore(square.astype(np.float32) / 255, height, width, mode)
        assert back.shape == (64, 64)
        assert np.abs(back - resize(smooth, 64).astype(np.float32) / 255).max() < 0.05


def test_masks_stay_masks_and_keep_their_place():
    mask = box(200, 100, 50, 20, 40)
    for mode in ("stretch", "letterbox"):
        small = resize(mask, 64, mode, is_mask=True)
        assert set(np.unique(small)) == {0, 1} and small.dtype == np.uint8
        top, left, height, width = content(200, 100, 64, mode)
        rows, columns = np.nonzero(small)
        assert np.allclose(
            [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1],
            [top + 0.25 * height, top + 0.45 * height, left + 0.2 * width, left + 0.6 * width],
            atol=1,
        )
    assert resize(np.zeros((30, 20, 3), np.uint8), 16, "letterbox").shape == (16, 16, 3)
