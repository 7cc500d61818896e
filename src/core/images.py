"""Reading images and masks of any kind, and the two ways of making them square. Everything after this module sees plain numpy arrays.

Pixels are taken as stored: an EXIF orientation is ignored, since contests count run lengths on the stored pixels.
"""
from __future__ import annotations

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

cv2.setNumThreads(0)  # the work is spread over processes: threads below them only get in each other's way

DICOM_SUFFIXES = {".dcm", ".dicom"}
DEEP = {"I", "I;16", "I;16B", "I;16L", "F"}  # Pillow's modes of more than 8 bits
GREY_ZONE = 0.05  # a mask may have this share of its pixels in the middle half of its range: blurred edges, JPEG ringing
MASK_JPEG_LEVEL = 127


def read_image(path: Path, channels: int = 1) -> np.ndarray:
    """uint8 (H,W) for one channel, (H,W,3) RGB for three.

    More than 8 bits are scaled by the image's own range, its minimum to 0 and its maximum to 255 (a constant image becomes 0): 12-bit data in a
    16-bit file would otherwise be black. Transparency is ignored. Raises ValueError with a short reason for a file that cannot be read in full.
    """
    pixels, _, _ = _decode(path)
    if pixels.dtype != np.uint8:
        finite = pixels[np.isfinite(pixels)]
        low, high = (finite.min(), finite.max()) if len(finite) else (0, 0)
        scale = 255.0 / (float(high) - float(low)) if high > low else 0.0
        pixels = np.nan_to_num((pixels.astype(np.float32) - np.float32(low)) * np.float32(scale), posinf=255, neginf=0).round().clip(0, 255).astype(np.uint8)
    if channels == 3:
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def read_mask(path: Path) -> tuple[np.ndarray, bool]:
    """(mask (H,W) bool, whether the file really is a mask of two values).

    - A colour counts by its brightest channel, so a red lesion on black is a lesion.
    - Alpha is ignored (BUSI has masks with an opaque one), unless the colours are constant and only alpha carries a shape.
    - One value: lesion everywhere if it is not 0. Two values: the higher one is the lesion, be it 1 or 255.
    - More values: cut in the middle of the range (a JPEG: at 127, its noise has no meaningful range), and it still passes as two-valued when the
      pixels in the middle half of the range are at most 5 % of all and nowhere fill 5×5 pixels, as blurred edges and JPEG noise do not.
      A photograph or a map of several classes does not pass.
    Raises ValueError like read_image.
    """
    pixels, alpha, lossy = _decode(path)
    plane = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    if alpha is not None and alpha.min() != alpha.max() and pixels.min() == pixels.max():
        plane = alpha
    low, high = plane.min(), plane.max()
    if low == high and not lossy:
        one_colour = pixels.ndim == 2 or bool((pixels == pixels[:1, :1]).all())  # red beside green has the same brightest channel
        return np.full(plane.shape, bool(high)), one_colour
    if not lossy and not ((plane != low) & (plane != high)).any():
        return plane == high, True
    if lossy:
        low, high = 0, 255
    low, span = float(low), float(high) - float(low)
    middle = (plane > low + span / 4) & (plane < low + span * 3 / 4)
    is_area = bool(cv2.erode(middle.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0).any())
    return plane > (MASK_JPEG_LEVEL if lossy else low + span / 2), bool(middle.mean() <= GREY_ZONE) and not is_area


def _decode(path: Path) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """(pixels (H,W) or (H,W,3) RGB of 8 or more bits, alpha (H,W) or None, whether compressed with loss)."""
    try:
        data = Path(path).read_bytes()  # not cv2.imread: it cannot open non-ASCII names on Windows
    except OSError as error:
        raise ValueError(error.strerror or "cannot be opened") from None
    if not data:
        raise ValueError("the file is empty")
    if Path(path).suffix.lower() in DICOM_SUFFIXES:
        return _decode_dicom(data), None, False
    try:
        with Image.open(BytesIO(data)) as image:  # Pillow, because cv2 returns truncated files half grey without an error
            lossy = image.format == "JPEG"
            deep_colour = image.mode in ("RGB", "RGBA", "LA") and _bits(data, image) > 8
            if image.mode == "P":
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            elif image.mode not in ("1", "L", "LA", "RGB", "RGBA", *DEEP):
                image = image.convert("RGB")
            image.load()
            pixels = np.asarray(image)
            if image.mode == "1":
                pixels = pixels.astype(np.uint8) * 255
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError, … for damaged files
        name = str(error).split("<")[0].strip() or type(error).__name__
        raise ValueError("not an image" if "cannot identify" in name else name) from None
    if deep_colour:  # Pillow keeps only the upper byte of 16-bit colours
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is not None and decoded.dtype == np.uint16 and decoded.ndim == 3:
            pixels = decoded[..., [2, 1, 0, *range(3, decoded.shape[2])]]
    if pixels.size == 0:
        raise ValueError("the image has no pixels")
    if pixels.ndim == 2:
        return pixels, None, lossy
    alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else None
    colour = pixels[..., 0] if pixels.shape[2] == 2 else np.ascontiguousarray(pixels[..., :3])
    return colour, alpha, lossy


def _decode_dicom(data: bytes) -> np.ndarray:
    """The one frame of a DICOM file, (H,W) or (H,W,3) RGB, bright where it is meant to be bright. Windows and rescaling are left out: the caller scales by range."""
    try:
        import pydicom  # for those who have such files
    except ImportError:
        raise ValueError("a DICOM file needs another package: pip install pydicom") from None
    try:
        header = pydicom.dcmread(BytesIO(data))
    except Exception as error:  # pydicom raises its own, EOFError, ValueError, struct.error, … for damaged files
        raise ValueError("not a DICOM file" if isinstance(error, pydicom.errors.InvalidDicomError) else f"damaged DICOM file ({type(error).__name__})") from None
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ValueError("a DICOM file without an image")
    if (frames := int(header.get("NumberOfFrames") or 1)) > 1:
        raise ValueError(f"a DICOM file of {frames} frames; save one frame a file")
    try:
        meaning = header.PhotometricInterpretation
        pixels = pydicom.pixels.pixel_array(header)  # YBR becomes RGB
        if meaning == "PALETTE COLOR":
            pixels = pydicom.pixels.apply_color_lut(pixels, header)
    except Exception as error:  # as above, and RuntimeError or NotImplementedError for a compression that nothing installed can decode
        compressed = header.file_meta.get("TransferSyntaxUID")
        missing = isinstance(error, (RuntimeError, NotImplementedError)) and not _has_decoder(compressed)
        raise ValueError(f"nothing to decode it with: {compressed.name[:45]}" if missing else f"damaged DICOM file ({type(error).__name__})") from None
    if header.get("BitsAllocated") == 1:
        pixels = pixels.astype(np.uint8) * 255
    if (meaning == "MONOCHROME1") != (float(header.get("RescaleSlope") or 1) < 0):  # the highest value is black
        pixels = -pixels if pixels.dtype.kind == "f" else np.invert(pixels)
    return pixels


def _has_decoder(compression) -> bool:
    from pydicom.pixels import get_decoder

    try:
        return get_decoder(compression).is_available
    except NotImplementedError:
        return False


def _bits(data: bytes, image: Image.Image) -> int:
    if image.format == "PNG":
        return data[24]  # the bit depth's place in the header, IHDR
    bits = image.tag_v2.get(258, (8,)) if image.format == "TIFF" else (8,)
    return max(bits if isinstance(bits, tuple) else (bits,))


# ------------------------------------------------------------------------------------------------------------------- making it square


def content(height: int, width: int, size: int, mode: str) -> tuple[int, int, int, int]:
    """Where an image of height×width lies in its size×size square: top, left, height, width."""
    if mode == "stretch":
        return 0, 0, size, size
    scale = size / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    return (size - inner_height) // 2, (size - inner_width) // 2, inner_height, inner_width


def resize(image: np.ndarray, size: int, mode: str = "stretch", is_mask: bool = False) -> np.ndarray:
    """image (H,W) or (H,W,3) uint8, or a mask (H,W) of two values -> size×size, uint8; masks hold 0 and 1. Letterbox bars are black."""
    top, left, height, width = content(*image.shape[:2], size, mode)
    # a mask is resized as the share of lesion in a pixel and cut at one half: nearest neighbours would shift its edges
    source = (image > 0).astype(np.uint8) * 255 if is_mask else np.ascontiguousarray(image, dtype=np.uint8)
    inner = scaled(source, height, width)
    if is_mask:
        inner = (inner > 127).astype(np.uint8)
    if (height, width) == (size, size):
        return inner
    square = np.zeros((size, size, *image.shape[2:]), np.uint8)
    square[top : top + height, left : left + width] = inner
    return square


def restore(prob: np.ndarray, height: int, width: int, mode: str = "stretch") -> np.ndarray:
    """Undo `resize` for a map of probabilities (S,S) of an image that was height×width: the whole image, stretched to S×S, float32.

    This is the form in which Predictions hold masks whatever the experiment's `resize`, so that they can be averaged.
    """
    size = len(prob)
    top, left, inner_height, inner_width = content(height, width, size, mode)
    return scaled(np.asarray(prob, np.float32)[top : top + inner_height, left : left + inner_width], size, size)


def scaled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """image -> height×width: averaged over areas along an axis that shrinks, linear along one that grows."""
    small = min(image.shape[0], height), min(image.shape[1], width)
    if image.shape[:2] != small:
        image = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
    if small != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image
