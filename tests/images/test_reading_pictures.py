"""PNG, JPEG and TIFF are read upright, in [0, 1]; what cannot be read has one reason and no private text."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from aiseeme_models.images.reading import ImageRejected, RejectReason, read_pictures, read_pixels


@pytest.fixture
def colour() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def rejection(path: Path) -> RejectReason:
    with pytest.raises(ImageRejected) as caught:
        read_pixels(path)
    assert str(caught.value) == caught.value.reason.value, "nothing but the reason is in the text"
    return caught.value.reason


def test_png_is_divided_by_255_whatever_its_name(colour: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(colour).save(tmp_path / "a.dcm", format="PNG")
    np.testing.assert_allclose(read_pixels(tmp_path / "a.dcm"), colour / 255, atol=1e-6)


def test_exif_orientation_is_applied(colour: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(colour).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(read_pixels(tmp_path / "a.png"), np.rot90(colour, -1) / 255, atol=1e-6)


def test_alpha_is_dropped_and_palettes_are_expanded(colour: np.ndarray, tmp_path: Path) -> None:
    alpha = np.dstack([colour, np.zeros(colour.shape[:2], np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_allclose(read_pixels(tmp_path / "alpha.png"), colour / 255, atol=1e-6)
    palette = Image.fromarray(colour).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_allclose(
        read_pixels(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")) / 255, atol=1e-6
    )


def test_grey_stays_one_channel(colour: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(colour[..., 0]).save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png").shape == (24, 40)


def test_sixteen_bits_are_stretched_and_white_is_zero_tiffs_inverted(tmp_path: Path) -> None:
    deep = np.linspace(100, 4095, 24 * 40).reshape(24, 40).astype(np.uint16)
    expected = (deep - deep.min()) / np.ptp(deep)
    Image.fromarray(deep).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_pixels(tmp_path / "a.png"), expected, atol=1e-6)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    Image.fromarray(deep).save(tmp_path / "a.tif", tiffinfo=tags)
    with Image.open(tmp_path / "a.tif") as written:
        assert written.tag_v2[262] == 0
    np.testing.assert_allclose(read_pixels(tmp_path / "a.tif"), 1 - expected, atol=1e-6)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_truncated_files_are_rejected(colour: np.ndarray, tmp_path: Path, name: str) -> None:
    Image.fromarray(np.tile(colour, (8, 8, 1))).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    assert rejection(tmp_path / name) in (RejectReason.TRUNCATED, RejectReason.DAMAGED)


def test_each_mistake_has_its_reason(colour: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    assert rejection(tmp_path / "empty.png") == RejectReason.EMPTY
    (tmp_path / "notes.png").write_text("patient John Doe, born 1950, has three lesions on the left arm")
    assert rejection(tmp_path / "notes.png") == RejectReason.NOT_AN_IMAGE
    assert rejection(tmp_path / "nothing.png") == RejectReason.UNREADABLE
    monkeypatch.setattr("aiseeme_models.images.pillow_files.MAX_PIXELS", 900)
    Image.fromarray(colour).save(tmp_path / "bomb.png")
    assert rejection(tmp_path / "bomb.png") == RejectReason.TOO_LARGE


def test_every_page_of_a_tiff_is_a_picture_and_small_ones_are_told(colour: np.ndarray, tmp_path: Path) -> None:
    pages = [Image.fromarray(colour), Image.fromarray(colour[:10, ::-1])]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    pictures = list(read_pictures((tmp_path / "pages.tif").read_bytes()))
    assert [picture.findings for picture in pictures] == [(), (RejectReason.TOO_SMALL,)]
    np.testing.assert_array_equal(pictures[0].pixels, colour)
    np.testing.assert_array_equal(pictures[1].pixels, colour[:10, ::-1])


@pytest.mark.filterwarnings("ignore")  # pydicom quotes the bytes it cannot make sense of
def test_random_bytes_behind_every_magic_never_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    magics = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"\0" * 128 + b"DICM", b"\x08\x00\x05\x00CS"]
    for number in range(100):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(magics[number % len(magics)] + rng.bytes(int(rng.integers(0, 3000))))
        assert isinstance(rejection(path), RejectReason)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_unreadable(colour: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(colour).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    assert rejection(tmp_path / "a.png") == RejectReason.UNREADABLE
