"""272 DICOM files from the test suites of other programs: none crashes, each ends accepted or with a right reason."""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

from aiseeme_models.images import dicom_policy
from aiseeme_models.images.decode_pool import DecodedFile, DecodeLimits, DecodePool, DecodeTask
from aiseeme_models.images.pipeline import Pipeline
from aiseeme_models.images.reading import read_pictures
from aiseeme_models.images.rejection import RejectReason

# What is wrong with the files that no decoder of the reference stack reads, looked up one by one.
REASONS_OF_THE_REST = {
    "dcm4che/3gb-bulk-data-truncated": "damaged",  # Rows and BitsAllocated are lists of numbers
    "dwv/dwv-test_no-number-rows.dcm": "damaged",
    "fo-dicom/GH1146.dcm": "damaged",  # pixel data without a value
    "fo-dicom/GH177_D_CLUNIE_CT1_IVRLE_BigEndian_undefined_length.dcm": "damaged",  # a sequence without its end
    "fo-dicom/GH340.dcm": "damaged",  # no photometric interpretation
    "fo-dicom/genFile.dcm": "damaged",  # no JPEG in its JPEG fragments
    "pydicom-data/liver_nonbyte_aligned_rle.dcm": "unsupported-encoding",  # RLE of single bits
    "pydicom-data/liver_rle.dcm": "unsupported-encoding",
    "pydicom/JPEG2000-embedded-sequence-delimiter.dcm": "damaged",
    "pydicom/MR_truncated.dcm": "truncated",
    "pydicom/badVR.dcm": "damaged",
    "pydicom/meta_missing_tsyntax.dcm": "damaged",  # no Rows
    "pydicom/nested_priv_SQ.dcm": "damaged",  # no Rows
}
# Marked as without pixels: two are not even recognisable as DICOM.
NOT_DICOM = {"pydicom/no_meta.dcm", "pydicom/rtplan.dump"}


@pytest.fixture(scope="module")
def index() -> dict[str, dict[str, str]]:
    from tests.conftest import DATA

    if not (DATA / "dicom_zoo" / "index.csv").is_file():
        pytest.skip("the DICOM zoo is not there: set AISEEME_DATA to the folder of real images")
    with (DATA / "dicom_zoo" / "index.csv").open(newline="") as file:
        return {str(DATA / "dicom_zoo" / row["file"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def outcomes(index: dict[str, dict[str, str]]) -> dict[str, DecodedFile]:
    paths = list(index)
    with DecodePool(Pipeline(1, "pad", 64), DecodeLimits(seconds=60)) as pool:
        return {paths[o.number]: o for o in pool.decode(DecodeTask(n, Path(p)) for n, p in enumerate(paths))}


def test_every_file_ends_accepted_or_with_a_right_reason(index, outcomes) -> None:
    assert len(outcomes) == len(index) == 272
    wrong = {}
    for path, row in index.items():
        reason = outcomes[path].reason
        if row["decode_full"] == "ok":
            right = reason is None and len(outcomes[path].images) == int(row["frames"] or 1)
        elif row["file"] in REASONS_OF_THE_REST:
            right = reason == REASONS_OF_THE_REST[row["file"]]
        elif row["file"] in NOT_DICOM:
            right = reason == RejectReason.NOT_AN_IMAGE
        elif row["decode_full"] == "no pixels":
            right = reason == RejectReason.NO_PIXELS
        else:
            right = reason is None
        if not right:
            wrong[row["file"]] = (row["decode_full"][:60], reason, len(outcomes[path].images))
    assert wrong == {}
    assert not {o.reason for o in outcomes.values()} & {RejectReason.DECODER_CRASHED, RejectReason.TIMED_OUT}


def test_more_files_are_read_than_the_reference_stack_reads(index, outcomes) -> None:
    more = [row["file"] for path, row in index.items() if row["decode_full"] != "ok" and outcomes[path].reason is None]
    assert len(more) == 16, more


def test_what_is_quarantined_has_a_policy_s_reason(outcomes) -> None:
    findings = Counter(f for o in outcomes.values() for image in o.images[:1] for f in image.findings)
    assert findings and all(finding.is_policy for finding in findings)


def reference(path: str) -> list[np.ndarray]:
    """pydicom's own pipeline in [0, 1]: its decoders, its LUT functions, and ranges from the standard."""
    dataset = pydicom.dcmread(path, force=True)
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        if keyword in dataset and (not dataset[keyword].value or not dataset[keyword].value[0].get("LUTDescriptor")):
            del dataset[keyword]  # a sequence without a table says nothing, and pydicom fails on it
    for keyword in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "PixelPaddingValue"):
        if keyword in dataset and dataset[keyword].value is None:
            del dataset[keyword]
    stored = dataset.pixel_array
    frames = [stored] if int(dataset.get("NumberOfFrames") or 1) == 1 else list(stored)
    photometric = dataset.PhotometricInterpretation
    shown = []
    for frame in frames:
        if photometric == "PALETTE COLOR":
            colours = apply_color_lut(frame, dataset)[..., :3].astype(float)
            bits = 8 if colours.max() < 256 else 16
            shown.append(colours / (2**bits - 1))
        elif frame.ndim == 3:
            depth = 8 if frame.dtype == np.uint8 else dataset.BitsStored
            shown.append(frame / (2.0**depth - 1))
        else:
            shown.append(reference_grey(frame, dataset, photometric == "MONOCHROME1"))
    return shown


def reference_grey(frame: np.ndarray, dataset: pydicom.Dataset, inverted: bool) -> np.ndarray:
    values = apply_modality_lut(frame, dataset)
    luts = dataset.get("VOILUTSequence")
    has_lut = bool(luts) and luts[0].get("LUTData") is not None
    has_window = bool(dataset.get("WindowCenter") is not None and dataset.get("WindowWidth"))
    if has_lut or has_window:
        out = apply_voi_lut(values, dataset).astype(float)
        if has_lut:
            low, high = 0.0, 2.0 ** luts[0].LUTDescriptor[2] - 1
        else:
            # pydicom maps to the range of the stored values, rescaled (processing.py, apply_windowing).
            bits, signed = dataset.BitsStored, dataset.PixelRepresentation
            low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
            if "ModalityLUTSequence" in dataset:
                low, high = 0.0, 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
            elif "RescaleSlope" in dataset:
                slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
                low, high = sorted((low * slope + intercept, high * slope + intercept))
        out = np.clip((out - low) / (high - low), 0, 1)
    elif frame.dtype == np.uint8 and not ({"RescaleSlope", "ModalityLUTSequence"} & set(dataset.dir())):
        out = frame / (2.0**dataset.BitsStored - 1)
    else:
        inside = values
        if dataset.get("PixelPaddingValue") is not None:
            inside = values[frame != dataset.PixelPaddingValue]
        low, high = float(inside.min()), float(inside.max())
        out = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros(values.shape)
    return 1 - out if inverted else out


def test_pixels_equal_pydicom_s_reference_pipeline(index) -> None:
    wrong, compared = {}, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of invalid values, as it should
        for path, row in index.items():
            if row["decode_full"] != "ok":
                continue
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
            mask = None
            if dicom_policy.is_ultrasound(dataset):
                mask = dicom_policy.region_mask(dataset, int(dataset.Rows), int(dataset.Columns))
            if dataset.get("PerFrameFunctionalGroupsSequence") or dataset.get("SharedFunctionalGroupsSequence"):
                continue  # pydicom's functions do not look there: test_reading_dicom.py compares those
            expected = reference(path)
            pictures = list(read_pictures(Path(path).read_bytes()))
            for picture, frame in zip(pictures, expected, strict=True):
                if mask is not None:
                    frame = frame * (mask if frame.ndim == 2 else mask[..., None])
                difference = float(np.abs(picture.unit - frame).max())
                if difference > 1e-4:
                    wrong[row["file"]] = difference
                compared += 1
    assert wrong == {}
    assert compared > 300


def test_stored_values_equal_those_of_independent_decoders(index) -> None:
    """index.csv was made with libjpeg's reference decoder; a lossy one may differ by rounding."""
    wrong, compared = {}, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path, row in index.items():
            if row["decode_full"] != "ok" or row["samples"] != "1":
                continue
            stored = pydicom.dcmread(path, force=True).pixel_array
            low, high = (float(number) for number in row["min_max"].split(".."))
            lossy = "JPEG Baseline" in row["transfer_syntax"] or "JPEG Extended" in row["transfer_syntax"]
            if abs(stored.min() - low) > lossy or abs(stored.max() - high) > lossy:
                wrong[row["file"]] = (stored.min(), stored.max(), row["min_max"])
            compared += 1
    assert wrong == {}
    assert compared > 100
