"""Defects that a reviewer found once, each with what should happen."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from aiseeme_models.errors import InputError
from aiseeme_models.images.cache import ImageCache
from aiseeme_models.images.decode_pool import DecodeLimits, DecodePool, DecodeTask
from aiseeme_models.images.nodules import read_nodules
from aiseeme_models.images.phantom_intake import NODULES, write_mixed_phantoms
from aiseeme_models.images.pipeline import Pipeline
from aiseeme_models.images.presets import ImageOptions
from aiseeme_models.images.rejection import RejectReason
from client.nodule_patches import write_patches
from client.scanning import scan
from client.site_home import SiteHome
from client.site_key import SiteKey

PIPELINE = Pipeline(channels=3, fit="crop", size=16)
KEY = SiteKey(bytes(32))


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)


def preset(name: str, size: int = 24) -> Pipeline:
    return ImageOptions(preset=name, size=size).pipeline


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return SiteHome(tmp_path / "home")


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ct")
    write_mixed_phantoms(folder, seed=0)
    return folder


def test_a_link_that_goes_round_in_circles_costs_itself_only(tmp_path: Path, home: SiteHome) -> None:
    for number in range(12):
        picture(tmp_path / "site" / f"{number:02d}.png", number)
    (tmp_path / "site" / "05-loop").symlink_to("05-loop")
    done = scan(tmp_path / "site", home, PIPELINE)
    assert len(done.rows) == 12
    assert [(item.file, item.reason) for item in done.left_out] == [("05-loop", RejectReason.UNREADABLE)]


def test_copies_are_found_whatever_presets_came_before(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "cubes"
    folder.mkdir()
    cubes = np.random.default_rng(0).integers(0, 256, (4, 21, 21, 21), dtype=np.uint8)
    for name in ("a.npz", "b.npz"):
        np.savez(folder / name, images=cubes)
    np.savez_compressed(folder / "c.npz", images=cubes)
    for name in ("ct-lung", "ct-nodule", "ct-lung", "dermoscopy", "ct-nodule"):
        done = scan(folder, SiteHome(home.folder), preset(name))
        assert {row.file for row in done.rows} == {"a.npz"}, name
        assert done.reasons == {"duplicate": 8}, name


def test_an_inverted_copy_is_found_whatever_presets_came_before(tmp_path: Path, home: SiteHome, ct: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    header = pydicom.dcmread(next(ct.glob("*/monochrome1.dcm")))
    values = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    header.Rows, header.Columns, header.BitsAllocated, header.BitsStored, header.HighBit = 40, 40, 8, 8, 7
    header.PixelData = values.tobytes()
    header.save_as(folder / "a.dcm")
    Image.fromarray(255 - values).save(folder / "b.png")
    for name in ("dermoscopy", "ct-lung", "chest-xray", "dermoscopy"):
        assert scan(folder, SiteHome(home.folder), preset(name)).reasons == {"duplicate": 1}, name


def test_what_is_blank_or_impossible_to_one_preset_is_tried_again_with_another(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.savez(folder / "flat.npz", images=rng.uniform(5000, 9000, (2, 20, 20)).astype(np.float32))  # above any window
    np.savez(folder / "oblong.npz", images=rng.integers(0, 256, (2, 20, 22, 24), dtype=np.uint8))
    picture(folder / "1.png", 1)
    done = scan(folder, home, preset("ct-nodule"))
    assert done.reasons == {"near-blank": 2, "unsupported-encoding": 1}
    done = scan(folder, SiteHome(home.folder), preset("chest-xray"))
    assert (len(done.rows), done.reasons) == (5, {})
    opened = ImageCache(home.store, preset("chest-xray")).open([row.content for row in done.rows])
    assert len(opened) == 5
    assert scan(folder, SiteHome(home.folder), preset("chest-xray")).decoded == 0


@pytest.mark.parametrize("bits", ["99999999999999999999", "-3"])
def test_an_absurd_number_in_a_header_costs_its_file(tmp_path: Path, home: SiteHome, ct: Path, bits: str) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    picture(folder / "1.png", 1)
    header = pydicom.dcmread(next(ct.glob("*/two-windows.dcm")))
    rows, columns = header.Rows, header.Columns
    del header.PixelData, header.BitsStored
    header.BitsAllocated = 32
    header.add_new(0x7FE00008, "OF", np.zeros((rows, columns), "<f4").tobytes())  # FloatPixelData
    header.add_new(0x00280101, "IS", bits)
    header.save_as(folder / "f.dcm")
    done = scan(folder, home, PIPELINE)
    assert [row.file for row in done.rows] == ["1.png"] and done.reasons == {"damaged": 1}


def patches(ct: Path, tmp_path: Path, table: str, **changes: object):
    listed = tmp_path / "list.csv"
    listed.write_text(table)
    options = {"size": 16, "side_mm": 32.0, "window": "lung"} | changes
    return write_patches(ct, listed, tmp_path / "out", KEY, **options)


def test_a_list_s_own_ids_and_reserved_columns_never_reach_a_patch_set(ct: Path, tmp_path: Path) -> None:
    lines = (ct / NODULES).read_text().splitlines()
    added = [f"{line},Mueller,Erika,7,3,x.png,1" for line in lines[1:]]
    patches(ct, tmp_path, "\n".join([lines[0] + ",patient_id,name,index,split_point,file,label", *added]))
    text = (tmp_path / "out" / "labels.csv").read_text()
    assert "Mueller" not in text and "Erika" not in text and "x.png" not in text
    rows = list(csv.DictReader(text.splitlines()))
    assert list(rows[0]) == ["index", "patient_id", "seriesuid", "split_point", "diameter_mm", "label"]
    assert [row["index"] for row in rows] == ["0", "1", "2"]
    assert len({row["split_point"] for row in rows}) == 1


def test_places_outside_a_scan_and_impossible_sides_are_refused(ct: Path, tmp_path: Path) -> None:
    series = (ct / NODULES).read_text().splitlines()[1].split(",")[0]
    with pytest.raises(InputError, match="outside its scan"):
        patches(ct, tmp_path, f"seriesuid,z,y,x\n{series},9000,9000,9000\n")
    with pytest.raises(InputError, match="above 0"):
        patches(ct, tmp_path, f"seriesuid,z,y,x\n{series},0,0,0\n", side_mm=float("nan"))
    (tmp_path / "short.csv").write_text("z,y,x,seriesuid\n1,2,3\n")
    with pytest.raises(InputError, match="line 2: 'seriesuid' is empty"):
        read_nodules(tmp_path / "short.csv")


@pytest.mark.parametrize("damage", ["Rows", "PixelSpacing", "pixels", "zero"])
def test_a_damaged_slice_leaves_its_series_out_with_a_reason(ct: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for number, path in enumerate(sorted(ct.glob("*/ct-*.dcm"))):
        header = pydicom.dcmread(path)
        if number == 3:
            if damage == "pixels":
                header.PixelData = header.PixelData[:100]
            elif damage == "Rows":
                del header.Rows
            else:
                header.PixelSpacing = 1.5 if damage == "PixelSpacing" else [0, 0]
        header.save_as(folder / f"{number}.dcm")
    with pytest.raises(InputError, match="no nodule could be cut out") as caught:
        patches(folder, tmp_path, (ct / NODULES).read_text())
    assert str(tmp_path / "damaged") in str(caught.value) and "object has no" not in str(caught.value)


def test_the_time_limit_of_a_file_holds_over_all_of_its_images(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("aiseeme_models.images.decode_pool._MOST_SLOTS", 4)
    np.savez(tmp_path / "many.npz", images=np.random.default_rng(0).integers(0, 256, (60_000, 16, 16), dtype=np.uint8))
    with DecodePool(Pipeline(3, "pad", 256), DecodeLimits(seconds=1, workers=1)) as pool:
        (outcome,) = pool.decode([DecodeTask(0, tmp_path / "many.npz")], lambda content, image: None)
    assert outcome.reason == RejectReason.TIMED_OUT


def test_a_promoted_copy_is_cached_at_once(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "site"
    picture(folder / "a.png", 1)
    Image.open(folder / "a.png").save(folder / "b.tif")
    scan(folder, home, PIPELINE)
    other = Pipeline(1, "pad", 32)
    scan(folder, SiteHome(home.folder), other)
    (folder / "a.png").unlink()
    done = scan(folder, SiteHome(home.folder), other)
    assert [row.file for row in done.rows] == ["b.tif"]
    assert ImageCache(home.store, other).missing([done.rows[0].content]) == set()


def test_a_placeholder_in_labels_csv_names_nobody(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "site"
    for number in range(4):
        picture(folder / f"{number}.png", number)
    (folder / "labels.csv").write_text("file,patient_id\n" + "".join(f"{n}.png,n/a\n" for n in range(4)))
    assert len({row.group for row in scan(folder, home, PIPELINE).rows}) == 4


def test_a_new_key_is_refused_before_it_writes_anything(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "site"
    picture(folder / "1.png", 1)
    scan(folder, home, PIPELINE)
    right = (home.folder / "site.key").read_text()
    (home.folder / "site.key").unlink()
    with pytest.raises(InputError, match="another site key"):
        scan(folder, SiteHome(home.folder), PIPELINE)
    (home.folder / "site.key").write_text(right)
    assert scan(folder, SiteHome(home.folder), PIPELINE).decoded == 0


def test_a_key_that_could_not_be_written_leaves_no_half_of_one(tmp_path: Path, monkeypatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.site_key.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        SiteKey.load_or_create(tmp_path / "site.key")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    SiteKey.load_or_create(tmp_path / "site.key")
    assert [path.name for path in tmp_path.iterdir()] == ["site.key"]


def test_scans_that_start_a_home_together_agree(tmp_path: Path) -> None:
    import subprocess
    import sys

    for number in range(3):
        picture(tmp_path / "site" / f"{number}.png", number)
    code = "from client.cli import main; main()"
    for attempt in range(3):
        arguments = [
            "scan",
            str(tmp_path / "site"),
            "--home",
            str(tmp_path / f"home-{attempt}"),
            "--size",
            "16",
            "--json",
        ]
        command = [sys.executable, "-c", code, *arguments]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        for process in both:
            out, errors = process.communicate(timeout=120)
            assert (process.returncode, errors) == (0, ""), errors
            assert '"images": 3' in out


def test_a_busy_or_read_only_catalogue_is_not_called_damaged(tmp_path: Path, home: SiteHome, monkeypatch) -> None:
    import sqlite3

    from client import catalogue

    folder = tmp_path / "site"
    picture(folder / "1.png", 1)
    scan(folder, home, PIPELINE)
    monkeypatch.setattr(catalogue, "_BUSY_TIMEOUT_S", 0.1)
    busy = sqlite3.connect(home.folder / "catalogue.sqlite", isolation_level=None)
    busy.execute("BEGIN IMMEDIATE")
    with pytest.raises(InputError, match="cannot be used now: database is locked"):
        scan(folder, SiteHome(home.folder), PIPELINE)
    busy.execute("ROLLBACK")
    assert len(scan(folder, SiteHome(home.folder), PIPELINE).rows) == 1


def test_packs_of_the_other_setting_of_encryption_make_room(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "site"
    for number in range(10):
        picture(folder / f"{number}.png", number)
    home.folder.mkdir()
    settings = home.folder / "site.toml"
    size = 10 * 3 * 16 * 16 / 1e9
    settings.write_text(f"[cache]\nencrypt = true\nbudget_gb = {1.5 * size}\n")
    scan(folder, SiteHome(home.folder), PIPELINE)
    settings.write_text(f"[cache]\nbudget_gb = {1.5 * size}\n")
    assert len(scan(folder, SiteHome(home.folder), PIPELINE).rows) == 10
    assert list(home.folder.rglob("*.sealed")) == []


@pytest.mark.parametrize("content", ["{}", "[]", '{"hashes": 7, "bytes": 1}', "null"])
def test_a_pack_s_index_of_another_shape_is_as_good_as_missing(tmp_path: Path, home: SiteHome, content: str) -> None:
    folder = tmp_path / "site"
    picture(folder / "1.png", 1)
    scan(folder, home, PIPELINE)
    for index in home.folder.rglob("pack-*.json"):
        index.write_text(content)
    assert scan(folder, SiteHome(home.folder), PIPELINE).decoded == 1


def test_the_site_s_own_folders_are_no_images(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    picture(folder / "1.png", 1)
    with pytest.raises(InputError, match="is the site's home"):
        scan(folder, SiteHome(folder), PIPELINE)
    home = SiteHome(tmp_path / "home")
    home.folder.mkdir()
    (home.folder / "site.toml").write_text(f'[cache]\nfolder = "{folder}/deep/cache"\n')
    for _ in range(2):
        done = scan(folder, home, PIPELINE)
        assert (len(done.rows), done.left_out) == (1, ())
    assert (folder / "deep" / "cache").stat().st_mode & 0o077 == 0
