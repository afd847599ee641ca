"""From the values that a DICOM frame stores to those that a screen shows (PS3.4 N.2, PS3.3 C.11)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi

from aiseeme_models.images.picture import Pixels, stretch

_MODALITY_KEYWORDS = ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept")
_VOI_KEYWORDS = ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")
_OTHER_KEYWORDS = ("BitsStored", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation")
# Where enhanced (multi-frame) objects keep the same attributes, per frame or shared by all.
_FUNCTIONAL_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")


def frame_display(dataset: Dataset, frame: int) -> Dataset:
    """The display attributes that hold for one frame: its own before shared ones before the object's.

    Attributes that are there without saying anything (no value, a LUT without a table) are left out.
    """
    display = Dataset()
    if hasattr(dataset, "file_meta"):
        display.file_meta = dataset.file_meta
    for source in frame_sources(dataset, frame, _FUNCTIONAL_GROUPS):
        for keyword in (*_MODALITY_KEYWORDS, *_VOI_KEYWORDS, *_OTHER_KEYWORDS):
            if keyword in source and not _is_empty(source[keyword]):
                display[keyword] = source[keyword]
    return display


def frame_sources(dataset: Dataset, frame: int, names: Sequence[str]) -> list[Dataset]:
    """Where attributes of a frame may stand: the object, groups that all frames share, the frame's own; later ones win.

    Args:
        dataset: an object of one frame or many.
        frame: its number.
        names: sequences of the functional groups (PS3.3 C.7.6.16) that hold the attributes.
    """
    sources = [dataset]
    shared, own = dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")
    for groups in ([shared[0]] if shared else []) + ([own[frame]] if own and frame < len(own) else []):
        sources += [groups[name][0] for name in names if groups.get(name)]
    return sources


def shown_grey(stored: NDArray[Any], display: Dataset, window: tuple[float, float] | None, *, inverted: bool) -> Pixels:
    """A grey frame as shown: modality LUT or rescale, then VOI LUT or the first window, then the inversion.

    Args:
        stored: ``(H, W)`` stored values.
        display: see `frame_display`.
        window: lowest and highest value shown, in modality units, in place of the file's own VOI LUT or window.
        inverted: MONOCHROME1.

    Returns:
        ``(H, W)`` uint8 where 8-bit values are shown as they are, else float32 in [0, 1]; 0 is black.
    """
    plain = not any(keyword in display for keyword in (*_MODALITY_KEYWORDS, *_VOI_KEYWORDS[:3]))
    bits = int(display.get("BitsStored") or 8 * stored.itemsize)
    if plain and window is None and stored.dtype == np.uint8 and bits == 8:
        return np.invert(stored) if inverted else stored
    if plain and window is None and stored.dtype == np.uint8:
        shown = stretch(stored, 0, 2**bits - 1)
    else:
        shown = _windowed(stored, display, window)
    return np.subtract(np.float32(1), shown, out=shown) if inverted else shown


def windowed(values: NDArray[Any], center: float, width: float, function: str = "LINEAR") -> NDArray[np.float32]:
    """A VOI window of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3 with the output range [0, 1].

    Args:
        values: in modality units.
        center: Window Center.
        width: Window Width, at least 1 for LINEAR and above 0 otherwise.
        function: LINEAR, LINEAR_EXACT or SIGMOID.
    """
    if function == "SIGMOID":
        argument = -4 * (values.astype(np.float64) - center) / width
        curve: NDArray[np.float32] = (1 / (1 + np.exp(np.clip(argument, -500, 500)))).astype(np.float32)
        return curve
    return stretch(values, *_linear_range(center, width, function))


def _linear_range(center: float, width: float, function: str) -> tuple[float, float]:
    """Lowest and highest value that a LINEAR or LINEAR_EXACT window shows."""
    if function == "LINEAR":
        center, width = (center - 0.5, max(width - 1, 1e-6))  # a width of 1 is a threshold
    return center - width / 2, center + width / 2


def shown_palette(stored: NDArray[Any], dataset: Dataset) -> Pixels:
    """Palette indices ``(H, W)`` as RGB ``(H, W, 3)``: uint8 where the palette holds 8 bits, else float32."""
    colours = apply_color_lut(stored, dataset)[..., :3]
    bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    # Some writers declare 16 bits and store 8: the image would be black.
    if bits <= 8 or colours.max() < 256:
        return colours.astype(np.uint8)
    return stretch(colours, 0, 2**16 - 1)


def shown_colour(stored: NDArray[Any], bits_stored: int) -> Pixels:
    """``(H, W, 3)`` RGB: 8-bit samples as they are, deeper ones as float32."""
    colours = stored[..., :3]
    return colours if colours.dtype == np.uint8 else stretch(colours, 0, 2**bits_stored - 1)


def modality_values(stored: NDArray[Any], display: Dataset) -> NDArray[Any]:
    """Stored values in modality units (HU for CT): by table, or by slope and intercept as float32.

    Without any of them the stored values themselves come back, in their own type.
    """
    if "ModalityLUTSequence" in display:
        table: NDArray[Any] = apply_modality_lut(stored, display)
        return table
    slope, intercept = _rescale(display)
    if (slope, intercept) == (1.0, 0.0):
        return stored
    values = stored.astype(np.float32)
    values *= np.float32(slope)
    values += np.float32(intercept)
    return values


def _rescale(display: Dataset) -> tuple[float, float]:
    """Slope and intercept; what is not there changes nothing."""
    slope, intercept = (_number(display.get(name)) for name in ("RescaleSlope", "RescaleIntercept"))
    return (1.0 if slope is None else slope), (0.0 if intercept is None else intercept)


def _windowed(stored: NDArray[Any], display: Dataset, window: tuple[float, float] | None) -> NDArray[np.float32]:
    luts = display.get("VOILUTSequence")
    own = _own_window(display)
    if window is None and not luts and own is not None and own[2] != "SIGMOID" and "ModalityLUTSequence" not in display:
        return _linear_in_one_step(stored, display, own)
    values = modality_values(stored, display)
    if window is not None:
        return stretch(values, *window)
    if luts and np.issubdtype(stored.dtype, np.integer):
        whole = values if np.issubdtype(values.dtype, np.integer) else np.rint(values).astype(np.int64)
        return stretch(apply_voi(whole, display), 0, 2 ** int(luts[0].LUTDescriptor[2]) - 1)
    if own is not None:
        return windowed(values, *own)
    # Padding lies outside the image and would stretch the range of values for nothing (PS3.3 C.7.5.1.1.2).
    inside = values[~_padding(stored, display)] if "PixelPaddingValue" in display else values
    if inside.size == 0:
        return np.zeros(values.shape, np.float32)
    return stretch(values, float(inside.min()), float(inside.max()))


def _linear_in_one_step(stored: NDArray[Any], display: Dataset, own: tuple[float, float, str]) -> NDArray[np.float32]:
    """Rescale and window are both linear: on 5 million pixels one pass instead of two saves a third of the time."""
    slope, intercept = _rescale(display)
    low, high = _linear_range(*own)
    if slope <= 0:
        return stretch(modality_values(stored, display), low, high)
    return stretch(stored, (low - intercept) / slope, (high - intercept) / slope)


def _padding(stored: NDArray[Any], display: Dataset) -> NDArray[np.bool_]:
    """Where a frame is padding: its value, or a range of values (PS3.3 C.7.5.1.1.2)."""
    value = _number(display.get("PixelPaddingValue"))
    limit = _number(display.get("PixelPaddingRangeLimit"))
    if value is None:
        return np.zeros(stored.shape, bool)
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _own_window(display: Dataset) -> tuple[float, float, str] | None:
    """The first window as centre, width and function, or None where there is none that can be used."""
    center, width = _number(display.get("WindowCenter")), _number(display.get("WindowWidth"))
    function = str(display.get("VOILUTFunction") or "LINEAR").upper()
    smallest = 1 if function == "LINEAR" else 1e-6
    if center is None or width is None or width < smallest or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    return center, width, function


def _number(value: Any) -> float | None:
    """The first number of a DICOM value, or None where it is missing, empty or not finite."""
    if isinstance(value, str) or value is None:
        return None
    if not isinstance(value, int | float):
        value = next(iter(value), None)
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _is_empty(element: DataElement) -> bool:
    """Whether a display attribute says nothing: no value, or a LUT sequence without a table."""
    if element.VR == "SQ":
        return not element.value or not element.value[0].get("LUTDescriptor") or "LUTData" not in element.value[0]
    return bool(element.is_empty)
