"""How much of a file is taken: a small one may unpack to a giant, and not everything is a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST_PIXELS = 2**27  # decoding so many takes about 1.5 GB
MOST_BYTES = 2**30


def read_bytes(path: Path) -> bytes:
    """Raises ValueError with a short reason for what is no file, empty or too large."""
    try:
        at = os.stat(path)
        if not stat.S_ISREG(at.st_mode):  # a named pipe would be waited for without end
            raise ValueError("not a file")
        if at.st_size > MOST_BYTES:
            raise ValueError(f"the file has {at.st_size:,} bytes, more than {MOST_BYTES:,}")
        data = path.read_bytes()  # not cv2.imread: it cannot open non-ASCII names on Windows
    except OSError as error:
        raise ValueError(error.strerror or "cannot be opened") from None
    if not data:
        raise ValueError("the file is empty")
    return data


def check_size(width: int, height: int) -> None:
    """Raises ValueError for more pixels than are decoded: a small file may hold a giant."""
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width}x{height} pixels, more than {MOST_PIXELS:,}: make it smaller")
