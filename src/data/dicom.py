"""DICOM files of one frame. pydicom is imported where there are any."""

from __future__ import annotations

import logging
import zlib
from io import BytesIO

import numpy as np

from src.data.files import MOST_BYTES, check_size

DICOM_SUFFIXES = {".dcm", ".dicom"}
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
DEFLATED = b"1.2.840.10008.1.2.1.99"


def decode_dicom(data: bytes) -> np.ndarray:
    """The one frame of a DICOM file, (H,W) or (H,W,3) RGB, bright where it is meant to be bright.

    Windows and rescaling are left out: the caller scales by range. Raises ValueError.
    """
    try:
        import pydicom  # for those who have such files
    except ImportError:
        raise ValueError("a DICOM file needs another package: pip install pydicom") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    if _inflated(data) > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
    try:
        header = pydicom.dcmread(BytesIO(data))
        # a value is only read when it is asked for
        has_pixels = any(name in header for name in PIXELS)
        frames = int(header.get("NumberOfFrames") or 1)
        height, width = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    except pydicom.errors.InvalidDicomError:
        raise ValueError("not a DICOM file") from None
    except Exception as error:  # EOFError, ValueError, struct.error, … for damaged files
        raise _damaged(error) from None
    if not has_pixels:
        raise ValueError("a DICOM file without an image")
    if frames > 1:
        raise ValueError(f"a DICOM file of {frames} frames; save one frame a file")
    check_size(width, height)
    try:
        return _pixels(header)
    except (RuntimeError, NotImplementedError) as error:  # nothing installed can decode it, perhaps
        compressed = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
        if not compressed or _has_decoder(compressed):
            raise _damaged(error) from None
        raise ValueError(f"nothing to decode it with: {compressed.name[:45]}") from None
    except Exception as error:
        raise _damaged(error) from None


def _damaged(error: Exception) -> ValueError:
    return ValueError(f"damaged DICOM file ({type(error).__name__})")


def _pixels(header) -> np.ndarray:
    """Of a DICOM data set of one frame. Raises whatever pydicom does."""
    import pydicom

    meaning = header.PhotometricInterpretation
    pixels = pydicom.pixels.pixel_array(header)  # YBR becomes RGB
    if meaning == "PALETTE COLOR":
        pixels = pydicom.pixels.apply_color_lut(pixels, header)
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] != 3):
        raise ValueError(f"pixels of the shape {pixels.shape}")
    if header.get("BitsAllocated") == 1:
        pixels = pixels.astype(np.uint8) * 255
    falls = float(header.get("RescaleSlope") or 1) < 0
    if (meaning == "MONOCHROME1") != falls:  # the highest value is black
        pixels = -pixels if pixels.dtype.kind == "f" else np.invert(pixels)
    return pixels


def _inflated(data: bytes) -> int:
    """How many bytes a DICOM file unpacks to, or a bit over MOST_BYTES; 0: it is not deflated."""
    at = data.find(DEFLATED, 132, 2048)
    if at < 0:
        return 0
    start = 144 + int.from_bytes(data[140:144], "little")  # the group's length stands first in it
    unpacker, length = zlib.decompressobj(-zlib.MAX_WBITS), 0
    rest = data[start:]
    try:
        while rest and length <= MOST_BYTES:
            length += len(unpacker.decompress(rest, 1 << 24))
            rest = unpacker.unconsumed_tail
    except zlib.error:
        return 0  # damaged: pydicom will say so
    return length


def _has_decoder(compression) -> bool:
    from pydicom.pixels import get_decoder

    try:
        return get_decoder(compression).is_available
    except (NotImplementedError, ValueError):
        return False
