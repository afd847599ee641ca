"""From a file to pixels: one upright float image, whatever the format, or one reason why not."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from aiseeme_models.images.rejection import ImageRejected, RejectReason

__all__ = ["MAX_PIXELS", "MIN_SIDE", "ImageRejected", "RejectReason", "read_pixels"]

MIN_SIDE = 16
# Pillow only warns at this many pixels and fails at twice as many; here it is an error, for DICOM files too.
MAX_PIXELS = 89_478_485

_PILLOW_FORMATS = ("PNG", "JPEG", "TIFF")
_PILLOW_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")
_TIFF_PHOTOMETRIC = 262
_TIFF_WHITE_IS_ZERO = 0


def read_pixels(path: Path, window: tuple[float, float] | None = None) -> NDArray[np.float32]:
    """The image in ``path`` as it is meant to be seen.

    PNG, JPEG and TIFF: EXIF orientation applied, palettes expanded, alpha dropped; 8-bit values are divided by 255.
    DICOM: see `aiseeme_models.images.dicom.dicom_pixels`. Values deeper than 8 bits that come without a declared
    window are stretched from the smallest to the largest value present (few of them fill their 16 bits).

    Args:
        path: any file; its format is told by its content, never by its name.
        window: lowest and highest value shown, in modality units (HU), in place of a grey DICOM file's own window.

    Returns:
        ``(H, W)`` or ``(H, W, 3)`` float32 in [0, 1], at least `MIN_SIDE` on each side; 0 is black.

    Raises:
        ImageRejected: the file cannot be used; nothing else is raised whatever the file holds.
    """
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise ImageRejected(RejectReason.UNREADABLE) from error
    if not head:
        raise ImageRejected(RejectReason.EMPTY)
    try:
        if looks_like_dicom(head):
            # pydicom is imported only by sites that hold DICOM files.
            from aiseeme_models.images.dicom import dicom_pixels

            pixels = dicom_pixels(path, max_pixels=MAX_PIXELS, window=window)
        elif head.startswith(_PILLOW_MAGIC):
            pixels = _pillow_pixels(path)
        else:
            raise ImageRejected(RejectReason.NOT_AN_IMAGE)
    except ImageRejected:
        raise
    except MemoryError as error:
        raise ImageRejected(RejectReason.TOO_LARGE) from error
    except Exception as error:  # decoders fail with any exception on a damaged file: to the caller it is one reason
        raise ImageRejected(_reason_of(error)) from error
    if min(pixels.shape[:2]) < MIN_SIDE:
        raise ImageRejected(RejectReason.TOO_SMALL)
    if not np.isfinite(pixels).all():
        raise ImageRejected(RejectReason.DAMAGED)
    return np.ascontiguousarray(pixels, dtype=np.float32)


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that starts with ``head`` (at least 132 bytes) is DICOM, with or without its preamble.

    Files without preamble must start with an element of group 0002 or 0008 with a plausible length.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16:
        return False
    group, element, length = struct.unpack("<HHI", head[:8])
    if group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return bool(explicit or length < 256)


def stretch(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """``values`` moved and scaled so that they span [0, 1]; a constant image becomes 0."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros_like(values)
    return (values - np.float32(low)) / np.float32(high - low)


def _pillow_pixels(path: Path) -> NDArray[np.float32]:
    with Image.open(path, formats=_PILLOW_FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageRejected(RejectReason.TOO_LARGE)
        if min(image.size) < MIN_SIDE:
            raise ImageRejected(RejectReason.TOO_SMALL)
        # Only TIFF pages are several images: a camera's JPEG may carry a preview, a PNG an animation.
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise ImageRejected(RejectReason.MULTI_FRAME)
        # Pillow inverts a TIFF whose zero is white up to 8 bits only.
        tags = getattr(image, "tag_v2", {})
        white_is_zero = tags.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO and image.mode.startswith(("I", "F"))
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        deep = stretch(np.asarray(upright, dtype=np.float32))
        return np.float32(1) - deep if white_is_zero else deep
    grey = upright.mode in ("1", "L", "LA", "La")
    flat = upright.convert("L" if grey else "RGB")
    return np.asarray(flat, dtype=np.float32) / np.float32(255)


def _reason_of(error: Exception) -> RejectReason:
    """The reason behind an exception of a decoder."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return RejectReason.TOO_LARGE
    if isinstance(error, EOFError) or "truncated" in str(error):
        return RejectReason.TRUNCATED
    if isinstance(error, NotImplementedError):
        return RejectReason.UNSUPPORTED_ENCODING
    if isinstance(error, PermissionError | FileNotFoundError):
        return RejectReason.UNREADABLE
    return RejectReason.DAMAGED
