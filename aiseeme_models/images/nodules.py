"""Nodules in CT volumes: their lists as LUNA16 publishes them, and isotropic patches around them."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from aiseeme_models.errors import InputError
from aiseeme_models.images.volumes import Volume

# LUNA16's names, and plain ones.
_COORDINATES = (("coordZ", "coordY", "coordX"), ("z", "y", "x"))
SERIES = "seriesuid"


@dataclass(frozen=True)
class Nodule:
    """A place in a volume.

    Attributes:
        place: ``z, y, x`` in mm, in the patient's coordinates (LPS, as DICOM and LUNA16 count).
        columns: the other columns of its line.
    """

    place: tuple[float, float, float]
    columns: Mapping[str, str]


def read_nodules(path: Path) -> dict[str, list[Nodule]]:
    """The nodules of every series of a csv file, by SeriesInstanceUID.

    Columns ``seriesuid`` and either ``coordX, coordY, coordZ`` (LUNA16's annotations.csv) or ``z, y, x``, all in mm.

    Raises:
        InputError: what is wrong in which line, and what would be right.
    """
    try:
        lines = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: no csv file in UTF-8") from error
    if not lines:
        raise InputError(f"{path}: no line below the header")
    names = next((names for names in _COORDINATES if set(names) <= set(lines[0])), None)
    if names is None or SERIES not in lines[0]:
        there = ", ".join(str(name) for name in lines[0])
        raise InputError(
            f"{path}: columns {SERIES} and coordX, coordY, coordZ (or z, y, x) are needed; there are {there}"
        )
    found: dict[str, list[Nodule]] = defaultdict(list)
    for number, line in enumerate(lines, start=2):
        try:
            z, y, x = (float(line[name]) for name in names)
        except (TypeError, ValueError):
            raise InputError(f"{path}, line {number}: {', '.join(names)} must be numbers of mm") from None
        if not all(map(math.isfinite, (z, y, x))):
            raise InputError(f"{path}, line {number}: {', '.join(names)} must be finite")
        if not (line[SERIES] or "").strip():
            raise InputError(f"{path}, line {number}: '{SERIES}' is empty")
        rest = {key: value for key, value in line.items() if key not in (*names, SERIES) and isinstance(value, str)}
        found[line[SERIES].strip()].append(Nodule((z, y, x), rest))
    return dict(found)


def isotropic_patch(volume: Volume, place: Sequence[float], *, side_mm: float, size: int) -> NDArray[np.float32]:
    """The cube around a place, resampled linearly along the patient's axes whatever the scan's own are.

    Args:
        volume: in modality units.
        place: ``z, y, x`` of the centre in mm (LPS).
        side_mm: side of the cube.
        size: voxels along each side.

    Returns:
        ``(size, size, size)`` float32; outside the volume its lowest value.
    """
    steps = (np.arange(size) - (size - 1) / 2) * (side_mm / size)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij")).reshape(3, -1)  # (3, S^3) in mm from the centre
    along = np.asarray(volume.directions) / np.asarray(volume.spacing)[:, None]  # mm (z, y, x) to voxels
    indices = along @ grid + volume.index_of(place)[:, None]
    # Only what the cube touches: spline filters and copies of a whole scan cost a hundred times more.
    low = np.clip(np.floor(indices.min(axis=1)).astype(int) - 1, 0, np.array(volume.values.shape) - 1)
    high = np.clip(np.ceil(indices.max(axis=1)).astype(int) + 2, 1, volume.values.shape)
    near = volume.values[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    outside = float(volume.values.min())
    values = map_coordinates(near, indices - low[:, None], order=1, mode="constant", cval=outside)
    patch: NDArray[np.float32] = values.reshape(size, size, size).astype(np.float32)
    return patch
