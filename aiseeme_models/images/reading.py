"""From a file to its images, whatever the format, or one reason why not."""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.images.nifti import GZIP, is_plain_nifti
from aiseeme_models.images.picture import Picture, ReadOptions
from aiseeme_models.images.rejection import ImageRejected, RejectReason

__all__ = ["MAX_BYTES", "ImageRejected", "RejectReason", "read_bytes", "read_picture", "read_pictures", "read_pixels"]

# A file is held in memory while it is decoded.
MAX_BYTES = 2**30

_HEAD = 512


@dataclass(frozen=True)
class ImageFormat:
    """A format that is told by the content of a file, never by its name.

    Attributes:
        recognises: whether a file that starts with these bytes (512 where there are so many) is of this format.
        module: where the reader is; imported when the first such file is met.
        reader: its name: takes the file's bytes and `ReadOptions`, and yields `Picture`.
    """

    recognises: Callable[[bytes], bool]
    module: str
    reader: str


def _has_dicom_prefix(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def looks_like_bare_dicom(head: bytes) -> bool:
    """Whether a file that starts with ``head`` is DICOM without its preamble.

    It must start with an element of group 0002, 0004 or 0008 of either byte order, with a plausible length.
    """
    if len(head) < 16:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    for order in "<>" if explicit else "<":
        group, element, length = struct.unpack(f"{order}HHI", head[:8])
        if group in (0x0002, 0x0004, 0x0008) and element <= 0x0100 and (explicit or length < 256):
            return True
    return False


def _starts_with(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magic)


_HERE = "aiseeme_models.images"
# The first that recognises a file reads it. A DICOM file's preamble may be a TIFF header, so DICOM comes first;
# DICOM without a preamble is the vaguest and comes last.
FORMATS = (
    ImageFormat(_has_dicom_prefix, f"{_HERE}.dicom", "dicom_pictures"),
    ImageFormat(_starts_with(b"\xff\xd8\xff"), f"{_HERE}.pillow_files", "jpeg_pictures"),
    ImageFormat(_starts_with(b"\x89PNG\r\n\x1a\n", b"II*\x00", b"MM\x00*"), f"{_HERE}.pillow_files", "pillow_pictures"),
    ImageFormat(is_plain_nifti, f"{_HERE}.nifti", "nifti_pictures"),
    ImageFormat(_starts_with(GZIP), f"{_HERE}.nifti", "nifti_gz_pictures"),
    ImageFormat(_starts_with(b"PK\x03\x04"), f"{_HERE}.patch_sets", "patch_pictures"),
    ImageFormat(looks_like_bare_dicom, f"{_HERE}.dicom", "dicom_pictures"),
)


def read_bytes(path: Path) -> bytes:
    """The content of a file of at most `MAX_BYTES`.

    Raises:
        ImageRejected: it cannot be read, is empty or is too large.
    """
    try:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise ImageRejected(RejectReason.TOO_LARGE)
            data = file.readall()
    except OSError as error:
        raise ImageRejected(RejectReason.UNREADABLE) from error
    except MemoryError as error:
        raise ImageRejected(RejectReason.TOO_LARGE) from error
    if not data:
        raise ImageRejected(RejectReason.EMPTY)
    return data


def read_pictures(data: bytes, options: ReadOptions = ReadOptions()) -> Iterator[Picture]:
    """The images in the content of a file, decoded one after the other as they are asked for.

    Raises:
        ImageRejected: the file cannot be used (it may be raised after some images: then none of them counts);
            nothing else is raised whatever the file holds.
    """
    found = next((kind for kind in FORMATS if kind.recognises(data[:_HEAD])), None)
    if found is None:
        raise ImageRejected(RejectReason.NOT_AN_IMAGE)
    try:
        reader = getattr(importlib.import_module(found.module), found.reader)
        yield from reader(data, options)
    except ImageRejected:
        raise
    except MemoryError as error:
        raise ImageRejected(RejectReason.TOO_LARGE) from error
    except Exception as error:  # decoders fail with any exception on a damaged file: to the caller it is one reason
        raise ImageRejected(_reason_of(error)) from error


def read_pixels(path: Path, window: tuple[float, float] | None = None, frame: int = 0) -> NDArray[np.float32]:
    """One image of a file, as it is meant to be seen, whatever a policy might say of it.

    PNG, JPEG and TIFF: EXIF orientation applied, palettes expanded, alpha dropped. DICOM: see
    `aiseeme_models.images.dicom.dicom_pictures`. Values deeper than 8 bits that come without a declared window are
    stretched from the smallest to the largest value present (few of them fill their 16 bits).

    Args:
        path: any file; its format is told by its content, never by its name.
        window: lowest and highest value shown, in modality units (HU), in place of a grey file's own window.
        frame: which image of the file.

    Returns:
        ``(H, W)`` or ``(H, W, 3)`` float32 in [0, 1]; 0 is black.

    Raises:
        ImageRejected: the file cannot be used, or has no such frame; nothing else is raised whatever the file holds.
    """
    return read_picture(path, ReadOptions(window=window), frame).unit


def read_picture(path: Path, options: ReadOptions, frame: int) -> Picture:
    """One image of a file.

    Raises:
        ImageRejected: the file cannot be used, or has no such frame.
    """
    picture = next(islice(read_pictures(read_bytes(path), options), frame, None), None)
    if picture is None:
        raise ImageRejected(RejectReason.NO_PIXELS)
    return picture


def _reason_of(error: Exception) -> RejectReason:
    """The reason behind an exception of a decoder."""
    name = type(error).__name__
    if name.startswith("DecompressionBomb"):
        return RejectReason.TOO_LARGE
    if isinstance(error, EOFError) or "truncated" in str(error):
        return RejectReason.TRUNCATED
    if isinstance(error, NotImplementedError):
        return RejectReason.UNSUPPORTED_ENCODING
    if isinstance(error, PermissionError | FileNotFoundError):
        return RejectReason.UNREADABLE
    return RejectReason.DAMAGED
