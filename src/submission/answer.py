"""What is submitted for one image: written by writer.py, compared by verify.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Answer:
    """What is said of one image; None where it is not asked for."""

    height: int  # of the mask that is handed in
    width: int
    bits: np.ndarray | None = (
        None  # the mask, packed: an eighth of the memory, thousands of test images may be large
    )
    label: str | None = None  # a class
    probs: np.ndarray | None = None  # (C)
    boxes: str = ""

    @property
    def mask(self) -> np.ndarray:
        return (
            np.unpackbits(self.bits, count=self.height * self.width)
            .reshape(self.height, self.width)
            .astype(bool)
        )
