"""Contests in miniature, for the tests of what is handed in: worlds (data folder, competition.yaml,
predictions, decision), and decoders of their own.

No decoder shares a line with src/: each is a plain loop over pixels, written from what the
contest's page says of its format, and as strict as Kaggle's metric is (pairs of whole numbers,
sorted, in bounds, no pixel twice)."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from src.config import load as configs
from src.core.paths import Paths
from src.core.settings import Classes
from src.data.predictions import Predictions
from src.parts.postprocess import Decision, apply
from src.pipeline.jobs import submit_job
from src.stages import prepare, submit

S = 32  # of the predictions
SIZES = [
    (40, 61),
    (57, 44),
    (48, 80),
    (63, 52),
    (44, 70),
    (70, 45),
    (51, 66),
    (60, 41),
    (46, 58),
]  # height, width: no image is square, and no two are alike
STEMS = [
    "i7",
    "i1",
    "i12",
    "i3",
    "i10",
    "i4",
    "i9",
    "i2",
    "i5",
]  # neither the order of the disk nor the natural one
EMPTY = 3  # the number of the image without a mask
CLASSES, SALT = ["benign", "malignant", "normal"], ["salt", "none"]
DECISION = Decision(threshold=0.4, min_area=0.004)


def one_size(height: int, width: int) -> list[tuple[int, int]]:
    return [(height, width)] * len(STEMS)


# ----------------------------------------------------------------------------------------- decoders


def pairs(text: str) -> list[tuple[int, int]]:
    assert re.fullmatch(r"\d+( \d+)*", text), f"no list of whole numbers: {text[:50]!r}"
    numbers = [int(word) for word in text.split(" ")]
    assert len(numbers) % 2 == 0
    return list(zip(numbers[::2], numbers[1::2]))


def kaggle(text: str, height: int, width: int) -> np.ndarray:
    """Severstal, TGS, nerves, HuBMAP, Airbus, contrails, in the same words: "The pixels are
    one-indexed and numbered from top to bottom, then left to right: 1 is pixel (1,1), 2 is pixel
    (2,1), etc."; "1 3" are the pixels 1, 2, 3; sorted, positive, no pixel twice."""
    mask, last = np.zeros((height, width), bool), 0
    for start, length in pairs(text):
        assert start > last and length > 0, f"run {start} {length} after pixel {last}"
        for number in range(start, start + length):
            row, column = (number - 1) % height, (number - 1) // height
            mask[row, column] = True  # IndexError: out of bounds
        last = start + length - 1
    return mask


def madison(text: str, height: int, width: int) -> np.ndarray:
    """UW-Madison: from 1 like the others, but its masks are numbered left to right, then top to
    bottom, whatever its page says."""
    mask, last = np.zeros((height, width), bool), 0
    for start, length in pairs(text):
        assert start > last and length > 0, f"run {start} {length} after pixel {last}"
        for number in range(start, start + length):
            mask[(number - 1) // width, (number - 1) % width] = True
        last = start + length - 1
    return mask


def pneumothorax(text: str, height: int, width: int) -> np.ndarray:
    """SIIM-ACR: "a relative form of RLE (pixel locations are measured from the end of the previous
    run)"; the first counts from 0; its mask is read in columns (rle2mask fills width×height, and
    what it fills is turned about the diagonal)."""
    mask, position = np.zeros((width, height), bool), 0
    for skipped, length in pairs(text):
        position += skipped
        for number in range(position, position + length):
            assert not mask[number // height, number % height]
            mask[number // height, number % height] = True
        position += length
    return mask.T


def painted(
    text: str, height: int, width: int, order: str, first: int, relative: bool
) -> np.ndarray:
    """Any of the eight ways of counting."""
    mask, end = np.zeros((height, width), bool), 0
    for start, length in pairs(text):
        begin = end + start if relative and end else start - first
        assert begin >= end and length > 0
        for number in range(begin, begin + length):
            place = (
                (number % height, number // height)
                if order == "column"
                else (number // width, number % width)
            )
            assert not mask[place]
            mask[place] = True
        end = begin + length
    return mask


def written(mask: np.ndarray, order: str = "column", first: int = 1, relative: bool = False) -> str:
    """The runs of a mask in any of the eight ways, '' for none: what makes training tables.
    Relative starts count from the end of the run before, the first one from the beginning of the
    image, which is number `first`."""
    pixels = [bool(p) for line in (mask.T if order == "column" else mask) for p in line]
    words, begin, end = [], None, None
    for number, lesion in enumerate([*pixels, False]):
        if lesion and begin is None:
            begin = number
        if not lesion and begin is not None:
            words += [
                begin - end if relative and end is not None else begin + first,
                number - begin,
            ]
            begin, end = None, number
    return " ".join(map(str, words))


def connected(mask: np.ndarray) -> list[np.ndarray]:
    """The parts of a mask, 8-connected, by filling from pixel to pixel."""
    left, found = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask))}, []
    while left:
        part, front = np.zeros_like(mask), [left.pop()]
        while front:
            y, x = front.pop()
            part[y, x] = True
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
        found.append(part)
    return found


def bounds(part: np.ndarray) -> tuple[int, int, int, int]:
    """xmin, ymin, xmax, ymax; the last two are one more than the last column and row."""
    rows, columns = np.nonzero(part.any(1))[0], np.nonzero(part.any(0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# ------------------------------------------------------------------------------------------- worlds


@dataclass
class World:
    paths: Paths
    config: configs.Config
    ids: list[str]  # stems of the test images
    sizes: dict[str, tuple[int, int]]  # height, width of each
    predictions: Predictions
    decision: Decision

    def meant(self, stem: str, size: tuple[int, int] | None = None) -> tuple[np.ndarray, str]:
        """The mask (of the image's own size, or of this one) and the class that the decision makes
        of the predictions."""
        one, data = self.predictions.select([stem]), self.config.competition.data
        mask, label = apply(
            self.decision, one, 0, size or self.sizes[stem], Classes(data.classes, data.empty_class)
        )
        return mask, data.classes[label]

    def of_class(self, stem: str, keys: list[str]) -> str:
        """The one of these classes whose row carries the mask."""
        label = self.meant(stem)[1]
        probs = dict(zip(self.predictions.classes, self.predictions.label[self.ids.index(stem)]))
        return label if label in keys else max(keys, key=probs.get)

    @property
    def file(self) -> Path:
        return self.paths.submission("exp")

    def run(self) -> None:
        submit.run(submit_job(self.config, self.paths), self.config, self.paths)

    def text(self) -> str:
        self.run()
        return self.file.read_bytes().decode("utf-8")

    def table(self, delimiter: str = ",") -> list[dict[str, str]]:
        """The submission's rows, each a cell by the name of its column."""
        return rows(self.text(), delimiter)

    def facts(self) -> dict:
        """The way of counting that prepare found in the training table's run lengths."""
        found = json.loads(self.paths.report.read_text())["runs"]
        return {name: found[name] for name in ("order", "first", "relative")}


def rows(text: str, delimiter: str = ",") -> list[dict[str, str]]:
    assert text.endswith("\n") and "\r" not in text and "\n\n" not in text
    head, *lines = csv.reader(io.StringIO(text), delimiter=delimiter)
    assert all(len(line) == len(head) for line in lines)
    return [dict(zip(head, line)) for line in lines]


def world(
    home: Path,
    sample: str,
    classes: list[str] = CLASSES,
    none: str | None = "normal",
    stems: list[str] = STEMS,
    sizes: list[tuple[int, int]] = SIZES,
    suffix: str = ".png",
    table: dict | None = None,
    decision: Decision = DECISION,
    answers: tuple[str, ...] = ("mask", "label"),
    prepared: bool = True,
    **submission,
) -> World:
    """Data, configs, predictions and decision below `home`, prepared. The sample is a text, or
    lines in which {id} stands for each stem, after its header. none: the class without a lesion.
    table: arguments of `training_table`; else the train images lie in folders, a class each.
    submission: what the YAML sets."""
    sizes = dict(zip(stems, sizes, strict=True))
    paths = Paths(home / "work", home / "data")
    about = {"classes": classes, "empty_class": none}
    for number, (stem, size) in enumerate(sizes.items()):
        save(paths.data / "test" / f"{stem}{suffix}", picture(1000 + number, np.zeros(size, bool)))
    if table is None:
        training_folders(paths.data, classes, none, suffix, sizes[stems[0]])
    else:
        about |= training_table(paths.data, classes, none, suffix=suffix, **table)
    (paths.data / "sample_submission.csv").write_bytes(filled(sample, stems).encode())
    (folder := home / "configs").mkdir()
    contest = {"data": about} | ({"submission": submission} if submission else {})
    (folder / "competition.yaml").write_text(yaml.safe_dump(contest))
    (folder / "exp.yaml").write_text(f"image_size: {S}\n")
    config = configs.load(folder / "exp.yaml")
    if prepared:
        prepare.run(None, config, paths)
    mask, label = (
        lesions() if "mask" in answers else None,
        opinions(len(stems), len(classes)) if "label" in answers else None,
    )
    predictions = Predictions(stems, mask, label, classes)
    paths.predictions("exp").mkdir(parents=True)
    predictions.save(paths.test("exp"))
    decision.save(paths.decision("exp"))
    nested = {
        "score": 0.5,
        "intervals": {"score": [0.4, 0.6]},
        "metrics": {"dice": 0.5},
        "by_fold": {"0": {}},
    }
    paths.metrics("exp").write_text(
        json.dumps({"nested": nested, "tuned": {"decision": asdict(decision)}})
    )
    return World(paths, config, stems, sizes, predictions, decision)


def filled(sample: str, stems: list[str]) -> str:
    """A header and lines that hold {id} -> the lines for every stem, an image after the other."""
    head, _, body = sample.partition("\n")
    lines = [line for line in body.split("\n") if line]
    if "{id}" not in body:
        return sample
    return "\n".join([head, *(line.replace("{id}", stem) for stem in stems for line in lines), ""])


def training_folders(
    data: Path, classes: list[str], none: str | None, suffix: str, size: tuple[int, int]
) -> None:
    """Two images a class, the lesion's masks beside them."""
    for number, label in enumerate(classes):
        for twin in range(2):
            mask = np.zeros(size, bool) if label == none else ellipse(size, 0.5, 0.4, 0.2, 0.2)
            save(
                data / "train" / label / f"a{number}_{twin}{suffix}",
                picture(10 * number + twin, mask),
            )
            if label != none:
                save(data / "train" / label / f"a{number}_{twin}_mask.png", mask)


def training_table(
    data: Path,
    classes: list[str],
    none: str | None,
    order: str = "column",
    first: int = 1,
    relative: bool = False,
    several: bool = False,
    suffix: str = ".png",
    sizes: list[tuple[int, int]] = SIZES,
    masks: list[np.ndarray] | None = None,
    counted: tuple[int, int] | None = None,
    visible: bool = True,
    id: str = "{id}",
    names: tuple[str, str, str] = ("ImageId", "Class", "EncodedPixels"),
    token: str = "",
) -> dict:
    """A folder of train images, and a table with their masks as run lengths; returns what the YAML
    must say of it. The masks touch all edges, the first pixel and the last one. names: of the
    columns, '' for one that there is not. counted: the size that masks are counted at, where it is
    not the image's. visible: lesions are brighter than what is around. token: what stands for no
    runs."""
    masks = masks or [outline(size, number) for number, size in enumerate(sizes)]
    lines, lesion = [], [c for c in classes if c != none]
    for number, mask in enumerate(
        [*masks, *([np.zeros(masks[0].shape, bool)] * 2 if none else [])]
    ):
        label = lesion[number % len(lesion)] if mask.any() else none
        save(
            data / "train_images" / f"b{number}{suffix}",
            picture(50 + number, mask if visible else np.zeros_like(mask)),
        )
        mask = (
            np.array(Image.fromarray(mask).resize(counted[::-1], Image.NEAREST))
            if counted
            else mask
        )
        for part in (connected(mask) if several else [mask]) or [mask]:
            lines.append(
                [
                    id.replace("{id}", f"b{number}"),
                    label,
                    written(part, order, first, relative) or token,
                ]
            )
    with open(data / "train.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [[cell for cell, name in zip(line, names) if name] for line in (names, *lines)]
        )
    return {
        "table_columns": {key: name for key, name in zip(("id", "label", "rle"), names) if name}
    }


# --------------------------------------------------------------------------------- images and masks


def ellipse(size: tuple[int, int], y: float, x: float, high: float, wide: float) -> np.ndarray:
    """Centre and half axes as shares of the image's sides -> (H,W) bool."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return ((rows + 0.5) / size[0] - y) ** 2 / high**2 + (
        (columns + 0.5) / size[1] - x
    ) ** 2 / wide**2 <= 1


OUTLINES = [
    (0.3, 0.65, 0.15, 0.2),
    (0, 0, 0.3, 0.2),
    (1, 1, 0.2, 0.3),
    (0, 0.7, 0.2, 0.2),
    (1, 0.3, 0.25, 0.15),
    (0.2, 0.6, 0.1, 0.25),
    (0.6, 0, 0.2, 0.3),
    (0.3, 1, 0.2, 0.2),
    (0.25, 0.7, 0.12, 0.2),
]


def outline(size: tuple[int, int], number: int) -> np.ndarray:
    """Nine kinds of masks (H,W): in the middle, at each edge and corner, of two parts."""
    mask = ellipse(size, *OUTLINES[number % 9])
    return mask | ellipse(size, 0.8, 0.15, 0.1, 0.1) if number in (0, 5) else mask


def lesions() -> np.ndarray:
    """Nine probability maps (9,S,S) float16: a blob, one in the first corner, two parts, none, full
    columns, full rows, the last corner, three parts of which one touches the edge, and
    everything."""
    y, x = np.mgrid[:S, :S]

    def blob(row: float, column: float, high: float, wide: float) -> np.ndarray:
        return np.clip(1.4 - ((y - row) / high) ** 2 - ((x - column) / wide) ** 2, 0, 1)

    none = np.zeros((S, S))
    maps = [
        blob(12, 19, 6, 4),
        blob(0, 0, 9, 6),
        np.maximum(blob(8, 8, 4, 5), blob(23, 22, 5, 3)),
        none,
        none + (abs(x - 13) < 2),
        none + (abs(y - 20) < 2),
        blob(31, 31, 8, 6),
        np.maximum.reduce([blob(6, 6, 3, 3), blob(24, 9, 4, 4), blob(14, 31, 5, 4)]),
        none + 1,
    ]
    return np.stack(maps).astype(np.float16)


def opinions(images: int, classes: int) -> np.ndarray:
    """Class probabilities (N,C) float32: every class is the first of some image, also of some whose
    mask says otherwise; no two of an image are equal."""
    raw = np.array(
        [
            [
                1 + 6 * (image % classes == c) + 0.31 * ((image + 2 * c) % (classes + 1))
                for c in range(classes)
            ]
            for image in range(images)
        ]
    )
    return (raw / raw.sum(1, keepdims=True)).astype(np.float32)


def picture(seed: int, mask: np.ndarray) -> np.ndarray:
    """Grey noise (H,W) with coarse structure, brighter where the mask is."""
    rng, (height, width) = np.random.default_rng(seed), mask.shape
    coarse = np.kron(rng.integers(0, 70, (5, 7)), np.ones((height // 5 + 1, width // 7 + 1)))[
        :height, :width
    ]
    return (coarse + rng.integers(0, 30, (height, width)) + 120 * mask).astype(np.uint8)


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels).save(file)
