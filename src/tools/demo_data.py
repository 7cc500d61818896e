"""Generated ultrasound-like images in BUSI's own file layout, with BUSI's traps in it: for
`./run.sh demo` and the tests.

WRITES  folder/train/<class>/'benign (1).png', 'benign (1)_mask.png', …, folder/test/us_1a2b.png,
        folder/sample_submission.csv, folder/demo.json

Layers of tissue under speckle, and dark lesions: benign ones are smooth, lie flat and brighten what
is below; malignant ones are jagged, stand upright and cast a shadow; normal images have none.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from src.core.console import InputError
from src.core.disk import make_folder, read_json, replacing_folder
from src.core.locks import Lock
from src.data.tables import write_table

MARK = "demo.json"  # says what a finished folder was made with
VERSION = 2  # to be raised with every change of the pictures


def make(
    folder: Path,
    n_train: int = 168,
    n_test: int = 36,
    seed: int = 0,
    size: tuple[int, int] = (180, 420),
) -> Path:
    """Make the data set in `folder`, or leave it as it is where it was already made with the same
    arguments; bit-identical for the same seed.

    size: the shortest and longest side of an image in pixels. Raises InputError where `folder`
    holds something else.
    """
    folder = Path(folder)
    make_folder(folder.parent)
    given = {"version": VERSION, "n_train": n_train, "n_test": n_test, "seed": seed}
    given["size"] = list(size)
    with Lock.of(folder.with_name(f".{folder.name}.lock"), "the generated images").held():
        if not _is_made(folder, given):
            with replacing_folder(folder) as part:
                _make_train(part / "train", n_train, seed, size)
                ids = _make_test(part / "test", n_test, seed, size)
                rows = [(id, "normal", "-1") for id in ids]
                write_table(part / "sample_submission.csv", ["id", "label", "rle"], rows)
                (part / MARK).write_text(json.dumps(given))
    return folder


def _is_made(folder: Path, given: dict) -> bool:
    """Raises InputError where `folder` is not ours to write over."""
    with suppress(OSError, InputError):
        return read_json(folder / MARK) == given
    if folder.exists() and not (folder / MARK).exists() and any(folder.iterdir()):
        what = "this folder is not of generated images and will not be written over"
        todo = "Move it away, or use another --work"
        raise InputError(what, folder, todo, code="not_generated")
    return False


def class_counts(n: int) -> dict[str, int]:
    """BUSI's proportions, but enough of the rarer classes to learn them from few images."""
    malignant, normal = (max(round(n * share), min(40, n // 4)) for share in (0.27, 0.17))
    return {"benign": n - malignant - normal, "malignant": malignant, "normal": normal}


def _make_train(folder: Path, n: int, seed: int, size: tuple[int, int]) -> None:
    for c, (label, count) in enumerate(class_counts(n).items()):
        (folder / label).mkdir(parents=True)
        planes: list[np.ndarray] = []
        for i in range(count):
            if i % 9 == 4:
                planes = _twin(planes, exact=i == 4 and label == "benign", mirrored=i % 2 == 1)
            else:
                planes = picture_of(label, np.random.default_rng((seed, c, i)), size)
            grey, *masks = planes
            stem = f"{label} ({i + 1})"
            _save(folder / label / f"{stem}.png", grey, "RGB" if i % 10 == 3 else "L")
            # as BUSI has them: 1 bit, or RGBA with an opaque alpha; RGB of zeros for normal images
            mode = "RGBA" if i % 40 == 2 else "1"
            if label == "normal":
                masks, mode = [np.zeros_like(grey)], "RGB"
            for number, mask in enumerate(masks):
                suffix = f"_{number}" if number else ""
                _save(folder / label / f"{stem}_mask{suffix}.png", mask, mode)


def _make_test(folder: Path, n: int, seed: int, size: tuple[int, int]) -> list[str]:
    """Under names that give nothing away, which are returned."""
    folder.mkdir(parents=True)
    labels = np.repeat(list(class_counts(n)), list(class_counts(n).values()))
    order = np.random.default_rng((seed, 98)).permutation(n)
    names = np.random.default_rng((seed, 99)).permutation(1 << 16)[:n]
    ids = [f"us_{name:04x}" for name in names]
    for i, id in enumerate(ids):
        grey, *_ = picture_of(labels[order[i]], np.random.default_rng((seed, 10, i)), size)
        _save(folder / f"{id}.png", grey, "RGB" if i % 10 == 7 else "L")
    return sorted(ids)


def _save(file: Path, plane: np.ndarray, mode: str) -> None:
    Image.fromarray(plane).convert(mode).save(file, compress_level=3)


def _twin(planes: list[np.ndarray], exact: bool, mirrored: bool) -> list[np.ndarray]:
    """The image before once more: in another crop, and perhaps mirrored."""
    edge = 0 if exact else len(planes[0]) // 40
    planes = [plane[edge:, edge : plane.shape[1] - edge] for plane in planes]
    return [np.ascontiguousarray(plane[:, ::-1] if mirrored else plane) for plane in planes]


def picture_of(label: str, rng: np.random.Generator, size: tuple[int, int]) -> list[np.ndarray]:
    """An image and a mask for each of its lesions, all (H,W) uint8 from 0 to 255."""
    height, width = rng.integers(size[0], size[1] + 1, 2)
    width = int(np.clip(width, height * 0.8, height * 1.5))
    layers = rng.uniform(0.03, 0.55, (9, 4)).astype(np.float32)
    echo = cv2.resize(layers, (width, int(height)), interpolation=cv2.INTER_CUBIC)
    masks = []
    if label != "normal":
        two = label == "benign" and rng.random() < 0.1
        for centre in (0.3, 0.7) if two else (rng.uniform(0.35, 0.65),):
            masks.append(_draw_lesion(echo, centre, 0.7 if two else 1.0, label, rng))
    speckle = cv2.GaussianBlur(rng.rayleigh(0.8, echo.shape).astype(np.float32), (0, 0), 1.2)
    grey = np.sqrt(np.clip(cv2.GaussianBlur(echo, (0, 0), 1.5) * speckle, 0, 1))
    return [(255 * plane).astype(np.uint8) for plane in (grey, *masks)]


def _draw_lesion(
    echo: np.ndarray, centre: float, scale: float, label: str, rng: np.random.Generator
) -> np.ndarray:
    """Put a lesion into the echo (H,W), with what it does to the sound below it; returns its mask
    (H,W) bool. centre: from left, as a share of the width."""
    malignant = label == "malignant"
    height, width = echo.shape
    radii = (0.12, 0.21, 0.10, 0.17) if malignant else (0.09, 0.17, 0.14, 0.24)
    unit = scale * min(height, width)
    half_height, half_width = unit * rng.uniform(*radii[:2]), unit * rng.uniform(*radii[2:])
    y, x = np.mgrid[:height, :width].astype(np.float32)
    down = (y - height * rng.uniform(0.42, 0.58)) / half_height
    right = (x - width * centre) / half_width
    angle, edge = np.arctan2(down, right), 1.0
    for k in range(2, 12 if malignant else 4):
        edge = edge + rng.uniform(0, 0.04) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    mask = np.hypot(down, right) < edge
    below = (np.cumsum(mask, axis=0) > 0) & ~mask
    echo[below] *= rng.uniform(0.15, 0.6) if malignant else rng.uniform(0.75, 1.3)
    echo[mask] *= rng.uniform(0.1, 0.33)
    return mask
