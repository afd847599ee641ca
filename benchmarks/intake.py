"""The way from files to the cache, against a bare decode loop over the same files, in turns in one run.

- ``jpeg``: 5,000 JPEGs of 171x128; the bare loop is ``np.asarray(Image.open(file).convert("RGB"))`` (Pillow).
- ``dicom``: 500 16-bit DICOMs of 2000x2500, JPEG Lossless as PACS keep them; the bare loop is
  ``pydicom.dcmread(file).pixel_array`` with our decoder plugged in (pydicom alone has none under a licence that could
  ship). ``dicom-native``: 150 of them uncompressed, where "decoding" is one copy of the bytes.
- ``rescan``: a second scan of 100,000 files that did not change.
- ``epoch``: one shuffled epoch of the JPEGs from the cache at 64 px, in batches of 64.

The scan does all that it does for a hospital: walks, reads, hashes files and pixels, decodes in isolated processes,
resizes, looks for blank and saturated images, writes catalogue and cache durably. ``part_of_decoding`` is its speed
over (number of cores x speed of the bare loop), ``part_of_pipeline`` the same with a loop that also windows and
resizes, as whoever fills an array for training must. Prints one line of JSON.
Run: ``python benchmarks/intake.py [--only jpeg]``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    generate_uid,
)

from aiseeme_models.images import dicom_codecs
from aiseeme_models.images.cache import ImageCache
from aiseeme_models.images.pipeline import Pipeline, square
from aiseeme_models.images.reading import read_pictures
from client.scanning import Scan, scan
from client.site_home import SiteHome

CORES = os.cpu_count() or 1
JPEGS, DICOMS, NATIVE, RESCANNED = 5000, 500, 150, 100_000
SKIN, CHEST = Pipeline(3, "crop", 64), Pipeline(1, "pad", 224)


def write_jpegs(folder: Path, count: int, shape: tuple[int, int] = (128, 171)) -> list[Path]:
    """Smooth colour images with texture, about 5 kB each as dermoscopy of this size is."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = rng.integers(60, 220, (5, 6, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC), np.int16)
        image = (smooth + rng.normal(0, 4, (*shape, 3))).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{number:06d}.jpg")
        Image.fromarray(image).save(paths[-1], quality=90)
    return paths


def write_dicoms(folder: Path, count: int, syntax: UID) -> list[Path]:
    """Radiographs of 2000x2500 with 14 stored bits and a window; noise in the lowest bits as detectors have it."""
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.uniform(2000, 14000, (20, 16)).astype(np.float32))
    smooth = np.asarray(coarse.resize((2000, 2500), Image.Resampling.BICUBIC))
    noise = rng.normal(0, 12, smooth.shape)
    paths = []
    for number in range(count):
        values = (smooth + np.roll(noise, 977 * number)).clip(0, 2**14 - 1).astype(np.uint16)
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, DigitalXRayImageStorageForPresentation
        meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.Modality, dataset.PatientID, dataset.StudyInstanceUID = "DX", f"P{number // 2}", generate_uid()
        dataset.Rows, dataset.Columns = values.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 14, 13
        dataset.WindowCenter, dataset.WindowWidth = 8000, 14000
        if syntax == JPEGLosslessSV1:
            dataset.PixelData = encapsulate([bytes(imagecodecs.ljpeg_encode(values, bitspersample=14))])
            dataset["PixelData"].is_undefined_length = True
        else:
            dataset.PixelData = values.tobytes()
        paths.append(folder / f"{number:04d}.dcm")
        pydicom.dcmwrite(paths[-1], dataset, implicit_vr=False, little_endian=True)
    return paths


def bare_jpeg(path: Path) -> None:
    """What the loop does per JPEG."""
    with Image.open(path) as image:
        np.asarray(image.convert("RGB"))


def bare_dicom(path: Path) -> None:
    """What the loop does per DICOM."""
    pydicom.dcmread(path).pixel_array  # noqa: B018


def to_square(path: Path, pipeline: Pipeline) -> None:
    """From a file to the array that a network is trained on, with the product's own functions and nothing around."""
    for picture in read_pictures(path.read_bytes(), pipeline.reading):
        square(picture.pixels, pipeline)


def seconds(work: Callable[[], object]) -> float:
    """Wall time."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def against_bare(
    folder: Path, paths: Sequence[Path], bare: Callable[[Path], None], pipeline: Pipeline, pairs: int
) -> dict:
    """The scan of a fresh home and the bare loop, in turns."""
    for path in paths:  # both find the files in memory
        path.read_bytes()
    loops, plain, scans = [], [], []
    for number in range(pairs):
        loops.append(seconds(lambda: [bare(path) for path in paths]))
        plain.append(seconds(lambda: [to_square(path, pipeline) for path in paths]))
        with tempfile.TemporaryDirectory(dir=folder.parent) as home:
            done: list[Scan] = []
            scans.append(
                seconds(lambda home=home, done=done: done.append(scan(folder, SiteHome(Path(home)), pipeline)))
            )
            assert len(done[0].rows) == len(paths), f"pair {number}: images were left out"
    figures: dict[str, object] = {"files": len(paths), "scan_s": [round(one, 2) for one in scans]}
    for name, loop in (("decoding", loops), ("pipeline", plain)):
        parts = [one / (CORES * whole) for one, whole in zip(loop, scans, strict=True)]
        figures[f"{name}_s"] = [round(one, 2) for one in loop]
        figures[f"part_of_{name}"] = round(statistics.median(parts), 3)
        figures[f"parts_of_{name}"] = [round(part, 3) for part in parts]
    return figures


def rescan(root: Path, count: int) -> dict:
    """A second scan that finds everything as it was."""
    folder = root / "many"
    folder.mkdir()
    rng = np.random.default_rng(2)
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03d}").mkdir()
        noise = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        (folder / f"{number // 1000:03d}" / f"{number:06d}.jpg").write_bytes(imagecodecs.jpeg8_encode(noise, level=90))
    pipeline = Pipeline(1, "pad", 16)
    first = scan(folder, SiteHome(root / "many-home"), pipeline)
    again = scan(folder, SiteHome(root / "many-home"), pipeline)
    assert again.decoded == 0 and again.rows == first.rows
    return {"files": count, "first_s": round(first.seconds, 1), "again_s": round(again.seconds, 2)}


def epoch(home: SiteHome, done: Scan, pipeline: Pipeline, batch: int = 64) -> dict:
    """Images/s of one shuffled epoch, the median of five; the first one reads from the disk's cache."""
    images = ImageCache(home.store, pipeline).open([row.content for row in done.rows])
    speeds = []
    for seed in range(5):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        spent = seconds(lambda order=order: [images.batch(part) for part in order.split(batch)])
        speeds.append(len(images) / spent)
    return {"images": len(images), "images_per_s": round(statistics.median(speeds))}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=["jpeg", "dicom", "dicom-native", "rescan", "epoch"])
    parser.add_argument("--folder", type=Path, help="where files are written (about 5 GB); default: the system's")
    chosen = parser.parse_args()
    wanted = chosen.only or ["jpeg", "dicom", "dicom-native", "rescan", "epoch"]
    dicom_codecs.install()
    figures: dict[str, object] = {"benchmark": "intake", "cores": CORES}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
        root = Path(temporary)
        for name, count, syntax in (
            ("dicom", DICOMS, JPEGLosslessSV1),
            ("dicom-native", NATIVE, ExplicitVRLittleEndian),
        ):
            if name in wanted:
                (root / name).mkdir()
                paths = write_dicoms(root / name, count, syntax)
                figures[name] = against_bare(root / name, paths, bare_dicom, CHEST, chosen.pairs)
        if {"jpeg", "epoch"} & set(wanted):
            (root / "jpeg").mkdir()
            paths = write_jpegs(root / "jpeg", JPEGS)
            if "jpeg" in wanted:
                figures["jpeg"] = against_bare(root / "jpeg", paths, bare_jpeg, SKIN, chosen.pairs)
            if "epoch" in wanted:
                home = SiteHome(root / "home")
                figures["epoch"] = epoch(home, scan(root / "jpeg", home, SKIN), SKIN)
        if "rescan" in wanted:
            figures["rescan"] = rescan(root, RESCANNED)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
