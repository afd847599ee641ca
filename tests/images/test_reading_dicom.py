"""DICOM files are shown as a radiologist would see them, whatever the device wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import UltrasoundImageStorage

from aiseeme_models.images.reading import ImageRejected, RejectReason, read_pictures, read_pixels

Write = Callable[..., Path]


def pydicom_shown(path: Path) -> np.ndarray:
    """pydicom's own pipeline, in units of its output range, MONOCHROME1 not inverted."""
    dataset = pydicom.dcmread(path)
    return apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)


def rejection(path: Path) -> RejectReason:
    with pytest.raises(ImageRejected) as caught:
        read_pixels(path)
    assert str(caught.value) == caught.value.reason.value, "nothing but the reason is in the text"
    return caught.value.reason


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(1200.0, 1000.0), (900.5, 333.0)])
def test_window_equals_pydicom(
    write_dicom: Write, radiograph: np.ndarray, function: str, center: float, width: float
) -> None:
    path = write_dicom(
        radiograph,
        WindowCenter=center,
        WindowWidth=width,
        VOILUTFunction=function,
        RescaleSlope=2,
        RescaleIntercept=-500,
    )
    expected = (pydicom_shown(path) + 500) / (2 * 65535)
    assert 0.01 < expected.mean() < 0.99
    np.testing.assert_allclose(read_pixels(path), expected, atol=1e-5)


def test_voi_lut_equals_pydicom_and_wins_over_a_window(write_dicom: Write, radiograph: np.ndarray) -> None:
    lut = Dataset()
    lut.LUTDescriptor = [3000, 0, 12]
    lut.LUTData = (np.sqrt(np.linspace(0, 1, 3000)) * 4095).astype("<u2").tobytes()
    lut["LUTData"].VR = "OW"
    path = write_dicom(radiograph, VOILUTSequence=[lut], WindowCenter=100, WindowWidth=50)
    np.testing.assert_allclose(read_pixels(path), pydicom_shown(path) / 4095, atol=1e-6)


def test_an_empty_voi_lut_is_no_voi_lut(write_dicom: Write, radiograph: np.ndarray) -> None:
    lut = Dataset()
    lut.LUTDescriptor = None
    path = write_dicom(radiograph, VOILUTSequence=[lut], ModalityLUTSequence=[], WindowCenter=1200, WindowWidth=1000)
    plain = write_dicom(radiograph, "plain.dcm", WindowCenter=1200, WindowWidth=1000)
    np.testing.assert_array_equal(read_pixels(path), read_pixels(plain))


def test_monochrome1_is_inverted_and_upright_unlike_monai(write_dicom: Write, radiograph: np.ndarray) -> None:
    from monai.data import PydicomReader

    ours = read_pixels(write_dicom(radiograph, "one.dcm", PhotometricInterpretation="MONOCHROME1"))
    upright = (radiograph - radiograph.min()) / np.ptp(radiograph)
    np.testing.assert_allclose(ours, 1 - upright, atol=1e-6)

    reader = PydicomReader()
    theirs, _ = reader.get_data(reader.read(str(write_dicom(radiograph, PhotometricInterpretation="MONOCHROME1"))))
    assert theirs.shape == radiograph.T.shape, "the trap: MONAI's default is transposed"
    np.testing.assert_array_equal(theirs, radiograph.T)  # and not inverted


def test_signed_rescaled_values_use_a_given_window_in_hounsfield_units(write_dicom: Write) -> None:
    stored = np.linspace(-200, 1600, 32 * 32).reshape(32, 32).astype(np.int16)
    path = write_dicom(stored, RescaleIntercept=-1024, RescaleSlope=1, WindowCenter=40, WindowWidth=80)
    shown = read_pixels(path, (-1000.0, 400.0))
    np.testing.assert_allclose(shown, np.clip((stored - 1024.0 + 1000) / 1400, 0, 1), atol=1e-6)


def test_without_a_window_padding_does_not_stretch_the_range(write_dicom: Write, radiograph: np.ndarray) -> None:
    image = radiograph.astype(np.int16)
    padded = image.copy()
    padded[:3] = -2000
    path = write_dicom(padded, PixelPaddingValue=-2000)
    rest = padded[3:].astype(float)
    np.testing.assert_allclose(read_pixels(path)[3:], (rest - rest.min()) / np.ptp(rest), atol=1e-6)
    assert (read_pixels(path)[:3] == 0).all()


def test_eight_bit_grey_and_rgb_are_divided_by_255(write_dicom: Write) -> None:
    grey = np.random.default_rng(0).integers(0, 100, (20, 30), dtype=np.uint8)
    colour = np.random.default_rng(1).integers(0, 100, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_allclose(read_pixels(write_dicom(grey, "g")), grey / 255, atol=1e-6)
    np.testing.assert_allclose(read_pixels(write_dicom(colour, "c")), colour / 255, atol=1e-6)


def test_palette_becomes_rgb(write_dicom: Write) -> None:
    index = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    ramps = [np.arange(256), np.arange(256)[::-1], np.full(256, 7)]
    tags: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, ramp in zip(("Red", "Green", "Blue"), ramps, strict=True):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = (ramp * 257).astype("<u2").tobytes()
    expected = np.stack([ramp[index] for ramp in ramps], -1) / 255
    np.testing.assert_allclose(read_pixels(write_dicom(index, **tags)), expected, atol=1e-6)


def test_a_file_without_preamble_and_meta_is_read(write_dicom: Write, radiograph: np.ndarray, tmp_path: Path) -> None:
    path = write_dicom(radiograph)
    dataset = pydicom.dcmread(path)
    bare = tmp_path / "bare"
    del dataset.file_meta, dataset.preamble
    pydicom.dcmwrite(bare, dataset, implicit_vr=True, little_endian=True)
    assert bare.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(read_pixels(bare), read_pixels(path))


def test_each_mistake_has_its_reason(write_dicom: Write, radiograph: np.ndarray, tmp_path: Path) -> None:
    whole = write_dicom(radiograph, "whole.dcm")
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(whole.read_bytes()[:-500])
    assert rejection(cut) == RejectReason.TRUNCATED
    short = write_dicom(radiograph, "short.dcm", PixelData=radiograph.tobytes()[:-500])
    assert rejection(short) == RejectReason.TRUNCATED
    assert rejection(write_dicom(radiograph, "bomb.dcm", Rows=60000, Columns=60000)) == RejectReason.TOO_LARGE
    dataset = pydicom.dcmread(whole)
    del dataset.PixelData
    dataset.save_as(tmp_path / "report.dcm")
    assert rejection(tmp_path / "report.dcm") == RejectReason.NO_PIXELS


def test_every_frame_is_a_picture_and_small_ones_are_told(write_dicom: Write, radiograph: np.ndarray) -> None:
    both = np.stack([radiograph, radiograph[::-1]])
    path = write_dicom(radiograph, "frames.dcm", NumberOfFrames=2, PixelData=both.tobytes())
    pictures = list(read_pictures(path.read_bytes()))
    assert [picture.frame for picture in pictures] == [0, 1]
    np.testing.assert_array_equal(pictures[0].unit, pictures[1].unit[::-1])
    (small,) = read_pictures(write_dicom(radiograph[:8, :8], "small.dcm").read_bytes())
    assert RejectReason.TOO_SMALL in small.findings


def test_enhanced_frames_have_windows_of_their_own(write_dicom: Write, radiograph: np.ndarray) -> None:
    def groups(center: float | None, intercept: float | None) -> Dataset:
        group = Dataset()
        if center is not None:
            window = Dataset()
            window.WindowCenter, window.WindowWidth = center, 1000
            group.FrameVOILUTSequence = [window]
        if intercept is not None:
            transformation = Dataset()
            transformation.RescaleSlope, transformation.RescaleIntercept = 1, intercept
            group.PixelValueTransformationSequence = [transformation]
        return group

    path = write_dicom(
        radiograph,
        NumberOfFrames=2,
        PixelData=radiograph.tobytes() * 2,
        SharedFunctionalGroupsSequence=[groups(800, 100)],
        PerFrameFunctionalGroupsSequence=[groups(None, None), groups(1500, 300)],
    )
    for picture, center, intercept in zip(read_pictures(path.read_bytes()), (800, 1500), (100, 300), strict=True):
        plain = write_dicom(
            radiograph, WindowCenter=center, WindowWidth=1000, RescaleSlope=1, RescaleIntercept=intercept
        )
        np.testing.assert_allclose(picture.unit, read_pixels(plain), atol=1e-6)


def test_a_range_of_padding_does_not_stretch_the_values(write_dicom: Write, radiograph: np.ndarray) -> None:
    padded = radiograph.astype(np.int16)
    padded[:3], padded[3:5] = -2000, -1990
    path = write_dicom(padded, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990)
    rest = padded[5:].astype(float)
    np.testing.assert_allclose(read_pixels(path)[5:], (rest - rest.min()) / np.ptp(rest), atol=1e-6)


def test_outside_the_regions_of_an_ultrasound_image_all_is_black(write_dicom: Write) -> None:
    frame = np.random.default_rng(0).integers(50, 200, (60, 80), dtype=np.uint8)
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 10, 20
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 69, 49
    tags = {"Modality": "US", "SOPClassUID": UltrasoundImageStorage}
    (known,) = read_pictures(write_dicom(frame, "a", **tags, SequenceOfUltrasoundRegions=[region]).read_bytes())
    expected = np.zeros_like(frame)
    expected[20:50, 10:70] = frame[20:50, 10:70]
    np.testing.assert_array_equal(known.pixels, expected)
    assert RejectReason.ULTRASOUND_TEXT not in known.findings
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 79, 59
    for other in ({}, {"SequenceOfUltrasoundRegions": [region]}):  # none, and one that fills the frame
        (unknown,) = read_pictures(write_dicom(frame, "b", **tags, **other).read_bytes())
        assert RejectReason.ULTRASOUND_TEXT in unknown.findings


def test_what_is_kept_of_a_header_is_never_its_free_text(write_dicom: Write, radiograph: np.ndarray) -> None:
    path = write_dicom(radiograph, Modality="DOE JOHN", PatientID=" 4711 ", StudyInstanceUID="1.2.3")
    (picture,) = read_pictures(path.read_bytes())
    assert (picture.facts.modality, picture.facts.encoding) == ("OTHER", "Explicit VR Little Endian")
    assert (picture.subject.patient, picture.subject.study) == ("4711", "1.2.3")


def test_equal_images_have_equal_hashes_in_every_format(
    write_dicom: Write, radiograph: np.ndarray, tmp_path: Path
) -> None:
    colour = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "c.png")
    Image.fromarray(radiograph).save(tmp_path / "d.png")
    Image.fromarray(radiograph).save(tmp_path / "d.tif")
    inverted = write_dicom(255 - colour[..., 0], "m1", PhotometricInterpretation="MONOCHROME1")
    Image.fromarray(colour[..., 0]).save(tmp_path / "g.png")
    hashes = {
        name: next(read_pictures(path.read_bytes())).pixel_hash
        for name, path in {
            "colour dicom": write_dicom(colour, "c"),
            "colour png": tmp_path / "c.png",
            "deep dicom": write_dicom(radiograph, "d"),
            "signed dicom": write_dicom(radiograph.astype(np.int16), "s"),
            "deep png": tmp_path / "d.png",
            "deep tiff": tmp_path / "d.tif",
            "inverted dicom": inverted,
            "grey png": tmp_path / "g.png",
        }.items()
    }
    assert hashes["colour dicom"] == hashes["colour png"]
    assert len({hashes[name] for name in ("deep dicom", "signed dicom", "deep png", "deep tiff")}) == 1
    assert hashes["inverted dicom"] == hashes["grey png"]
    assert len(set(hashes.values())) == 3
