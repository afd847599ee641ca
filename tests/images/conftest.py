from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


@pytest.fixture
def write_dicom(tmp_path: Path) -> Callable[..., Path]:
    """Writes a grey or RGB array as DICOM; keywords become tags. The values in it should never show in an error."""

    def write(array: np.ndarray, name: str = "image.dcm", **tags: object) -> Path:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        dataset.PatientName = "SECRET^NAME"
        dataset.Rows, dataset.Columns = array.shape[:2]
        dataset.SamplesPerPixel = array.shape[2] if array.ndim == 3 else 1
        dataset.PhotometricInterpretation = "RGB" if array.ndim == 3 else "MONOCHROME2"
        if array.ndim == 3:
            dataset.PlanarConfiguration = 0
        bits = 8 * array.itemsize
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        dataset.PixelRepresentation = int(array.dtype.kind == "i")
        dataset.PixelData = array.tobytes()
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        path = tmp_path / name
        pydicom.dcmwrite(path, dataset)
        return path

    return write


@pytest.fixture
def radiograph() -> np.ndarray:
    """A 16-bit array without any symmetry: a transpose or flip of it is another image."""
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[0:40, 0:56]
    return (rows * 60 + columns * 11 + rng.integers(0, 40, (40, 56))).astype(np.uint16)
