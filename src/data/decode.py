"""From an image's file to its pixels, whatever kind of file it is."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from src.data.dicom import DICOM_SUFFIXES, decode_dicom
from src.data.files import check_size, read_bytes

Image.MAX_IMAGE_PIXELS = None  # check_size says it in our words, and before anything is decoded
Image.init()  # else Pillow does not know all of its formats by name
# what is looked into at all: Pillow also knows formats that start other programs
NAMES = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "JPEG2000", "DIB", "PPM")
FORMATS = tuple(name for name in NAMES if name in Image.OPEN)
for _library in ("PIL", "pydicom"):  # they warn of every oddity of files that they read anyway
    warnings.filterwarnings("ignore", module=_library)

DEEP = {"I", "I;16", "I;16B", "I;16L", "F"}  # Pillow's modes of more than 8 bits
MOST_PAGES = 64  # of a TIFF that are looked at
NEW_SUBFILE_TYPE = 254  # TIFF's tag whose lowest bit says: a page of reduced resolution


def decode(path: Path) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """(pixels (H,W) or (H,W,3) RGB of 8 or more bits, alpha (H,W) or None, whether compressed
    with loss).

    Raises ValueError with a short reason, and nothing else, for a file that cannot be read.
    """
    data = read_bytes(Path(path))
    if Path(path).suffix.lower() in DICOM_SUFFIXES:
        return _checked(decode_dicom(data)), None, False
    try:
        pixels, lossy = _decode_picture(data)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError, …
        name = str(error).split("<")[0].strip() or type(error).__name__
        raise ValueError("not an image" if "cannot identify" in name else name) from None
    _checked(pixels)
    if pixels.ndim == 2:
        return pixels, None, lossy
    alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else None
    colour = pixels[..., 0] if pixels.shape[2] == 2 else np.ascontiguousarray(pixels[..., :3])
    return colour, alpha, lossy


def _checked(pixels: np.ndarray) -> np.ndarray:
    """The same. Raises ValueError where there are no pixels, or values that are not finite."""
    if pixels.size == 0:
        raise ValueError("the image has no pixels")
    if pixels.dtype.kind == "f":
        if count := int(pixels.size - np.isfinite(pixels).sum()):
            raise ValueError(f"{count} of its values are not finite numbers (NaN, inf)")
        if not np.isfinite(float(pixels.max()) - float(pixels.min())):
            raise ValueError("its values are too far apart")
    return pixels


def size_of(path: Path) -> tuple[int, int]:
    """Height and width, by the header alone. Raises what Pillow raises, or ValueError."""
    with Image.open(path, formats=FORMATS) as image:
        check_size(*image.size)
        return image.height, image.width


def _decode_picture(data: bytes) -> tuple[np.ndarray, bool]:
    """(pixels (H,W), (H,W,2) grey and alpha, (H,W,3) or (H,W,4), whether compressed with loss)."""
    # Pillow, because cv2 returns truncated files half grey without an error
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        check_size(*image.size)
        if _is_several(image):
            raise ValueError(f"{image.format} of several frames; save one frame a file")
        lossy = image.format in ("JPEG", "MPO")
        deep_colour = image.mode in ("RGB", "RGBA", "LA") and _bits(data, image) > 8
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode not in ("1", "L", "LA", "RGB", "RGBA", *DEEP):
            image = image.convert("RGB")
        image.load()
        pixels = np.asarray(image)
        if image.mode == "1":
            pixels = pixels.astype(np.uint8) * 255
    if deep_colour:  # Pillow keeps only the upper byte of 16-bit colours
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is not None and decoded.dtype == np.uint16 and decoded.ndim == 3:
            pixels = decoded[..., [2, 1, 0, *range(3, decoded.shape[2])]]
    return pixels, lossy


def _is_several(image: Image.Image) -> bool:
    """Whether it is an animation or has several pages. A second JPEG behind the first (MPO) is a
    camera's preview, and a TIFF's page of reduced resolution the same picture again."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return False
    if image.format != "TIFF":
        return True
    pages = min(image.n_frames, MOST_PAGES)
    full = 0
    for page in range(pages):
        image.seek(page)
        full += not int(image.tag_v2.get(NEW_SUBFILE_TYPE, 0)) & 1
    image.seek(0)
    return full > 1 or image.n_frames > MOST_PAGES


def _bits(data: bytes, image: Image.Image) -> int:
    if image.format == "PNG":
        return data[24]  # the bit depth's place in the header, IHDR
    bits = image.tag_v2.get(258, (8,)) if image.format == "TIFF" else (8,)
    return max(bits if isinstance(bits, tuple) else (bits,))
