"""PNG, JPEG and TIFF files as pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from aiseeme_models.images.picture import (
    MAX_FRAMES,
    MAX_PIXELS,
    ImageFacts,
    Picture,
    ReadOptions,
    size_findings,
    stretch,
)
from aiseeme_models.images.rejection import ImageRejected, RejectReason

_FORMATS = ("PNG", "JPEG", "TIFF")
_TIFF_PHOTOMETRIC = 262
_TIFF_WHITE_IS_ZERO = 0
_END_OF_JPEG = b"\xff\xd9"


def jpeg_pictures(data: bytes, options: ReadOptions) -> Iterator[Picture]:
    """The image of a JPEG file.

    Plain files take half the time through libjpeg-turbo directly, to the same values. What needs Pillow's care
    (EXIF orientation, four channels, an end that is missing) goes through `pillow_pictures`.
    """
    import imagecodecs

    if b"Exif\0\0" in data[:65536] or _END_OF_JPEG not in data[-64:]:
        yield from pillow_pictures(data, options)
        return
    if _jpeg_pixels(data) > MAX_PIXELS:
        raise ImageRejected(RejectReason.TOO_LARGE)
    pixels: NDArray[np.uint8] = imagecodecs.jpeg8_decode(data)
    if pixels.dtype != np.uint8 or (pixels.ndim == 3 and pixels.shape[-1] != 3):
        yield from pillow_pictures(data, options)
        return
    yield _picture(0, pixels, "JPEG", None)


def pillow_pictures(data: bytes, options: ReadOptions) -> Iterator[Picture]:
    """The image of a PNG or JPEG file, or every page of a TIFF file.

    EXIF orientation is applied, palettes are expanded, alpha is dropped. A JPEG's preview and the later frames of a
    PNG animation are not images of a patient's own.
    """
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        kind = str(image.format)
        pages = getattr(image, "n_frames", 1) if kind == "TIFF" else 1
        if pages > MAX_FRAMES:
            raise ImageRejected(RejectReason.TOO_LARGE)
        for page in range(pages):
            if pages > 1:
                image.seek(page)
            _check_size(image)
            pixels, samples = _page(image)
            yield _picture(page, pixels, kind, samples)


def _jpeg_pixels(data: bytes) -> int:
    """Rows times columns in the first frame header of a JPEG stream (ITU-T T.81, B.2.2); 0 where there is none.

    Pillow tells it too, but building its header objects takes half as long as decoding a small image.
    """
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[place + 5 : place + 7], "big") * int.from_bytes(
                data[place + 7 : place + 9], "big"
            )
        place += 1 if marker == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 0


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageRejected(RejectReason.TOO_LARGE)


def _page(image: Image.Image) -> tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.generic] | None]:
    """The pixels of the current page, and its decoded values where they are deeper than 8 bits."""
    # Pillow inverts a TIFF whose zero is white up to 8 bits only.
    tags = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO and image.mode.startswith(("I", "F"))
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        values = np.asarray(upright)
        if not np.isfinite(values).all():
            raise ImageRejected(RejectReason.DAMAGED)
        deep = stretch(values, float(values.min()), float(values.max()))
        samples = values.astype(np.uint16) if values.dtype.kind in "iu" and _fits(values) else values
        return (np.float32(1) - deep if white_is_zero else deep), samples
    grey = upright.mode in ("1", "L", "LA", "La")
    return np.asarray(upright.convert("L" if grey else "RGB")), None


def _fits(values: NDArray[np.generic]) -> bool:
    return bool(values.size) and int(values.min()) >= 0 and int(values.max()) < 2**16


def _picture(
    frame: int, pixels: NDArray[np.uint8] | NDArray[np.float32], kind: str, samples: NDArray[np.generic] | None
) -> Picture:
    rows, columns = pixels.shape[:2]
    facts = ImageFacts(
        modality="",
        rows=rows,
        columns=columns,
        photometric="RGB" if pixels.ndim == 3 else "MONOCHROME2",
        encoding=kind,
        bits=8 if samples is None else 8 * samples.itemsize,
    )
    return Picture(frame, pixels, facts, findings=size_findings(rows, columns), samples=samples)
