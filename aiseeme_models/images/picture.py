"""One image as it comes out of a file: its pixels as they are meant to be seen, and what the header says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import xxhash
from numpy.typing import NDArray

from aiseeme_models.images.rejection import RejectReason

Pixels = NDArray[np.uint8] | NDArray[np.float32]

MIN_SIDE = 16
# Pillow only warns at this many pixels and fails at twice as many; here it is an error, for every format.
MAX_PIXELS = 89_478_485
MAX_FRAMES = 20_000


@dataclass(frozen=True)
class ReadOptions:
    """What a reader must know of the pipeline that its images are for.

    Attributes:
        window: lowest and highest value shown of grey images in modality units (HU), in place of the file's own.
        orthogonal: 3-D patches become their three central planes as channels, not the axial one alone.
    """

    window: tuple[float, float] | None = None
    orthogonal: bool = False


@dataclass(frozen=True)
class ImageFacts:
    """What is kept of a header: fixed words and numbers, nothing that a hospital wrote as free text.

    Attributes:
        modality: a DICOM modality, or "" where there is none.
        rows: of the stored image.
        columns: of the stored image.
        photometric: DICOM photometric interpretation, or ``RGB`` / ``MONOCHROME2`` of other formats.
        encoding: name of the transfer syntax, or the format.
        bits: stored bits per sample.
    """

    modality: str
    rows: int
    columns: int
    photometric: str
    encoding: str
    bits: int


@dataclass(frozen=True)
class Subject:
    """Whose image it is, as the file says. Raw ids: they never leave the process that hashes them.

    Attributes:
        patient: PatientID.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
    """

    patient: str = ""
    study: str = ""
    series: str = ""


@dataclass(frozen=True)
class Picture:
    """One image of a file.

    Attributes:
        frame: its number in the file, from 0.
        pixels: ``(H, W)`` or ``(H, W, 3)``, 0 is black: uint8, or float32 in [0, 1] for what is deeper than 8 bits.
        facts: what the header says.
        subject: whose it is.
        findings: what a policy may object to.
        samples: what tells copies, where the pixels depend on a window or a view: the decoded values.
    """

    frame: int
    pixels: Pixels
    facts: ImageFacts
    subject: Subject = Subject()
    findings: tuple[RejectReason, ...] = ()
    samples: NDArray[np.generic] | None = field(default=None, repr=False)

    @property
    def unit(self) -> NDArray[np.float32]:
        """The pixels as float32 in [0, 1]."""
        return as_unit(self.pixels)

    @property
    def pixel_hash(self) -> str:
        """32 hex digits (XXH3-128) that equal images share across file formats.

        Of 8-bit images the shown values are hashed, so that a DICOM and the PNG made of it agree; of deeper ones the
        decoded values, since no two programs window alike. It tells accidental copies; it is no signature.
        """
        array = self.pixels if self.samples is None else self.samples
        if array.dtype.kind in "iu":
            signed = array.dtype.kind == "i" and bool(array.size) and int(array.min()) < 0
            array = np.ascontiguousarray(array, f"<{'i' if signed else 'u'}{array.itemsize}")
        inverted = array.itemsize > 1 and self.facts.photometric == "MONOCHROME1"
        digest = xxhash.xxh3_128(f"{array.shape} {array.dtype.str} {inverted}".encode())
        digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def as_unit(pixels: Pixels) -> NDArray[np.float32]:
    """uint8 divided by 255, float32 as it is."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(pixels, np.float32)


def stretch(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.float32]:
    """``values`` as float32 with ``low`` moved to 0 and ``high`` to 1, clipped to [0, 1]; all 0 if ``high <= low``."""
    if not high > low:
        return np.zeros(values.shape, np.float32)
    # One pass makes the copy that the others work on; on 5 million pixels every further pass costs a millisecond.
    moved: NDArray[np.float32] = np.subtract(values, np.float32(low), dtype=np.float32)
    moved *= np.float32(1 / (high - low))
    np.clip(moved, 0, 1, out=moved)
    return moved


def size_findings(rows: int, columns: int) -> tuple[RejectReason, ...]:
    """TOO_SMALL, or nothing."""
    return (RejectReason.TOO_SMALL,) if min(rows, columns) < MIN_SIDE else ()
