"""A scan finds what can be used, and says why of everything else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aiseeme_models.errors import InputError
from aiseeme_models.images.cache import ImageCache
from aiseeme_models.images.presets import ImageOptions
from aiseeme_models.images.reading import RejectReason
from client.catalogue import scan


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache", ImageOptions(preset="dermoscopy", size=16))


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)


def test_good_images_are_kept_among_bad_ones(tmp_path: Path, cache: ImageCache) -> None:
    folder = tmp_path / "site"
    for number in range(4):
        picture(folder / f"{number}.png", number)
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    data = (folder / "1.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "notes.txt").write_text("John Doe")
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    catalogue = scan(folder, cache)
    assert [row.file for row in catalogue.rows] == ["0.png", "1.png", "2.png", "3.png"]
    reasons = {item.file: item.reason for item in catalogue.rejected}
    assert reasons.pop("cut.png") in (RejectReason.TRUNCATED, RejectReason.DAMAGED)
    assert reasons == {
        "copy.png": RejectReason.DUPLICATE,
        "notes.txt": RejectReason.NOT_AN_IMAGE,
        "pipe.png": RejectReason.NOT_AN_IMAGE,
        "gone.png": RejectReason.UNREADABLE,
    }
    assert all("Doe" not in item.detail and str(tmp_path) not in item.detail for item in catalogue.rejected)
    summary = catalogue.summary()
    assert summary["images"] == 4 and sum(summary["rejected"].values()) == 5
    assert len(cache.open([row.content for row in catalogue.rows])) == 4


def test_a_folder_that_cannot_be_listed_is_said_to_be_unreadable(
    tmp_path: Path, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site"
    picture(folder / "1.png", 1)
    picture(folder / "deep/locked/2.png", 2)
    scandir = os.scandir

    def refuse(path: str) -> object:  # root may list every folder, so its mode would not do
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    catalogue = scan(folder, cache)
    assert [row.file for row in catalogue.rows] == ["1.png"]
    assert [(item.file, item.reason) for item in catalogue.rejected] == [("deep/locked/", RejectReason.UNREADABLE)]
    assert catalogue.summary()["rejected"] == {"unreadable": 1}


def test_the_summary_says_nothing_of_splits_that_only_a_configuration_can_tell(
    tmp_path: Path, cache: ImageCache
) -> None:
    picture(tmp_path / "site/1.png", 1)
    summary = scan(tmp_path / "site", cache).summary()
    assert summary == {"images": 1, "groups": 1, "labelled": 0, "rejected": {}, "missing": 0}


def test_only_the_images_folder_is_read_where_there_is_one(tmp_path: Path, cache: ImageCache) -> None:
    picture(tmp_path / "site/images/a/1.png", 1)
    picture(tmp_path / "site/elsewhere.png", 2)
    picture(tmp_path / "site/masks/1.png", 3)
    assert [row.file for row in scan(tmp_path / "site", cache).rows] == ["a/1.png"]


def test_masks_hidden_files_and_labels_are_no_images(tmp_path: Path, cache: ImageCache) -> None:
    folder = tmp_path / "site"
    for number, name in enumerate(["1.png", "deep/2.png", "masks/1.png", "deep/masks/2.png", ".x.png", ".h/1.png"]):
        picture(folder / name, number)
    (folder / "labels.csv").write_text("file,label\n1.png,nv\n")
    catalogue = scan(folder, cache)
    assert [row.file for row in catalogue.rows] == ["1.png", "deep/2.png"]
    assert catalogue.rejected == ()


def test_rows_carry_labels_and_groups(tmp_path: Path, cache: ImageCache) -> None:
    folder = tmp_path / "site"
    for number in range(4):
        picture(folder / "images" / f"{number}.png", number)
    (folder / "labels.csv").write_text(
        "file,label,patient_id,sex\n0.png,nv,p1,F\nimages/1.png,mel,p1,F\n2.png,,,M\ngone.png,nv,p9,F\n"
    )
    catalogue = scan(folder, cache)
    rows = {row.file: row for row in catalogue.rows}
    assert {file: (row.group, row.label) for file, row in rows.items()} == {
        "0.png": ("p1", "nv"),
        "1.png": ("p1", "mel"),
        "2.png": ("2.png", None),
        "3.png": ("3.png", None),
    }
    assert rows["2.png"].columns["sex"] == "M" and dict(rows["3.png"].columns) == {}
    assert catalogue.missing == ("gone.png",)


@pytest.mark.parametrize("files", [{}, {"a.txt": b"text", "b.png": b""}])
def test_a_folder_without_an_image_is_a_mistake(tmp_path: Path, cache: ImageCache, files: dict[str, bytes]) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match="no usable image") as caught:
        scan(folder, cache)
    assert str(folder) in str(caught.value)


def test_no_folder_is_a_mistake(tmp_path: Path, cache: ImageCache) -> None:
    with pytest.raises(InputError, match="no such folder"):
        scan(tmp_path / "nowhere", cache)
