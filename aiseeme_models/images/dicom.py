"""From a single-frame DICOM file to the image that a radiologist's screen would show."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from aiseeme_models.images.rejection import ImageRejected, RejectReason

_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DISPLAY_KEYWORDS = (
    "ModalityLUTSequence",
    "VOILUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PixelPaddingValue",
)
_GREY = ("MONOCHROME1", "MONOCHROME2")


def dicom_pixels(path: Path, *, max_pixels: int, window: tuple[float, float] | None = None) -> NDArray[np.float32]:
    """The one frame of a DICOM file.

    Grey images go through the grayscale pipeline of DICOM PS3.4 N.2: modality LUT or rescale, then VOI LUT or window
    (the first one), and MONOCHROME1 is inverted, so that 0 is always black. Colour images are RGB, whatever they were
    stored as. The array keeps the file's orientation, rows first (MONAI's reader transposes by default).

    Args:
        path: the file; without a preamble it is read by force, so the caller has looked at its first bytes.
        max_pixels: most rows times columns.
        window: lowest and highest value shown, in modality units, in place of a grey file's own VOI LUT or window.

    Returns:
        ``(H, W)`` or ``(H, W, 3)`` float32 in [0, 1].

    Raises:
        ImageRejected: for what can be told from the header; pydicom's own exceptions pass through.
    """
    dataset = pydicom.dcmread(path, force=True)
    _check(dataset, max_pixels)
    try:
        stored = pixel_array(dataset)
    except RuntimeError as error:
        # pydicom ends in RuntimeError when a plug-in is missing as well as when the plug-ins there are all failed.
        raise ImageRejected(RejectReason.UNSUPPORTED_ENCODING) from error
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        return _palette(stored, dataset)
    if stored.ndim == 3:
        depth = 8 * stored.itemsize if dataset.BitsAllocated <= 8 else int(dataset.BitsStored)
        return _unit(stored[..., :3], 0, 2**depth - 1)
    if photometric not in _GREY:
        raise ImageRejected(RejectReason.DAMAGED)
    shown = _shown(stored, dataset, window)
    return np.float32(1) - shown if photometric == "MONOCHROME1" else shown


def windowed(values: NDArray[np.float32], center: float, width: float, function: str = "LINEAR") -> NDArray[np.float32]:
    """A VOI window of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3 with the output range [0, 1].

    Args:
        values: ``(H, W)`` float32 in modality units.
        center: Window Center.
        width: Window Width, at least 1 for LINEAR and above 0 otherwise.
        function: LINEAR, LINEAR_EXACT or SIGMOID.
    """
    if function == "SIGMOID":
        curve: NDArray[np.float32] = 1 / (1 + np.exp(-4 * (values - np.float32(center)) / np.float32(width)))
        return curve
    if function == "LINEAR":
        center, width = (center - 0.5, max(width - 1, 1e-6))  # a width of 1 is a threshold
    return _unit(values, center - width / 2, center + width / 2)


def _check(dataset: Dataset, max_pixels: int) -> None:
    """Reject what the header already tells, complete a header that lacks its file meta, drop empty display tags."""
    if not any(keyword in dataset for keyword in _PIXEL_KEYWORDS):
        raise ImageRejected(RejectReason.NO_PIXELS)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise ImageRejected(RejectReason.MULTI_FRAME)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > max_pixels:
        raise ImageRejected(RejectReason.TOO_LARGE)
    for keyword in _DISPLAY_KEYWORDS:
        if keyword in dataset and _is_empty(dataset[keyword]):
            del dataset[keyword]
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_transfer_syntax or syntax.is_private:
        raise ImageRejected(RejectReason.UNSUPPORTED_ENCODING)
    if syntax.is_encapsulated:
        if not get_decoder(syntax).is_available:
            raise ImageRejected(RejectReason.UNSUPPORTED_ENCODING)
    elif "PixelData" in dataset:
        samples = int(dataset.get("SamplesPerPixel") or 1)
        halved = dataset.PhotometricInterpretation == "YBR_FULL_422"  # two pixels share their colour
        bits = rows * columns * int(dataset.BitsAllocated) * (2 if halved else samples)
        if len(dataset.PixelData) < math.ceil(bits / 8):
            raise ImageRejected(RejectReason.TRUNCATED)


def _is_empty(element: DataElement) -> bool:
    """Whether a display tag says nothing: no value, or a LUT sequence without a table."""
    if element.VR == "SQ":
        return not element.value or not element.value[0].get("LUTDescriptor") or "LUTData" not in element.value[0]
    return element.is_empty


def _shown(stored: NDArray[np.generic], dataset: Dataset, window: tuple[float, float] | None) -> NDArray[np.float32]:
    """Grey stored values ``(H, W)`` as shown by a window, in [0, 1], before any inversion."""
    values = apply_modality_lut(stored, dataset)
    if window is not None:
        return _unit(values, *window)
    luts = dataset.get("VOILUTSequence")
    if luts and np.issubdtype(values.dtype, np.integer):
        return _unit(apply_voi(values, dataset), 0, 2 ** int(luts[0].LUTDescriptor[2]) - 1)
    own = _own_window(dataset)
    if own is not None:
        return windowed(values.astype(np.float32), *own)
    rescaled = "RescaleSlope" in dataset or "ModalityLUTSequence" in dataset
    if stored.dtype == np.uint8 and not rescaled:
        return _unit(values, 0, 2 ** int(dataset.BitsStored) - 1)
    # Padding lies outside the image and would stretch the range of values for nothing (PS3.3 C.7.5.1.1.2).
    inside = values[stored != dataset.PixelPaddingValue] if "PixelPaddingValue" in dataset else values
    if inside.size == 0 or inside.max() <= inside.min():
        return np.zeros(values.shape, np.float32)
    return _unit(values, float(inside.min()), float(inside.max()))


def _own_window(dataset: Dataset) -> tuple[float, float, str] | None:
    """The file's first window as centre, width and function, or None where there is none that can be used."""
    center, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if center is None or width is None:
        return None
    center = center if isinstance(center, int | float) else (list(center) or [math.nan])[0]
    width = width if isinstance(width, int | float) else (list(width) or [math.nan])[0]
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    smallest = 1 if function == "LINEAR" else 1e-6
    if not (math.isfinite(float(center)) and math.isfinite(float(width)) and float(width) >= smallest):
        return None
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    return float(center), float(width), function


def _palette(stored: NDArray[np.generic], dataset: Dataset) -> NDArray[np.float32]:
    """Palette indices ``(H, W)`` as RGB ``(H, W, 3)``."""
    colours = apply_color_lut(stored, dataset)[..., :3]
    bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    # Some writers declare 16 bits and store 8: the image would be black.
    depth = 8 if bits <= 8 or colours.max() < 256 else 16
    return _unit(colours, 0, 2**depth - 1)


def _unit(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.float32]:
    """``values`` with ``low`` moved to 0 and ``high`` to 1, clipped to [0, 1]."""
    moved: NDArray[np.float32] = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return moved.clip(0, 1)
