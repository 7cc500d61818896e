"""The data as prepare found it: index.csv, report.json and truth.npz together, and the images'
brightness and contrast.

READS   artifacts/prepared/ and the images in the data folder
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from src.core.console import InputError, progress
from src.core.disk import read_json
from src.core.paths import Paths
from src.data.images import read_image
from src.data.rle import Truth
from src.data.tables import read_index
from src.report.figures import outlined


@dataclass
class Facts:
    """What prepare found out; the pixels are read once, when first asked for."""

    paths: Paths
    index: pd.DataFrame  # see data/tables.py
    report: dict
    most: int  # of so many images, evenly over the index, the pixels are read

    @property
    def classes(self) -> list[str]:
        return list(self.report["classes"])

    @cached_property
    def train(self) -> pd.DataFrame:
        """The train rows, with `share`: the lesion's share of the image, and `parts`: how many
        connected components it has (8-connected)."""
        rows = self.index[self.index["set"] == "train"].reset_index(drop=True)
        rows["share"] = rows["area"] / (rows["height"] * rows["width"])
        masks = (self.truth.mask(id).astype(np.uint8) for id in rows["id"])
        rows["parts"] = [cv2.connectedComponents(mask)[0] - 1 for mask in masks]
        return rows

    @cached_property
    def truth(self) -> Truth:
        return Truth.load(self.paths.truth)

    @cached_property
    def light(self) -> tuple[pd.DataFrame, np.ndarray]:
        """A row an image: id, set, label, image, brightness, rms, michelson; and its histogram,
        (N,256), which sums to 1. The formulas: `light_of`."""
        chosen = np.unique(np.linspace(0, len(self.index) - 1, self.most).astype(int))
        rows = self.index.iloc[chosen][["id", "set", "label", "image"]].reset_index(drop=True)
        histograms = np.zeros((len(rows), 256))
        with progress(len(rows), "reading") as bar:
            for histogram, image in zip(histograms, rows["image"]):
                histogram[:] = np.bincount(self.pixels(image).ravel(), minlength=256)
                bar.update(1)
        rows[["brightness", "rms", "michelson"]] = [light_of(h) for h in histograms]
        return rows, histograms / histograms.sum(1, keepdims=True)

    def pixels(self, image: str) -> np.ndarray:
        """One image by its path in the index, (H,W) uint8. Raises InputError where it is no longer
        there."""
        file = self.paths.data / image
        try:
            return read_image(file)
        except ValueError as error:
            what = f"an image of the index cannot be read: {error}"
            todo = "Name the folder that was prepared, or run ./run.sh prepare again"
            raise InputError(what, file, todo, code="images_gone") from None

    def outlined(self, id: str, side: int = 480) -> np.ndarray:
        """A train image with its lesion's outline, (h,w,3) RGB."""
        row = self.train[self.train["id"] == id].iloc[0]
        return outlined(self.pixels(row["image"]), self.truth.mask(id), None, side)


def load(work: Path | str, data: Path | str, most: int = 2000) -> Facts:
    """work: where artifacts/ is; data: the images that were prepared. Raises InputError where
    prepare has not run."""
    paths = Paths(Path(work).expanduser().resolve(), Path(data).expanduser().resolve())
    index = read_index(paths)
    return Facts(paths, index, read_json(paths.report), min(most, len(index)))


def light_of(histogram: np.ndarray) -> tuple[float, float, float]:
    """(brightness, RMS contrast, Michelson contrast) of an image whose grey levels i = 0 … 255
    occur h_i times, n = Σ h_i pixels:

    brightness   b = Σ i·h_i / n, the mean intensity
    RMS          √(Σ (i − b)²·h_i / n), the standard deviation (Peli, Contrast in complex images,
                 J. Opt. Soc. Am. A 7(10), 1990, pp. 2032-2040)
    Michelson    (max − min) / (max + min), 0 for a black image (Michelson, Studies in Optics, 1927)
    """
    levels, n = np.arange(256), histogram.sum()
    brightness = levels @ histogram / n
    rms = np.sqrt((levels - brightness) ** 2 @ histogram / n)
    low, high = np.flatnonzero(histogram)[[0, -1]]
    return float(brightness), float(rms), float((high - low) / (high + low)) if high else 0.0
