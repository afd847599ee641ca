"""From CT scans and a list of nodules to a patch set that `scan` reads; it stays at the site, under pseudonyms."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError
from aiseeme_models.images.labels import LABELS_FILE
from aiseeme_models.images.nodules import SERIES, Nodule, isotropic_patch, read_nodules
from aiseeme_models.images.picture import stretch
from aiseeme_models.images.presets import WindowName, window_range
from aiseeme_models.images.reading import read_bytes
from aiseeme_models.images.rejection import ImageRejected
from aiseeme_models.images.splits import split_point
from aiseeme_models.images.volumes import Volume, dicom_volume
from client.grouping import names_somebody
from client.site_key import SiteKey
from client.walking import image_root, walk

PATCHES_FILE = "patches.npz"
# What is said of a nodule; any other column of a list may name a patient, whatever it is called.
_KEPT_COLUMNS = frozenset(
    ("diameter_mm", "label", "malignant", "malignancy", "subtlety", "internalStructure", "calcification")
) | frozenset(("sphericity", "margin", "lobulation", "spiculation", "texture"))
_DAMAGED = "a file of it is damaged"
_OUTSIDE = "a listed place lies outside its scan"


@dataclass(frozen=True)
class PatchSet:
    """What was written, and what could not be.

    Attributes:
        patches: how many.
        series: of how many scans.
        absent: listed series without a file in the folder.
        unusable: listed series whose files make no volume, with why.
    """

    patches: int
    series: int
    absent: int
    unusable: dict[str, int]


def write_patches(
    folder: Path,
    listed: Path,
    out: Path,
    key: SiteKey,
    *,
    size: int,
    side_mm: float,
    window: WindowName,
) -> PatchSet:
    """Cut a cube around every listed nodule.

    Args:
        folder: with the DICOM series, in any layout.
        listed: see `read_nodules`.
        out: a new folder; gets an npz file of ``(N, size, size, size)`` uint8 and a labels.csv.
        key: of the site: patients and series are written as pseudonyms.
        size: voxels along a side.
        side_mm: side of a cube.
        window: what of the HU range is kept.

    Raises:
        InputError: no such folder, ``out`` holds something, a mistake in the list, or nothing to cut out.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not (math.isfinite(side_mm) and side_mm > 0):
        raise InputError(f"a side of {side_mm} mm: it must be a number above 0")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty; patches are written into a new folder")
    wanted = read_nodules(listed)
    files = _files_of(folder, set(wanted))
    cubes: list[np.ndarray] = []
    lines: list[dict[str, str]] = []
    unusable: dict[str, int] = defaultdict(int)
    for series in sorted(files):
        try:
            volume = dicom_volume([read_bytes(path) for path in files[series]])
        except (InputError, ImageRejected) as error:
            unusable[str(error)] += 1
            continue
        except Exception:  # decoders fail with any exception on a damaged file, and its text may quote the file
            unusable[_DAMAGED] += 1
            continue
        if not all(volume.holds(nodule.place) for nodule in wanted[series]):
            unusable[_OUTSIDE] += 1
            continue
        for nodule in wanted[series]:
            patch = isotropic_patch(volume, nodule.place, side_mm=side_mm, size=size)
            cubes.append(np.rint(stretch(patch, *window_range(window)) * 255).astype(np.uint8))
            lines.append({"index": str(len(lines)), **_line(volume, nodule, key)})
    if not cubes:
        reasons = "; ".join(unusable) or f"none of the {len(wanted)} listed series is in the folder"
        raise InputError(f"{folder}: no nodule could be cut out: {reasons}")
    out.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    np.savez_compressed(packed, images=np.stack(cubes))
    write_atomically(out / PATCHES_FILE, packed.getvalue())
    table = io.StringIO()
    columns = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomically(out / LABELS_FILE, table.getvalue().encode())
    return PatchSet(len(cubes), len(files) - sum(unusable.values()), len(set(wanted) - set(files)), dict(unusable))


def _line(volume: Volume, nodule: Nodule, key: SiteKey) -> dict[str, str]:
    """A line of labels.csv. The split follows the raw id, so that a patient's slices and nodules agree."""
    patient = volume.patient.strip()
    named = patient if names_somebody(patient) else volume.series
    line = {"patient_id": key.pseudonym("patient", named), SERIES: key.pseudonym("series", volume.series)}
    kept = {name: value for name, value in nodule.columns.items() if name in _KEPT_COLUMNS}
    return line | {"split_point": str(split_point(named))} | kept


def _files_of(folder: Path, wanted: set[str]) -> dict[str, list[Path]]:
    """The files of every wanted series, told by their headers."""
    import pydicom

    root = image_root(folder)
    found: dict[str, list[Path]] = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in walk(root)[0]:
            if file.reason is not None:
                continue
            path = root / file.name
            try:
                header = pydicom.dcmread(path, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True)
                series = str(header.get("SeriesInstanceUID", ""))
            except Exception:  # no DICOM, or a damaged one: `scan` says what is wrong with it
                continue
            if series in wanted:
                found[series].append(path)
    return dict(found)
