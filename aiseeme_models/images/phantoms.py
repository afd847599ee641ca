"""Phantom hospitals: procedurally drawn images as real DICOM files, so that everything can be tried without a patient.

Nothing in them is medical. Every file says PHANTOM in the patient's name, the series description and the device.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    VLPhotographicImageStorage,
    generate_uid,
)

from aiseeme_models.errors import InputError
from aiseeme_models.images.labels import LABELS_FILE, PHANTOM_COLUMN
from aiseeme_models.images.phantom_lesions import LESION_PATTERNS, phantom_lesion
from aiseeme_models.images.phantom_radiographs import RADIOGRAPH_PATTERNS, phantom_radiograph

PhantomKind = Literal["dermoscopy", "chest-xray"]
MIXED = "mixed"

PHANTOM_CLASSES: dict[PhantomKind, tuple[str, ...]] = {
    "dermoscopy": tuple(LESION_PATTERNS),
    "chest-xray": tuple(RADIOGRAPH_PATTERNS),
}


@dataclass(frozen=True)
class _Patient:
    """A phantom patient: one finding, shown by two or three images."""

    number: str
    label: str
    sex: str
    age: int
    skin: NDArray[np.float32]
    pigment: NDArray[np.float32]


@dataclass(frozen=True)
class _Scanner:
    """What is particular to a site's device.

    Attributes:
        name: model.
        gain: ``(3,)`` factor of each colour (dermoscopy), its mean that of the exposure (radiographs).
        noise: standard deviation of the noise, in [0, 1] pixel units.
        inverted: radiographs are MONOCHROME1.
        bits: stored bits of a radiograph.
        offset: lowest stored value of a radiograph; its window starts there.
        spacing: mm per pixel.
    """

    name: str
    gain: NDArray[np.float32]
    noise: float
    inverted: bool
    bits: int
    offset: int
    spacing: float


def write_phantoms(
    folder: Path, *, kind: PhantomKind | str, sites: int, images_per_site: int, seed: int, size: int = 128
) -> list[Path]:
    """Write the image folders of phantom hospitals; equal arguments give equal bytes.

    Each site has its own device (gain, noise; radiographs: MONOCHROME1 at every second site, window, bits, spacing),
    its own mix of classes, and a ``labels.csv`` with file, label, patient_id, sex, age and phantom.

    Args:
        folder: gets one folder per site, ``phantom-<kind>-<number>``, which must not hold anything yet.
        kind: dermoscopy (8-bit RGB), chest-xray (16-bit grey), or mixed: see `write_mixed_phantoms`, which has a
            number of images of its own and no labels.
        sites: number of hospitals, at least 1.
        images_per_site: at least 1; two or three images per patient.
        seed: of everything random.
        size: rows and columns, at least 32.

    Returns:
        The sites' folders.

    Raises:
        InputError: an unknown kind, a number that is too small, or a site's folder that holds something.
    """
    drawn = next((known for known in PHANTOM_CLASSES if known == kind), None)
    if drawn is None and kind != MIXED:
        raise InputError(f"unknown kind of phantoms {kind!r}: there are {', '.join((*PHANTOM_CLASSES, MIXED))}")
    if sites < 1 or images_per_site < 1 or size < 32 or seed < 0:
        raise InputError(
            f"phantoms need at least 1 site, 1 image per site, a size of 32 and a seed of 0, "
            f"not {sites}, {images_per_site}, {size} and {seed}"
        )
    folders = [folder / f"phantom-{kind}-{site + 1}" for site in range(sites)]
    for target in folders:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{target}: is not empty; phantoms are written into a new folder")
    for site, target in enumerate(folders):
        target.mkdir(parents=True, exist_ok=True)
        if drawn is None:
            from aiseeme_models.images.phantom_intake import write_mixed_phantoms

            write_mixed_phantoms(target, seed=1000 * seed + site)
            continue
        rng = np.random.default_rng((seed, site, list(PHANTOM_CLASSES).index(drawn)))
        _write_site(target, drawn, site, images_per_site, rng, size)
    return folders


def _write_site(folder: Path, kind: PhantomKind, site: int, images: int, rng: np.random.Generator, size: int) -> None:
    scanner = _scanner(rng, site)
    lines: list[tuple[str, str, str, str, int, str]] = []
    patients = 0
    while len(lines) < images:
        patient = _patient(rng, kind, site, patients)
        patients += 1
        for view in range(min(int(rng.integers(2, 4)), images - len(lines))):
            file = f"{patient.number}-{view + 1}.dcm"
            if kind == "dermoscopy":
                drawn = phantom_lesion(rng, patient.label, patient.skin, patient.pigment, size)
            else:
                drawn = phantom_radiograph(rng, patient.label, size)
            dataset = _header(kind, scanner, patient, view, (size, size))
            _set_pixels(dataset, kind, scanner, drawn, rng)
            dataset.save_as(folder / file, enforce_file_format=True)
            lines.append((file, patient.label, patient.number, patient.sex, patient.age, "yes"))
    with (folder / LABELS_FILE).open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("file", "label", "patient_id", "sex", "age", PHANTOM_COLUMN))
        writer.writerows(lines)


def _scanner(rng: np.random.Generator, site: int) -> _Scanner:
    bits = (12, 14, 16)[site % 3]
    return _Scanner(
        name=f"PHANTOM {chr(ord('A') + site % 26)}{site // 26 or ''}",
        gain=rng.uniform(0.92, 1.06, 3).astype(np.float32),
        noise=float(rng.uniform(0.01, 0.025)),
        inverted=site % 2 == 1,
        bits=bits,
        offset=int(rng.integers(0, 2**bits // 8)),
        spacing=round(float(rng.uniform(0.1, 0.2)), 3),
    )


def _patient(rng: np.random.Generator, kind: PhantomKind, site: int, index: int) -> _Patient:
    classes = PHANTOM_CLASSES[kind]
    share = np.ones(len(classes))
    share[site % len(classes)] = 2  # hospitals see different mixes
    tone = site % 4 / 4 + rng.uniform(0, 0.2)
    skin = np.array([0.86, 0.68, 0.60]) * (1 - tone) + np.array([0.72, 0.52, 0.43]) * tone
    pigment = skin * np.array([0.68, 0.58, 0.52]) * rng.uniform(0.97, 1.03)
    return _Patient(
        number=f"P{site + 1:02d}{index + 1:04d}",
        label=classes[int(rng.choice(len(classes), p=share / share.sum()))],
        sex=str(rng.choice(["F", "M"])),
        age=int(rng.integers(18, 90)),
        skin=skin.astype(np.float32),
        pigment=pigment.astype(np.float32),
    )


def _header(kind: PhantomKind, scanner: _Scanner, patient: _Patient, view: int, shape: Sequence[int]) -> FileDataset:
    """Everything but the pixels."""
    storage = VLPhotographicImageStorage if kind == "dermoscopy" else DigitalXRayImageStorageForPresentation
    names = ["aiseeme phantom", kind, scanner.name, patient.number]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = _uid([*names, "instance", str(view)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = storage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = _uid([*names, "study"])
    dataset.SeriesInstanceUID = _uid([*names, "series"])
    dataset.Modality = "XC" if kind == "dermoscopy" else "DX"
    dataset.Manufacturer = "PHANTOM (no real device)"
    dataset.ManufacturerModelName = scanner.name
    dataset.SeriesDescription = "PHANTOM: drawn by a program, not a patient"
    dataset.PatientName = f"PHANTOM^{patient.number}"
    dataset.PatientID = f"PHANTOM-{patient.number}"
    dataset.PatientSex = patient.sex
    dataset.PatientAge = f"{patient.age:03d}Y"
    dataset.StudyDate = "20000101"
    dataset.InstanceNumber = view + 1
    dataset.Rows, dataset.Columns = shape
    dataset.PixelSpacing = [scanner.spacing, scanner.spacing]
    return dataset


def _set_pixels(
    dataset: FileDataset, kind: PhantomKind, scanner: _Scanner, drawn: NDArray[np.float32], rng: np.random.Generator
) -> None:
    """Take ``drawn``, ``(S, S, 3)`` or ``(S, S)`` float32 in [0, 1], as ``scanner`` stores it."""
    gain = scanner.gain if drawn.ndim == 3 else scanner.gain.mean()
    noisy = np.clip(drawn * gain + rng.normal(0, scanner.noise, drawn.shape), 0, 1)
    dataset.PixelRepresentation = 0
    if kind == "dermoscopy":
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = np.rint(noisy * 255).astype(np.uint8).tobytes()
        return
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if scanner.inverted else "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, scanner.bits, scanner.bits - 1
    # The window shows three quarters of the range that the device can store.
    width = 2**scanner.bits * 3 // 4
    dataset.WindowCenter, dataset.WindowWidth = scanner.offset + width // 2, width
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    shown = 1 - noisy if scanner.inverted else noisy
    dataset.PixelData = (scanner.offset + np.rint(shown * (width - 1))).astype("<u2").tobytes()


def _uid(names: list[str]) -> UID:
    return generate_uid(prefix="2.25.", entropy_srcs=names)
