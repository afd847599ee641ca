"""Volumes: CT scans from DICOM series, multi-frame DICOM and NIfTI, in one orientation and in mm."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from aiseeme_models.errors import InputError
from aiseeme_models.images.dicom import read_header, stored_frames
from aiseeme_models.images.dicom_display import frame_display, frame_sources, modality_values

_SAME_PLACE_MM = 1e-3
# Slices whose distances differ by more than this part of the usual one leave a hole in the volume.
_GAP = 0.5
_LENGTHS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
_FUNCTIONAL_GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")


@dataclass(frozen=True)
class Volume:
    """A scan on a regular grid.

    Attributes:
        values: ``(Z, Y, X)`` float32 in modality units (HU): Z towards the head, Y to the back, X to the left.
        spacing: mm between neighbours along ``z, y, x``.
        origin: ``z, y, x`` of the first voxel's centre in the patient's coordinates (LPS), in mm.
        directions: ``(3, 3)``, row i is the unit vector ``(z, y, x)`` in LPS along which axis i of ``values`` grows.
        series: SeriesInstanceUID, or "".
        patient: PatientID, or "".
    """

    values: NDArray[np.float32]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    directions: NDArray[np.float64]
    series: str = ""
    patient: str = ""

    def holds(self, place: Sequence[float]) -> bool:
        """Whether a place ``z, y, x`` in mm (LPS) lies inside the volume."""
        index = self.index_of(place)
        return bool((index >= -0.5).all() and (index <= np.asarray(self.values.shape) - 0.5).all())

    def index_of(self, place: Sequence[float]) -> NDArray[np.float64]:
        """Fractional voxel index ``(3,)`` of a place ``z, y, x`` in mm (LPS)."""
        offset = np.asarray(place, np.float64) - np.asarray(self.origin)
        index: NDArray[np.float64] = (self.directions @ offset) / np.asarray(self.spacing)
        return index


def dicom_volume(files: Sequence[bytes]) -> Volume:
    """The volume of one series, from the contents of its files in any order; a file may hold many frames.

    Raises:
        InputError: the files are of several series, lack their geometry, or leave holes.
        ImageRejected: a file cannot be decoded.
    """
    slices: list[tuple[NDArray[np.float64], NDArray[np.float32]]] = []
    geometry: set[tuple[Any, ...]] = set()
    series: set[str] = set()
    patient = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns with the values of tags
        for data in files:
            dataset = read_header(data)
            series.add(str(dataset.get("SeriesInstanceUID", "")))
            if len(series) > 1:
                raise InputError("the files are of 2 series or more; a volume is one")
            patient = str(dataset.get("PatientID") or "")
            for frame, (stored, _) in enumerate(stored_frames(dataset)):
                position, orientation, spacing = _plane(dataset, frame)
                geometry.add((stored.shape, tuple(np.round(orientation, 4)), tuple(np.round(spacing, 4))))
                values = modality_values(stored, frame_display(dataset, frame))
                slices.append((position, values.astype(np.float32)))
    if not slices:
        raise InputError("a volume needs at least two slices")
    if len(geometry) != 1:
        raise InputError("the slices of a series differ in size, orientation or pixel spacing")
    _, orientation, (row_mm, column_mm) = next(iter(geometry))
    along_row, along_column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    normal = np.cross(along_row, along_column)
    normal *= 1.0 if normal[2] >= 0 else -1.0
    slices.sort(key=lambda item: float(item[0] @ normal))
    depths = np.array([float(position @ normal) for position, _ in slices])
    step = _regular_step(depths)
    return Volume(
        values=np.stack([values for _, values in slices]),
        spacing=(step, float(row_mm), float(column_mm)),
        origin=_zyx(slices[0][0]),
        directions=np.array([_zyx(normal), _zyx(along_column), _zyx(along_row)]),
        series=next(iter(series)),
        patient=patient,
    )


def _zyx(vector: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(vector[2]), float(vector[1]), float(vector[0])


def _regular_step(depths: NDArray[np.float64]) -> float:
    if len(depths) < 2:
        raise InputError("a volume needs at least two slices")
    steps = np.diff(depths)
    if steps.min() < _SAME_PLACE_MM:
        raise InputError("two slices of a series lie at the same place")
    usual = float(Counter(np.round(steps, 2)).most_common(1)[0][0])
    if np.abs(steps - usual).max() > _GAP * usual:
        raise InputError("slices of a series are missing: the distances between them differ")
    return float((depths[-1] - depths[0]) / (len(depths) - 1))


def _plane(dataset: Dataset, frame: int) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]:
    """Position ``(3,)`` (x, y, z in mm), orientation ``(6,)`` and pixel spacing (rows, columns) of a frame."""
    found = {
        keyword: [float(number) for number in source[keyword].value]
        for source in frame_sources(dataset, frame, _FUNCTIONAL_GROUPS)
        for keyword in _LENGTHS
        if source.get(keyword) and hasattr(source[keyword].value, "__iter__")
    }
    if len(found) != len(_LENGTHS):
        raise InputError("a slice does not say where it lies (position, orientation or pixel spacing is missing)")
    if any(len(found[name]) != length or not np.isfinite(found[name]).all() for name, length in _LENGTHS.items()):
        raise InputError("a slice does not say where it lies (position, orientation or pixel spacing is damaged)")
    rows, columns = found["PixelSpacing"]
    if not (rows > 0 and columns > 0):
        raise InputError("a slice has a pixel spacing of 0 or less")
    return np.array(found["ImagePositionPatient"]), np.array(found["ImageOrientationPatient"]), (rows, columns)
