"""From a DICOM file to the images that a radiologist's screen would show, one per frame."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGTransferSyntaxes,
    RLELossless,
)

from aiseeme_models.images import dicom_codecs, dicom_policy
from aiseeme_models.images.dicom_display import frame_display, shown_colour, shown_grey, shown_palette
from aiseeme_models.images.picture import (
    MAX_FRAMES,
    MAX_PIXELS,
    ImageFacts,
    Picture,
    Pixels,
    ReadOptions,
    size_findings,
)
from aiseeme_models.images.rejection import ImageRejected, RejectReason

_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MOST_BITS = 64
_GREY = ("MONOCHROME1", "MONOCHROME2")

dicom_codecs.install()
# Its messages quote the values of tags, which may identify a patient.
logging.getLogger("pydicom").propagate = False


def read_header(data: bytes) -> Dataset:
    """The dataset of a DICOM file that carries pixels and can be decoded; a missing file meta is completed.

    Files without preamble or meta are read by force, so the caller has looked at the first bytes.

    Raises:
        ImageRejected: for what can be told from the header; pydicom's own exceptions pass through.
    """
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if not any(keyword in dataset for keyword in _PIXEL_KEYWORDS):
        raise ImageRejected(RejectReason.NO_PIXELS)
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if rows < 1 or columns < 1 or frames < 1:
        raise ImageRejected(RejectReason.DAMAGED)
    if rows * columns > MAX_PIXELS or frames > MAX_FRAMES:
        raise ImageRejected(RejectReason.TOO_LARGE)
    return dataset


def stored_frames(dataset: Dataset) -> Iterator[tuple[NDArray[Any], str]]:
    """The decoded frames of a dataset and the photometric interpretation they came out in.

    Each is ``(H, W)`` or ``(H, W, 3)``, decoded when it is asked for, so that memory does not grow with the frames.

    Raises:
        ImageRejected: no decoder, or pixel data that end too early; other exceptions of decoders pass through.
    """
    if str(dataset.file_meta.TransferSyntaxUID) in dicom_codecs.FRAME_CODECS:
        dicom_codecs.make_native(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_transfer_syntax or syntax.is_private:
        raise ImageRejected(RejectReason.UNSUPPORTED_ENCODING)
    if syntax.is_encapsulated:
        if not get_decoder(syntax).is_available or (syntax == RLELossless and int(dataset.BitsAllocated) == 1):
            raise ImageRejected(RejectReason.UNSUPPORTED_ENCODING)
    elif "PixelData" in dataset and len(dataset.PixelData) < _native_length(dataset):
        raise ImageRejected(RejectReason.TRUNCATED)
    # Overlays may lie in the unused bits of native frames; decoders leave none there.
    correct = syntax not in JPEGTransferSyntaxes
    frames = get_decoder(syntax).iter_array(dataset, raw=False, view_only=True, correct_unused_bits=correct)
    for array, properties in frames:
        yield array, str(properties["photometric_interpretation"])


def dicom_pictures(data: bytes, options: ReadOptions) -> Iterator[Picture]:
    """Every frame of a DICOM file as it is meant to be seen.

    Grey frames go through the grayscale pipeline of PS3.4 N.2; MONOCHROME1 is inverted, so that 0 is always black.
    Colour frames are RGB, whatever they were stored as. Overlays are not drawn. Arrays keep the file's orientation,
    rows first (MONAI's reader transposes by default). Outside the regions of an ultrasound image all is black.

    Raises:
        ImageRejected: for what can be told from the header; pydicom's own exceptions pass through.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns with the values of tags, which may identify a patient
        dataset = read_header(data)
        encoding = encoding_name(dataset.file_meta.TransferSyntaxUID)
        subject = dicom_policy.subject_of(dataset)
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        findings = dicom_policy.findings_of(dataset)
        mask = None
        if dicom_policy.is_ultrasound(dataset):
            mask = dicom_policy.region_mask(dataset, rows, columns)
            findings += () if mask is not None else (RejectReason.ULTRASOUND_TEXT,)
        findings += size_findings(rows, columns)
        bits = int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 0)
        if not 0 <= bits <= _MOST_BITS:
            raise ImageRejected(RejectReason.DAMAGED)
        declared = str(dataset.PhotometricInterpretation)
        facts = ImageFacts(
            modality=dicom_policy.modality_of(dataset),
            rows=rows,
            columns=columns,
            photometric=declared if declared in dicom_policy.PHOTOMETRICS else "OTHER",
            encoding=encoding,
            bits=bits,
        )
        for frame, (stored, photometric) in enumerate(stored_frames(dataset)):
            if stored.dtype.kind == "f" and not np.isfinite(stored).all():
                raise ImageRejected(RejectReason.DAMAGED)
            pixels = _shown(stored, photometric, dataset, frame, options)
            if mask is not None:
                pixels = np.where(mask if pixels.ndim == 2 else mask[..., None], pixels, pixels.dtype.type(0))
            grey = stored.ndim == 2 and photometric in _GREY
            yield Picture(
                frame, pixels, facts, subject, findings, _samples(stored, photometric, mask) if grey else None
            )


def encoding_name(syntax: UID) -> str:
    """The name of a transfer syntax from DICOM's dictionary, never the text of the file."""
    if str(syntax) in dicom_codecs.ENCODING_NAMES:
        return dicom_codecs.ENCODING_NAMES[str(syntax)]
    return syntax.name if syntax.name != str(syntax) and not syntax.is_private else "unknown transfer syntax"


def _shown(stored: NDArray[Any], photometric: str, dataset: Dataset, frame: int, options: ReadOptions) -> Pixels:
    if photometric == "PALETTE COLOR":
        return shown_palette(stored, dataset)
    if stored.ndim == 3:
        return shown_colour(stored, int(dataset.BitsStored))
    if photometric not in _GREY:
        raise ImageRejected(RejectReason.DAMAGED)
    inverted = photometric == "MONOCHROME1"
    return shown_grey(stored, frame_display(dataset, frame), options.window, inverted=inverted)


def _samples(stored: NDArray[Any], photometric: str, mask: NDArray[np.bool_] | None) -> NDArray[Any]:
    """What tells copies of a grey frame, whatever window it is shown with: 8-bit values as a PNG would have them."""
    samples = np.invert(stored) if stored.dtype == np.uint8 and photometric == "MONOCHROME1" else stored
    return samples if mask is None else np.where(mask, samples, samples.dtype.type(0))


def _native_length(dataset: Dataset) -> int:
    """How many bytes native pixel data must have at least."""
    samples = int(dataset.get("SamplesPerPixel") or 1)
    halved = dataset.PhotometricInterpretation == "YBR_FULL_422"  # two pixels share their colour
    frames = int(dataset.get("NumberOfFrames") or 1)
    pixels = int(dataset.Rows) * int(dataset.Columns) * frames
    return math.ceil(pixels * int(dataset.BitsAllocated) * (2 if halved else samples) / 8)
