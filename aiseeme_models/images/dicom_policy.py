"""What a site's policy may object to in a DICOM image: text in its pixels, or that it is no picture of a patient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset

from aiseeme_models.images.picture import Subject
from aiseeme_models.images.rejection import RejectReason

_SECONDARY_CAPTURES = frozenset(
    {
        uid.SecondaryCaptureImageStorage,
        uid.MultiFrameSingleBitSecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
    }
)
_NO_PICTURES = frozenset(
    {
        uid.SegmentationStorage,
        uid.UID("1.2.840.10008.5.1.4.1.1.66.7"),  # label map segmentation, newer than pydicom's dictionary
        uid.RTDoseStorage,
        uid.ParametricMapStorage,
    }
)
_ULTRASOUND = frozenset(
    {
        uid.UltrasoundImageStorage,
        uid.UltrasoundMultiFrameImageStorage,
        uid.EnhancedUSVolumeStorage,
        uid.UID("1.2.840.10008.5.1.4.1.1.6"),  # ultrasound, retired
        uid.UID("1.2.840.10008.5.1.4.1.1.3"),  # ultrasound multi-frame, retired
    }
)
# Regions that fill the frame do not say where the text is.
_LARGEST_REGION = 0.95

# The CS values of PS3.3 C.7.3.1.1.1 that have pictures; anything else is noted as OTHER, since it is free text.
_MODALITY_WORDS = """
    AR BI BMD CR CT DG DX ECG EPS ES FID GM IO IVOCT IVUS KER LEN LP LS MG MR NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF
    OPV OSS OT PA PT PX REG RF RG RTDOSE RTIMAGE SEG SM SMR STAIN TG US VA XA XAPROTOCOL XC
"""
MODALITIES = frozenset(_MODALITY_WORDS.split())
_PHOTOMETRIC_WORDS = """
    MONOCHROME1 MONOCHROME2 RGB YBR_FULL YBR_FULL_422 YBR_PARTIAL_420 YBR_PARTIAL_422 YBR_ICT YBR_RCT XYB
"""
PHOTOMETRICS = frozenset([*_PHOTOMETRIC_WORDS.split(), "PALETTE COLOR"])


def subject_of(dataset: Dataset) -> Subject:
    """Whose image it is, as the header says."""
    return Subject(
        patient=_text(dataset, "PatientID"),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
    )


def modality_of(dataset: Dataset) -> str:
    """The modality, a word of `MODALITIES`, ``OTHER``, or "" where there is none."""
    word = _text(dataset, "Modality").upper()
    return word if word in MODALITIES or not word else "OTHER"


def findings_of(dataset: Dataset) -> tuple[RejectReason, ...]:
    """What the header tells, in the order of the reasons; see `region_mask` for ultrasound."""
    found = []
    sop_class = _text(dataset, "SOPClassUID")
    if _text(dataset, "BurnedInAnnotation").upper() == "YES":
        found.append(RejectReason.BURNED_IN_TEXT)
    if sop_class in _SECONDARY_CAPTURES or (not sop_class and _text(dataset, "ConversionType")):
        found.append(RejectReason.SECONDARY_CAPTURE)
    image_type = _text(dataset, "ImageType").upper().replace("_", " ")
    if "SCREEN SAVE" in image_type or "SCREENSAVE" in image_type or "SCREEN CAPTURE" in image_type:
        found.append(RejectReason.SCREEN_SAVE)
    if sop_class in _NO_PICTURES or modality_of(dataset) in ("SEG", "RTDOSE"):
        found.append(RejectReason.NOT_A_PICTURE)
    return tuple(found)


def is_ultrasound(dataset: Dataset) -> bool:
    """Whether text is to be expected around the picture."""
    return _text(dataset, "SOPClassUID") in _ULTRASOUND or modality_of(dataset) in ("US", "IVUS")


def region_mask(dataset: Dataset, rows: int, columns: int) -> NDArray[np.bool_] | None:
    """Where an ultrasound frame holds picture and not text: its ultrasound regions (PS3.3 C.8.5.5).

    Returns:
        ``(rows, columns)``, or None where the header has no regions, or has some that fill the frame.
    """
    inside = np.zeros((rows, columns), bool)
    for region in dataset.get("SequenceOfUltrasoundRegions") or ():
        x0, y0, x1, y1 = (
            int(region.get(f"RegionLocation{corner}", 0) or 0) for corner in ("MinX0", "MinY0", "MaxX1", "MaxY1")
        )
        inside[max(y0, 0) : max(y1 + 1, 0), max(x0, 0) : max(x1 + 1, 0)] = True
    return inside if 0 < inside.mean() <= _LARGEST_REGION else None


def _text(dataset: Dataset, keyword: str) -> str:
    value: Any = dataset.get(keyword)
    if value is None:
        return ""
    if not isinstance(value, str) and hasattr(value, "__iter__"):
        return "\\".join(str(part) for part in value)
    return str(value).strip()
