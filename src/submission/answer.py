"""What is submitted for one image: written by writer.py, compared by verify.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Answer:
    """The answer for one image; None for what the sample does not ask for."""

    # of the mask that is submitted
    height: int
    width: int
    # packed to an eighth of the memory: thousands of test images may be large
    packed: np.ndarray | None = None
    label: str | None = None
    probs: np.ndarray | None = None  # (C)
    boxes: str = ""

    @property
    def mask(self) -> np.ndarray:
        """(height, width) bool."""
        pixels = np.unpackbits(self.packed, count=self.height * self.width)
        return pixels.reshape(self.height, self.width).astype(bool)
