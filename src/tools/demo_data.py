"""Generated ultrasound-like images in BUSI's own file layout, with BUSI's traps in it: for `./run.sh demo` and the tests.

WRITES  folder/train/<class>/'benign (1).png', 'benign (1)_mask.png', …, folder/test/us_1a2b.png, folder/sample_submission.csv, folder/demo.json

An image is made as a scanner makes it: a map of echo strength in decibels (layers of tissue, the lesion, what it does to the sound below it), multiplied
by speckle (the envelope of complex noise blurred by the beam), weakened with depth and compressed by a logarithm. Benign lesions are smooth, lie flat
and often brighten what is below; malignant ones are spiculated, stand upright and cast a shadow; normal images have layers only.
"""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from src.core.console import InputError, short
from src.core.disk import explaining, make_folder, move, read_json, remove_folder
from src.core.locks import Lock

MARK = "demo.json"  # says what a finished folder was made with
VERSION = 1  # to be raised with every change of the pictures
CLASSES = ["benign", "malignant", "normal"]
RANGE = 48.0  # decibels from black to white
ANGLES = 2048  # directions from a lesion's centre
MARGIN = 0.12  # how much more than the picture is scanned, so that a twin can be another crop of it


@dataclass
class Scan:
    """A scanned field, larger than the picture: grey (H,W) uint8 and one bool mask (H,W) for each lesion."""

    grey: np.ndarray
    masks: list[np.ndarray] = field(default_factory=list)


def make(
    folder: Path,
    n_train: int = 168,
    n_test: int = 36,
    seed: int = 0,
    size: tuple[int, int] = (180, 420),
) -> Path:
    """Make the data set in `folder`, or leave it as it is where it was already made with the same arguments; bit-identical for the same seed.

    `size`: the shortest and longest side of an image in pixels. Raises InputError where `folder` holds something else.
    """
    folder = Path(folder)
    make_folder(folder.parent)
    arguments = {
        "version": VERSION,
        "n_train": n_train,
        "n_test": n_test,
        "seed": seed,
        "size": list(size),
    }
    with Lock.of(folder.with_name(f".{folder.name}.lock"), "the generated images").held():
        if not _is_made(folder, arguments):
            part, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
            remove_folder(part)
            with explaining(part):
                _fill(part, n_train, n_test, seed, size, arguments)
            remove_folder(old)
            if folder.exists():
                move(folder, old)
            move(part, folder)  # whole or not at all
            remove_folder(old)
    return folder


def _is_made(folder: Path, arguments: dict) -> bool:
    """Raises InputError where `folder` is not ours to write over."""
    if not folder.exists():
        return False
    with suppress(OSError, InputError):
        return read_json(folder / MARK) == arguments
    if not (folder / MARK).exists() and any(folder.iterdir()):
        raise InputError(
            "this folder is not of generated images and will not be written over",
            short(folder),
            "Move it away, or use another --work",
            code="not_generated",
        )
    return False


def _fill(
    part: Path, n_train: int, n_test: int, seed: int, size: tuple[int, int], arguments: dict
) -> None:
    _make_train(part / "train", n_train, seed, size)
    ids = _make_test(part / "test", n_test, seed, size)
    with open(part / "sample_submission.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("id", "label", "rle"), *((id, "normal", "-1") for id in ids)]
        )
    (part / MARK).write_text(json.dumps(arguments))


def class_counts(n: int) -> dict[str, int]:
    """BUSI's proportions, but enough of the rarer classes to learn them from few images."""
    malignant, normal = (max(round(n * share), min(40, n // 4)) for share in (0.27, 0.17))
    return {"benign": n - malignant - normal, "malignant": malignant, "normal": normal}


def _make_train(folder: Path, n: int, seed: int, size: tuple[int, int]) -> None:
    for c, (label, count) in enumerate(class_counts(n).items()):
        (folder / label).mkdir(parents=True)
        scan, picture = None, None
        for i in range(count):
            rng = np.random.default_rng((seed, c, i))
            twin = (
                i % 9 == 4
            )  # the image before once more: another crop, every other time mirrored; once pixel for pixel
            scan = scan if twin else scan_of(label, rng, size)
            picture = (
                picture
                if twin and i == 4 and label == "benign"
                else _crop(scan, rng, mirrored=twin and i % 2 == 1)
            )
            grey, masks = picture
            _save_image(folder / label / f"{label} ({i + 1}).png", grey, as_rgb=i % 10 == 3)
            _save_masks(
                folder / label,
                f"{label} ({i + 1})",
                masks,
                grey.shape,
                kind="rgb" if label == "normal" else "rgba" if i % 40 == 2 else "1",
            )


def _make_test(folder: Path, n: int, seed: int, size: tuple[int, int]) -> list[str]:
    folder.mkdir(parents=True)
    labels = [label for label, count in class_counts(n).items() for _ in range(count)]
    order = np.random.default_rng((seed, 98)).permutation(n)
    names = np.random.default_rng((seed, 99)).permutation(1 << 16)[
        :n
    ]  # names that give nothing away
    for i in range(n):
        rng = np.random.default_rng((seed, 10, i))
        grey, _ = _crop(scan_of(labels[order[i]], rng, size), rng)
        _save_image(folder / f"us_{names[i]:04x}.png", grey, as_rgb=i % 10 == 7)
    return sorted(f"us_{name:04x}" for name in names)


# ------------------------------------------------------------------------------------------------------------------------- the picture


def scan_of(label: str, rng: np.random.Generator, size: tuple[int, int]) -> Scan:
    """One patient's field of view."""
    low, high = size
    height, width = (int(rng.integers(low, high + 1) * (1 + MARGIN)) for _ in range(2))
    width = int(np.clip(width, height * 0.8, height * 1.5))
    unit = min(height, width)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    echo = _tissue(y / height, x / width, rng)
    masks: list[np.ndarray] = []
    count = 0 if label == "normal" else 2 if label == "benign" and rng.random() < 0.1 else 1
    for number in range(count):
        scale = 0.75 if count == 2 else 1.0
        centre_x = width * (
            (0.3, 0.7)[number] + rng.uniform(-0.03, 0.03) if count == 2 else rng.uniform(0.32, 0.68)
        )
        centre_y = height * rng.uniform(0.42, 0.58)
        masks.append(_lesion(echo, y, x, centre_y, centre_x, unit * scale, label, rng))
    grain = unit / 300
    speckle = _speckle(height, width, max(0.55, 0.9 * grain), max(0.8, 1.6 * grain), rng)
    attenuation = rng.uniform(6, 14) * np.maximum(
        y / height - 0.15, 0
    )  # decibels: the scanner's gain makes up for most of it
    level = echo + 20 * np.log10(speckle + 1e-3) - attenuation
    grey = 255 * (level + rng.uniform(31, 36)) / RANGE
    return Scan(
        cv2.GaussianBlur(np.clip(grey, 0, 255), (0, 0), 0.5).round().astype(np.uint8), masks
    )


def _tissue(v: np.ndarray, u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Echo strength (H,W) in dB of skin, fat, gland, muscle and chest wall at depth v and breadth u, both 0 to 1."""

    def wave(strength: float, most: int = 4) -> np.ndarray:
        return sum(
            strength / k * np.sin(2 * np.pi * k * 0.7 * u + rng.uniform(0, 6.3))
            for k in range(1, most)
        ).astype(np.float32)

    skin, fat, gland = rng.uniform(0.03, 0.06), rng.uniform(0.16, 0.28), rng.uniform(0.66, 0.82)
    borders = [
        skin + wave(0.003),
        fat + wave(0.025),
        gland + wave(0.03),
        gland + rng.uniform(0.09, 0.13) + wave(0.025),
    ]
    levels = [3.0] + [middle + rng.uniform(-1.5, 1.5) for middle in (-11, -3, -9, -17)]
    echo = np.full(v.shape, levels[0], np.float32)
    for border, above, below in zip(borders, levels, levels[1:]):
        echo += (below - above) * _logistic((v - border) / 0.006)
        echo += rng.uniform(4, 9) * np.exp(
            -(((v - border - 0.004) / 0.008) ** 2)
        )  # a bright line where layers meet
    # streaks along the layers, lobules of fat across them
    for broad, thin, strength in ((0.14, 0.012, 2.2), (0.06, 0.03, 2.0), (0.18, 0.08, 2.5)):
        echo += strength * _noise(v.shape, thin, broad, rng)
    return echo


def _lesion(
    echo: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    centre_y: float,
    centre_x: float,
    unit: float,
    label: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """Put a lesion into `echo`, with what it does to the sound below it; returns its mask (H,W) bool."""
    malignant = label == "malignant"
    if malignant:
        half_height, half_width, tilt = (
            unit * rng.uniform(0.16, 0.23),
            unit * rng.uniform(0.12, 0.16),
            rng.uniform(-0.3, 0.3),
        )
    else:
        half_height, half_width, tilt = (
            unit * rng.uniform(0.09, 0.15),
            unit * rng.uniform(0.17, 0.27),
            rng.uniform(-0.2, 0.2),
        )
    right, down = x - centre_x, y - centre_y
    along, across = (
        right * np.cos(tilt) + down * np.sin(tilt),
        -right * np.sin(tilt) + down * np.cos(tilt),
    )
    distance = np.hypot(along / half_width, across / half_height)
    bearing = (
        (np.arctan2(across / half_height, along / half_width) / (2 * np.pi) + 0.5) * ANGLES
    ).astype(np.int32) % ANGLES
    depth = _outline(malignant, rng)[bearing] - distance  # above 0: inside
    mask = depth > 0
    inside = _logistic(depth / (0.035 if malignant else 0.02))
    columns = np.nonzero(mask.any(0))[0]
    middle, half = float(columns[0] + columns[-1]) / 2, float(columns[-1] - columns[0]) / 2
    bottom = np.where(mask.any(0), mask.shape[0] - 1 - mask[::-1].argmax(0), centre_y).astype(
        np.float32
    )
    column = _logistic((0.85 - np.abs(x - middle) / half) / 0.12) * _logistic(
        (y - bottom) / (0.03 * unit)
    )  # the sound that came through the lesion
    if malignant:
        echo -= rng.uniform(9, 15) * column  # shadow
        echo += (
            rng.uniform(2, 5) * np.exp(-(((depth + 0.14) / 0.12) ** 2)) * (~mask)
        )  # a bright rim of reaction
        inner = -19 + rng.uniform(-2, 2) + 2.0 * _noise(mask.shape, 0.03, 0.03, rng)
    else:
        if rng.random() < 0.6:
            echo += (
                rng.uniform(3, 6) * column * np.exp(-np.clip(y - bottom, 0, None) / (0.35 * unit))
            )  # enhancement
        echo += rng.uniform(3, 6) * np.exp(
            -(((depth + 0.03) / 0.035) ** 2)
        )  # a thin bright capsule
        inner = -20 + rng.uniform(-3, 4) + 1.0 * _noise(mask.shape, 0.05, 0.05, rng)
    echo += inside * (inner - echo)
    return mask


def _outline(malignant: bool, rng: np.random.Generator) -> np.ndarray:
    """The edge's distance from the centre by direction, (ANGLES) float32, 1 on average: smooth, or jagged with spicules."""
    angle = np.linspace(-np.pi, np.pi, ANGLES, endpoint=False)
    edge = np.ones(ANGLES)
    for k in range(2, 4):
        edge += rng.uniform(0.0, 0.06) * np.cos(k * angle + rng.uniform(0, 6.3))
    if malignant:
        for k in range(5, 12):
            edge += rng.uniform(0.0, 0.055) * np.cos(k * angle + rng.uniform(0, 6.3))
        for ray in np.linspace(
            -np.pi, np.pi, int(rng.integers(7, 12)), endpoint=False
        ):  # narrow rays of different length
            apart = (angle - ray - rng.uniform(-0.25, 0.25) + np.pi) % (2 * np.pi) - np.pi
            edge += rng.uniform(0.10, 0.34) * np.exp(-((apart / rng.uniform(0.07, 0.13)) ** 2))
    return edge.astype(np.float32)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def _noise(
    shape: tuple[int, int], tall: float, broad: float, rng: np.random.Generator
) -> np.ndarray:
    """Smooth noise (H,W) of unit spread with blobs of the given height and breadth, as shares of the image."""
    rows, columns = max(2, round(1 / tall)), max(2, round(1 / broad))
    coarse = rng.standard_normal((rows, columns)).astype(np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _speckle(
    height: int, width: int, tall: float, broad: float, rng: np.random.Generator
) -> np.ndarray:
    """The envelope (H,W) of complex noise blurred by a beam that is broader than its pulse is long; mean square 1."""
    parts = [
        cv2.GaussianBlur(
            rng.standard_normal((height, width)).astype(np.float32),
            (0, 0),
            sigmaX=broad,
            sigmaY=tall,
        )
        for _ in range(2)
    ]
    envelope = np.hypot(*parts)
    return envelope / np.sqrt(np.mean(envelope**2))


# --------------------------------------------------------------------------------------------------------------------------- the files


def _crop(
    scan: Scan, rng: np.random.Generator, mirrored: bool = False
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The picture and its masks: a window on the scan, a little elsewhere each time."""
    height, width = (int(s / (1 + MARGIN)) for s in scan.grey.shape)
    top = int((scan.grey.shape[0] - height) * rng.uniform(0, 0.05))  # the skin stays in the picture
    left = int((scan.grey.shape[1] - width) * rng.uniform(0.48, 0.52))
    window = (slice(top, top + height), slice(left, left + width))
    pictures = [p[window] for p in (scan.grey, *scan.masks)]
    if mirrored:
        pictures = [p[:, ::-1] for p in pictures]
    return pictures[0], pictures[1:]


def _save_image(file: Path, grey: np.ndarray, as_rgb: bool) -> None:
    Image.fromarray(
        np.repeat(grey[..., None], 3, axis=2) if as_rgb else np.ascontiguousarray(grey)
    ).save(file, compress_level=3)


def _save_masks(
    folder: Path, stem: str, masks: list[np.ndarray], shape: tuple[int, int], kind: str
) -> None:
    """As BUSI has them: one file a lesion, 1 bit; or RGBA with an opaque alpha; for normal images an all-zero RGB file."""
    for number, mask in enumerate(masks or [np.zeros(shape, bool)]):
        plane = np.ascontiguousarray(mask).astype(np.uint8) * 255
        if kind == "1":
            picture = Image.fromarray(plane).convert("1")
        else:
            picture = Image.fromarray(
                np.stack([plane] * 3 + [np.full_like(plane, 255)] * (kind == "rgba"), axis=2)
            )
        picture.save(folder / f"{stem}_mask{f'_{number}' if number else ''}.png", compress_level=3)
