"""Phantom hospitals are real DICOM files, the same every time, with classes that a colour average cannot tell."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aiseeme_models.errors import InputError
from aiseeme_models.images.phantoms import PHANTOM_CLASSES, PhantomKind, write_phantoms
from aiseeme_models.images.reading import read_pixels


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["dermoscopy", "chest-xray"])
def test_every_file_is_a_dicom_image_that_says_phantom(tmp_path: Path, kind: PhantomKind) -> None:
    folders = write_phantoms(tmp_path, kind=kind, sites=2, images_per_site=30, seed=1, size=64)
    assert len(folders) == 2
    for folder in folders:
        rows = table(folder)
        assert sorted(row["file"] for row in rows) == sorted(path.name for path in folder.glob("*.dcm"))
        assert len(rows) == 30
        for row in rows:
            dataset = pydicom.dcmread(folder / row["file"])
            for tag in ("PatientName", "PatientID", "SeriesDescription", "Manufacturer"):
                assert "PHANTOM" in str(dataset[tag].value)
            assert (row["patient_id"] in dataset.PatientID, row["sex"]) == (True, dataset.PatientSex)
            pixels = read_pixels(folder / row["file"])
            assert pixels.shape == ((64, 64, 3) if kind == "dermoscopy" else (64, 64))
            assert pixels.std() > 0.03
        per_patient = Counter(row["patient_id"] for row in rows)
        assert max(per_patient.values()) == 3 and sorted(per_patient.values())[1] >= 2
        for patient in per_patient:
            assert len({row["label"] for row in rows if row["patient_id"] == patient}) == 1
    first, second = ({row["patient_id"] for row in table(folder)} for folder in folders)
    assert not first & second


def test_sites_have_different_scanners_but_bone_is_bright_at_all(tmp_path: Path) -> None:
    folders = write_phantoms(tmp_path, kind="chest-xray", sites=3, images_per_site=6, seed=2, size=64)
    headers = [pydicom.dcmread(next(folder.glob("*.dcm"))) for folder in folders]
    assert {header.PhotometricInterpretation for header in headers} == {"MONOCHROME1", "MONOCHROME2"}
    for tag in ("ManufacturerModelName", "PixelSpacing", "WindowCenter", "BitsStored"):
        assert len({str(header[tag].value) for header in headers}) == 3
    assert {header.BitsAllocated for header in headers} == {16}
    for folder in folders:
        mean = np.mean([read_pixels(path) for path in folder.glob("*.dcm")], axis=0)
        spine, air = mean[24:32, 31:33].mean(), mean[24:32, 14:20].mean()
        assert spine > air + 0.15


@pytest.mark.parametrize("kind", ["dermoscopy", "chest-xray"])
def test_equal_seeds_give_equal_bytes(tmp_path: Path, kind: PhantomKind) -> None:
    runs = [
        write_phantoms(tmp_path / name, kind=kind, sites=1, images_per_site=5, seed=seed, size=32)[0]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    same, again, other = ([path.read_bytes() for path in sorted(run.iterdir())] for run in runs)
    assert same == again
    assert same != other


@pytest.mark.parametrize("kind", ["dermoscopy", "chest-xray"])
def test_average_colours_hardly_tell_the_classes(tmp_path: Path, kind: PhantomKind) -> None:
    folders = write_phantoms(tmp_path, kind=kind, sites=4, images_per_site=60, seed=5, size=32)
    rows = [(folder / row["file"], row["label"], row["patient_id"]) for folder in folders for row in table(folder)]
    assert {label for _, label, _ in rows} == set(PHANTOM_CLASSES[kind])
    features = np.array([np.atleast_2d(read_pixels(path).mean((0, 1))).ravel() for path, _, _ in rows])
    labels = np.array([label for _, label, _ in rows])
    test = np.array([int(patient[-1]) % 3 == 0 for _, _, patient in rows])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    model.fit(features[~test], labels[~test])
    assert balanced_accuracy_score(labels[test], model.predict(features[test])) < 0.25 + 0.12


@pytest.mark.parametrize("wrong", [{"sites": 0}, {"images_per_site": 0}, {"size": 8}, {"kind": "mri"}, {"seed": -1}])
def test_impossible_phantoms_are_a_mistake(tmp_path: Path, wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"kind": "dermoscopy", "sites": 1, "images_per_site": 1, "seed": 0} | wrong
    with pytest.raises(InputError):
        write_phantoms(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_phantoms_never_mix_with_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "phantom-dermoscopy-1"
    folder.mkdir()
    (folder / "mine.png").write_bytes(b"x")
    with pytest.raises(InputError, match="not empty"):
        write_phantoms(tmp_path, kind="dermoscopy", sites=1, images_per_site=2, seed=0)
    assert [path.name for path in folder.iterdir()] == ["mine.png"]
