"""CT volumes: slices in order and upright, patches in mm, whatever the scan's own grid is."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose, ScaleIntensityRange

from aiseeme_models.errors import InputError
from aiseeme_models.images.nifti import nifti_volume
from aiseeme_models.images.nodules import isotropic_patch, read_nodules
from aiseeme_models.images.patch_sets import orthogonal_planes
from aiseeme_models.images.phantom_intake import NODULES, write_mixed_phantoms
from aiseeme_models.images.picture import ReadOptions
from aiseeme_models.images.presets import window_range
from aiseeme_models.images.reading import ImageRejected, RejectReason, read_pictures
from aiseeme_models.images.volume_transforms import IsotropicPatch, OrthogonalPlanes, ReadVolume, ShowWindow
from aiseeme_models.images.volumes import Volume, dicom_volume


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    write_mixed_phantoms(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def ct(phantoms: Path) -> Volume:
    return dicom_volume([path.read_bytes() for path in phantoms.glob("*/ct-*.dcm")])


def blob(affine: np.ndarray, centre_lps: tuple[float, float, float], shape=(40, 50, 60)) -> bytes:
    """A NIfTI volume with a ball of radius 6 mm around a place (x, y, z in LPS)."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    ras = grid @ affine[:3, :3].T + affine[:3, 3]
    inside = np.linalg.norm(ras * [-1, -1, 1] - np.array(centre_lps), axis=-1) < 6
    return nibabel.Nifti1Image(np.where(inside, 100, -900).astype(np.int16), affine).to_bytes()


def test_the_lung_window_is_minus_600_1500() -> None:
    assert window_range("lung") == (-1350.0, 150.0)


def test_slices_are_sorted_by_place_and_in_hounsfield_units(ct: Volume) -> None:
    assert ct.values.shape == (24, 96, 96) and ct.values.dtype == np.float32
    assert ct.spacing == (2.5, 1.5, 1.5) and ct.origin == (-30.0, -60.0, -70.0)
    np.testing.assert_array_equal(ct.directions, np.eye(3))
    assert abs(ct.values[12, 5, 48] - 40) < 100 and abs(ct.values[12, 46, 28] + 850) < 100


def test_dicom_series_and_nifti_are_the_same_volume(phantoms: Path, ct: Volume) -> None:
    other = nifti_volume((phantoms / "volume.nii.gz").read_bytes())
    np.testing.assert_array_equal(other.values, ct.values)
    assert other.spacing == ct.spacing


def test_listed_nodules_are_in_the_middle_of_their_patches(phantoms: Path, ct: Volume) -> None:
    found = read_nodules(phantoms / NODULES)
    assert list(found) == [ct.series]
    for nodule in found[ct.series]:
        patch = isotropic_patch(ct, nodule.place, side_mm=32, size=33)
        radius = float(nodule.columns["diameter_mm"]) / 2
        distance = np.linalg.norm(np.indices(patch.shape) - 16, axis=0) * 32 / 33
        assert patch[distance < radius - 2.5].mean() > 0
        assert patch[(distance > radius + 2.5) & (distance < radius + 4)].mean() < -500
        planes = orthogonal_planes(patch)
        assert planes.shape == (33, 33, 3)
        for plane, cut in zip(np.moveaxis(planes, -1, 0), (patch[16], patch[:, 16], patch[:, :, 16]), strict=True):
            np.testing.assert_array_equal(plane, cut)


@pytest.mark.parametrize("turned", [False, True])
def test_a_patch_is_isotropic_and_upright_whatever_the_grid(turned: bool) -> None:
    """A ball stays a ball, in the same place, with anisotropic voxels, flipped axes and an oblique scan."""
    affine = np.diag([1.7, -0.8, 2.5, 1.0])
    if turned:
        angle = np.deg2rad(25)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = affine[:3, :3] @ -np.array([20, 25, 30]) + [5, -3, 7]
    centre = (-2.0, 6.0, 11.0)  # x, y, z in LPS
    volume = nifti_volume(blob(affine, centre))
    patch = isotropic_patch(volume, centre[::-1], side_mm=24, size=24)
    inside = patch > -400
    middle = np.argwhere(inside).mean(axis=0)
    np.testing.assert_allclose(middle, [11.5] * 3, atol=0.4)
    np.testing.assert_allclose(inside.sum(), 4 / 3 * np.pi * 6**3, rtol=0.15)
    shifted = isotropic_patch(volume, (11.0 - 4, 6.0, -2.0 - 3), side_mm=24, size=24)
    np.testing.assert_allclose(np.argwhere(shifted > -400).mean(axis=0), [15.5, 11.5, 14.5], atol=0.4)


def test_linear_interpolation_equals_a_naive_one() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 7, 8)).astype(np.float32)
    volume = Volume(values, (2.0, 1.0, 0.5), (10.0, 20.0, 30.0), np.eye(3))
    patch = isotropic_patch(volume, (15.3, 23.1, 31.7), side_mm=1.5, size=3)
    for i, j, k in np.ndindex(3, 3, 3):
        z, y, x = (np.array([15.3, 23.1, 31.7]) + (np.array([i, j, k]) - 1) * 0.5 - [10, 20, 30]) / [2, 1, 0.5]
        corner = np.floor([z, y, x]).astype(int)
        weight = np.array([z, y, x]) - corner
        total = 0.0
        for step in np.ndindex(2, 2, 2):
            share = np.prod(np.where(step, weight, 1 - weight))
            total += share * values[tuple(corner + step)]
        assert abs(patch[i, j, k] - total) < 1e-5


def test_transforms_compose_with_monai_s_own(phantoms: Path, ct: Volume) -> None:
    for files in (sorted(phantoms.glob("*/ct-*.dcm")), phantoms / "volume.nii.gz"):
        np.testing.assert_array_equal(ReadVolume()(files).values, ct.values)
    place = (ct.origin[0] + 20, ct.origin[1] + 60, ct.origin[2] + 42)
    cut = IsotropicPatch(place, side_mm=48, size=32)
    ours = Compose([cut, ShowWindow(*window_range("lung")), OrthogonalPlanes()])(ct)
    low, high = window_range("lung")
    theirs = Compose([cut, ScaleIntensityRange(low, high, 0.0, 1.0, clip=True), OrthogonalPlanes()])(ct)
    assert ours.shape == (3, 32, 32)
    torch.testing.assert_close(torch.as_tensor(np.asarray(theirs)), ours, atol=1e-6, rtol=0)


def test_volumes_with_holes_doubles_or_two_series_are_refused(phantoms: Path) -> None:
    files = [path.read_bytes() for path in sorted(phantoms.glob("*/ct-*.dcm"))]
    with pytest.raises(InputError, match="missing"):
        dicom_volume(files[:5] + files[6:])
    with pytest.raises(InputError, match="same place"):
        dicom_volume([*files, files[0]])
    with pytest.raises(InputError, match="at least two"):
        dicom_volume(files[:1])
    with pytest.raises(InputError, match="2 series"):
        dicom_volume([*files, next(phantoms.glob("*/multi-frame.dcm")).read_bytes()])


def test_nifti_slices_are_upright_and_share_one_range() -> None:
    values = np.zeros((20, 24, 18), np.int16)  # x to the right, y to the front, z to the head
    values[15:, :, :] = 1000  # the patient's right
    values[:, 20:, :] += 500  # front
    values[..., 17] += 2000  # head
    data = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    pictures = list(read_pictures(data))
    assert len(pictures) == 18
    first = pictures[0].unit
    assert first.shape == (24, 20)
    assert first[12, 0] > first[12, -1], "the patient's right is on the left of the picture"
    assert first[0, 10] > first[-1, 10], "the front is above"
    assert pictures[17].unit.min() > first.min(), "the head comes last, in the same range of values"
    windowed = next(read_pictures(data, ReadOptions(window=(0.0, 1000.0)))).unit
    assert windowed.max() == 1.0 and windowed[12, -1] == 0.0


def test_what_is_wrong_with_a_nifti_file_is_told() -> None:
    import gzip

    def reason(data: bytes) -> RejectReason:
        with pytest.raises(ImageRejected) as caught:
            list(read_pictures(data))
        return caught.value.reason

    noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    whole = nibabel.Nifti1Image(noise, np.eye(4)).to_bytes()
    assert reason(whole[:-1000]) == RejectReason.TRUNCATED
    assert reason(gzip.compress(whole)[:-1000]) == RejectReason.TRUNCATED
    assert reason(gzip.compress(b"something else" * 100)) == RejectReason.NOT_AN_IMAGE
    time_series = nibabel.Nifti1Image(np.zeros((5, 5, 5, 4), np.int16), np.eye(4)).to_bytes()
    assert reason(time_series) == RejectReason.UNSUPPORTED_ENCODING
    not_finite = nibabel.Nifti1Image(np.full((20, 20, 20), np.nan, np.float32), np.eye(4)).to_bytes()
    assert reason(not_finite) == RejectReason.DAMAGED


def test_patch_sets_of_every_shape_are_read_and_others_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def packed(**arrays: object) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    flat = rng.integers(0, 256, (3, 20, 24), dtype=np.uint8)
    cubes = rng.integers(0, 256, (2, 21, 21, 21), dtype=np.uint8)
    colour = rng.integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal([p.pixels for p in read_pictures(packed(images=flat, labels=np.arange(3)))], flat)
    np.testing.assert_array_equal([p.pixels for p in read_pictures(packed(images=cubes))], cubes[:, 10])
    views = [p.pixels for p in read_pictures(packed(images=cubes), ReadOptions(orthogonal=True))]
    np.testing.assert_array_equal(views[1], np.stack([cubes[1, 10], cubes[1, :, 10], cubes[1, :, :, 10]], -1))
    np.testing.assert_array_equal([p.pixels for p in read_pictures(packed(images=colour))], colour)
    hounsfield = rng.uniform(-2000, 1000, (2, 20, 20)).astype(np.float32)
    shown = next(read_pictures(packed(images=hounsfield), ReadOptions(window=(-1350.0, 150.0)))).pixels
    np.testing.assert_allclose(shown, np.clip((hounsfield[0] + 1350) / 1500, 0, 1), atol=1e-6)

    for data, reason in (
        (packed(others=flat), RejectReason.NOT_AN_IMAGE),
        (packed(images=np.array([{"a": 1}], dtype=object)), RejectReason.DAMAGED),  # a pickle
        (packed(images=flat[0]), RejectReason.UNSUPPORTED_ENCODING),
        (packed(images=flat)[:-30], RejectReason.DAMAGED),
    ):
        with pytest.raises(ImageRejected) as caught:
            list(read_pictures(data))
        assert caught.value.reason == reason
    monkeypatch.setattr("aiseeme_models.images.patch_sets.MAX_UNPACKED", 1000)
    with pytest.raises(ImageRejected) as caught:
        list(read_pictures(packed(images=flat)))
    assert caught.value.reason == RejectReason.TOO_LARGE


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seriesuid,x,y\n1.2,1,2\n", ["z, y, x", "seriesuid, x, y"]),
        ("name,z,y,x\n1.2,1,2,3\n", ["seriesuid"]),
        ("seriesuid,z,y,x\n1.2,1,2,three\n", ["line 2", "numbers"]),
        ("seriesuid,z,y,x\n1.2,1,2,3\n1.2,1,2,nan\n", ["line 3", "finite"]),
        ("seriesuid,z,y,x\n", ["no line"]),
    ],
)
def test_mistakes_in_a_list_of_nodules_are_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_nodules(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_plain_coordinates_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("seriesuid,z,y,x,malignancy\n1.2,10,-20,30.5,4\n")
    (nodule,) = read_nodules(path)["1.2"]
    assert (nodule.place, dict(nodule.columns)) == ((10.0, -20.0, 30.5), {"malignancy": "4"})
