"""A scan finds what can be used, says why of everything else, and does nothing twice."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aiseeme_models.errors import InputError
from aiseeme_models.images.cache import ImageCache
from aiseeme_models.images.phantom_intake import ACCEPTED, write_mixed_phantoms
from aiseeme_models.images.pipeline import Pipeline
from aiseeme_models.images.rejection import RejectReason
from client import scanning
from client.listing import list_images
from client.scanning import Scan, scan
from client.site_home import SiteHome

PIPELINE = Pipeline(channels=3, fit="crop", size=16)


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return SiteHome(tmp_path / "home")


def again(home: SiteHome) -> SiteHome:
    """The same home as another process would open it."""
    return SiteHome(home.folder)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)


def reasons(done: Scan) -> dict[str, RejectReason]:
    return {item.file: item.reason for item in done.left_out}


def test_good_images_are_kept_among_bad_ones(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "site"
    for number in range(4):
        picture(folder / f"{number}.png", number)
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    data = (folder / "1.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "notes.txt").write_text("John Doe")
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    done = scan(folder, home, PIPELINE)
    assert [row.file for row in done.rows] == ["0.png", "1.png", "2.png", "3.png"]
    assert reasons(done) == {
        "copy.png": RejectReason.DUPLICATE,
        "cut.png": RejectReason.TRUNCATED,
        "notes.txt": RejectReason.NOT_AN_IMAGE,
        "pipe.png": RejectReason.NOT_AN_IMAGE,
        "gone.png": RejectReason.UNREADABLE,
    }
    assert done.summary()["rejected"] == {"not-an-image": 2, "duplicate": 1, "truncated": 1, "unreadable": 1}
    assert len(ImageCache(home.store, PIPELINE).open([row.content for row in done.rows])) == 4


def test_every_case_of_the_mixed_phantoms_ends_as_it_should(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    expected = write_mixed_phantoms(folder, seed=3)
    assert len(expected) == len([path for path in folder.rglob("*") if path.is_file()]) > 70
    scan(folder, home, Pipeline(1, "pad", 48))
    wrong = []
    for image in list_images(home, folder):
        outcome = [ACCEPTED] if image.status == ACCEPTED else list(image.reasons)
        # Encodings of one drawing and the NIfTI copy of the CT series are duplicates of each other.
        if not set(outcome) & {*expected.pop(image.file, outcome), RejectReason.DUPLICATE}:
            wrong.append((image.file, image.frame, outcome))
    assert (wrong, expected) == ([], {})


def test_a_folder_that_cannot_be_listed_is_said_to_be_unreadable(
    tmp_path: Path, home: SiteHome, monkeypatch: pytest.MonkeyPatch
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
    done = scan(folder, home, PIPELINE)
    assert [row.file for row in done.rows] == ["1.png"]
    assert reasons(done) == {"deep/locked/": RejectReason.UNREADABLE}


def test_only_the_images_folder_is_read_where_there_is_one(tmp_path: Path, home: SiteHome) -> None:
    picture(tmp_path / "site/images/a/1.png", 1)
    picture(tmp_path / "site/elsewhere.png", 2)
    picture(tmp_path / "site/masks/1.png", 3)
    assert [row.file for row in scan(tmp_path / "site", home, PIPELINE).rows] == ["a/1.png"]


def test_masks_hidden_files_and_labels_are_no_images(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "site"
    for number, name in enumerate(["1.png", "deep/2.png", "masks/1.png", "deep/masks/2.png", ".x.png", ".h/1.png"]):
        picture(folder / name, number)
    (folder / "labels.csv").write_text("file,label\n1.png,nv\n")
    done = scan(folder, home, PIPELINE)
    assert [row.file for row in done.rows] == ["1.png", "deep/2.png"]
    assert done.left_out == ()


def test_the_site_s_own_home_is_no_part_of_the_images(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    picture(folder / "1.png", 1)
    home = SiteHome(folder / "deep" / "home")
    for _ in range(2):
        done = scan(folder, home, PIPELINE)
        assert ([row.file for row in done.rows], done.left_out) == (["1.png"], ())


def test_rows_carry_labels_and_groups(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "site"
    for number in range(4):
        picture(folder / "images" / f"{number}.png", number)
    (folder / "labels.csv").write_text(
        "file,label,patient_id,sex\n0.png,nv,p1,F\nimages/1.png,mel,p1,F\n2.png,,,M\ngone.png,nv,p9,F\n"
    )
    done = scan(folder, home, PIPELINE)
    rows = {row.file: row for row in done.rows}
    assert {file: row.label for file, row in rows.items()} == {
        "0.png": "nv",
        "1.png": "mel",
        "2.png": None,
        "3.png": None,
    }
    assert rows["0.png"].group == rows["1.png"].group
    assert len({row.group for row in done.rows}) == 3
    assert "p1" not in rows["0.png"].group
    assert rows["2.png"].columns["sex"] == "M" and dict(rows["3.png"].columns) == {}
    assert done.missing == ("gone.png",)


@pytest.mark.parametrize("files", [{}, {"a.txt": b"text", "b.png": b""}])
def test_a_folder_without_an_image_is_a_mistake(tmp_path: Path, home: SiteHome, files: dict[str, bytes]) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match="no usable image") as caught:
        scan(folder, home, PIPELINE)
    assert str(folder) in str(caught.value)


def test_no_folder_is_a_mistake(tmp_path: Path, home: SiteHome) -> None:
    with pytest.raises(InputError, match="no such folder"):
        scan(tmp_path / "nowhere", home, PIPELINE)


def test_what_is_unchanged_is_not_even_opened(tmp_path: Path, home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site"
    for number in range(5):
        picture(folder / f"{number}.png", number)
    (folder / "bad.png").write_bytes(b"no image at all")
    first = scan(folder, home, PIPELINE)
    assert (first.decoded, len(first.rows)) == (6, 5)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("aiseeme_models.images.decode_pool.DecodePool._start", never)
    monkeypatch.setattr(scanning, "read_bytes", never)
    second = scan(folder, again(home), PIPELINE)
    assert (second.decoded, second.rows, second.left_out) == (0, first.rows, first.left_out)


def test_changed_new_touched_and_vanished_files(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "site"
    for number in range(5):
        picture(folder / f"{number}.png", number)
    before = {row.file: row.content for row in scan(folder, home, PIPELINE).rows}
    picture(folder / "1.png", 77)  # changed
    os.utime(folder / "2.png", (1, 1))  # touched: the same content
    (folder / "3.png").unlink()
    picture(folder / "new.png", 78)
    done = scan(folder, again(home), PIPELINE)
    after = {row.file: row.content for row in done.rows}
    assert (done.decoded, done.vanished) == (2, 1)
    assert set(after) == {"0.png", "1.png", "2.png", "4.png", "new.png"}
    assert after["1.png"] != before["1.png"] and after["2.png"] == before["2.png"]
    assert [image.file for image in list_images(home, folder) if image.status == "vanished"] == ["3.png"]
    picture(folder / "3.png", 3)
    back = scan(folder, again(home), PIPELINE)
    assert (back.vanished, {row.file for row in back.rows}) == (0, {*after, "3.png"})
    assert scan(folder, again(home), PIPELINE).decoded == 0


def test_another_pipeline_decodes_again_and_a_lost_cache_is_made_anew(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "site"
    for number in range(3):
        picture(folder / f"{number}.png", number)
    scan(folder, home, PIPELINE)
    other = Pipeline(1, "pad", 24)
    assert scan(folder, again(home), other).decoded == 3
    shutil.rmtree(home.folder / "cache" / PIPELINE.key)
    assert scan(folder, again(home), other).decoded == 0
    done = scan(folder, again(home), PIPELINE)
    assert (done.decoded, len(done.rows)) == (3, 3)


def test_the_first_of_equal_images_counts_and_a_copy_takes_its_place(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "site"
    for number in range(2):
        picture(folder / f"{number}.png", number)
    Image.open(folder / "1.png").save(folder / "a.tif")
    done = scan(folder, home, PIPELINE)
    assert [row.file for row in done.rows] == ["0.png", "1.png"]
    (folder / "1.png").unlink()
    done = scan(folder, again(home), PIPELINE)
    assert [row.file for row in done.rows] == ["0.png", "a.tif"]


def test_quarantine_is_lifted_and_imposed_by_the_site_s_policy_without_another_catalogue(
    tmp_path: Path, home: SiteHome
) -> None:
    folder = tmp_path / "site"
    picture(folder / "1.png", 1)
    Image.new("RGB", (30, 30), (40, 40, 40)).save(folder / "blank.png")
    assert reasons(scan(folder, home, PIPELINE)) == {"blank.png": RejectReason.NEAR_BLANK}
    settings = home.folder / "site.toml"
    settings.write_text('[intake]\nadmit = ["near-blank"]\n')
    done = scan(folder, again(home), PIPELINE)
    assert ([row.file for row in done.rows], done.decoded) == (["1.png", "blank.png"], 1)
    settings.unlink()
    done = scan(folder, again(home), PIPELINE)
    assert ([row.file for row in done.rows], done.decoded) == (["1.png"], 0)


def test_where_all_is_quarantined_the_error_says_how_to_admit_it(tmp_path: Path, home: SiteHome) -> None:
    (tmp_path / "site").mkdir()
    Image.new("RGB", (30, 30), (40, 40, 40)).save(tmp_path / "site" / "blank.png")
    with pytest.raises(InputError, match=r'site\.toml.*admit = \["near-blank"\]'):
        scan(tmp_path / "site", home, PIPELINE)


def test_images_of_one_patient_are_one_group_however_they_are_known(tmp_path: Path, home: SiteHome) -> None:
    """labels.csv and the headers name the same patients differently: what shares any id is one group."""
    from aiseeme_models.images.phantoms import write_phantoms

    (folder,) = write_phantoms(tmp_path / "p", kind="dermoscopy", sites=1, images_per_site=12, seed=4, size=32)
    lines = (folder / "labels.csv").read_text().splitlines()
    whole = {row.file: row.group for row in scan(folder, home, PIPELINE).rows}
    (folder / "labels.csv").write_text("\n".join(lines[:2] + lines[4:]) + "\n")  # two files lose their line
    part = {row.file: row.group for row in scan(folder, again(home), PIPELINE).rows}

    def partition(groups: dict[str, str]) -> set[frozenset[str]]:
        return {frozenset(f for f in groups if groups[f] == name) for name in groups.values()}

    assert partition(whole) == partition(part)
    assert 1 < len(partition(whole)) < 12


def test_the_database_and_the_cache_say_nothing_in_clear(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "DOE_JOHN"
    for number in range(2):
        picture(folder / f"MUSTERMANN-{number}.png", number)
    (folder / "labels.csv").write_text("file,patient_id\nMUSTERMANN-0.png,PID4711\n")
    scan(folder, home, PIPELINE)
    kept = b"".join(path.read_bytes() for path in home.folder.rglob("*") if path.is_file() and path.name != "site.log")
    for word in (b"DOE_JOHN", b"MUSTERMANN", b"PID4711"):
        assert word not in kept
    assert {image.file for image in list_images(home, folder)} == {"MUSTERMANN-0.png", "MUSTERMANN-1.png"}
    for path in (home.folder / "site.key", home.folder / "catalogue.sqlite"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_second_scan_waits_for_the_first(tmp_path: Path, home: SiteHome) -> None:
    import threading

    folder = tmp_path / "site"
    picture(folder / "1.png", 1)
    ended: list[float] = []
    with home.catalogue.scanning():
        thread = threading.Thread(target=lambda: (scan(folder, again(home), PIPELINE), ended.append(time.monotonic())))
        thread.start()
        thread.join(1.0)
        assert thread.is_alive() and not ended
    thread.join(60)
    assert len(ended) == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(b"no database at all" * 100), "not a catalogue"),
        (lambda path: sqlite3.connect(path).execute("PRAGMA user_version = 99").connection.close(), "newer version"),
    ],
)
def test_a_damaged_or_newer_catalogue_is_a_clear_error(tmp_path: Path, home: SiteHome, damage, says: str) -> None:
    folder = tmp_path / "site"
    picture(folder / "1.png", 1)
    scan(folder, home, PIPELINE)
    home.catalogue.engine.dispose()
    damage(home.folder / "catalogue.sqlite")
    with pytest.raises(InputError, match=says):
        scan(folder, again(home), PIPELINE)


def test_a_patch_set_larger_than_a_worker_s_memory_is_cached_in_parts(
    tmp_path: Path, home: SiteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiseeme_models.images.decode_pool._MOST_SLOTS", 8)
    folder = tmp_path / "patches"
    folder.mkdir()
    np.savez(folder / "many.npz", images=np.random.default_rng(0).integers(0, 256, (50, 20, 20), dtype=np.uint8))
    done = scan(folder, home, PIPELINE)
    assert [row.frame for row in done.rows] == list(range(50))
    opened = ImageCache(home.store, PIPELINE).open([row.content for row in done.rows])
    assert len({image.numpy().tobytes() for image in opened.batch(torch.arange(50))}) == 50


def test_raised_limits_give_a_rejected_file_another_chance(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "site"
    picture(folder / "1.png", 1)
    (folder / "slow.png").write_bytes(b"no image")
    scan(folder, home, PIPELINE)
    assert scan(folder, again(home), PIPELINE).decoded == 0
    (home.folder / "site.toml").write_text("[intake]\nseconds_per_file = 500\n")
    assert scan(folder, again(home), PIPELINE).decoded == 1
    assert scan(folder, again(home), PIPELINE).decoded == 0


def test_labels_of_a_patch_set_are_joined_by_index(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "patches"
    folder.mkdir()
    patches = np.random.default_rng(0).integers(0, 256, (4, 20, 20), dtype=np.uint8)
    np.savez(folder / "nodules.npz", images=patches)
    (folder / "labels.csv").write_text("index,label,seriesuid\n0,b,1.2\n1,m,1.3\n2,b,1.2\n3,m,1.4\n")
    rows = scan(folder, home, PIPELINE).rows
    assert [(row.frame, row.label) for row in rows] == [(0, "b"), (1, "m"), (2, "b"), (3, "m")]
    assert rows[0].group == rows[2].group and len({row.group for row in rows}) == 3


def test_a_killed_scan_loses_seconds_at_most_and_the_next_one_goes_on(tmp_path: Path) -> None:
    import signal
    import subprocess
    import sys

    folder = tmp_path / "site"
    for number in range(60):
        picture(folder / f"{number:02d}.png", number)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from client import scanning; from client.site_home import SiteHome\n"
        "from aiseeme_models.images.pipeline import Pipeline\n"
        "scanning._FILES_AT_ONCE = 4\n"
        "scanning.scan(Path(sys.argv[1]), SiteHome(Path(sys.argv[2])), Pipeline(3, 'crop', 16),\n"
        "              on_file=lambda: time.sleep(0.03))\n"
    )
    home = SiteHome(tmp_path / "home")
    for wanted in (8, 24, 40):  # three times, at other points
        process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(home.folder)])
        deadline = time.monotonic() + 60
        while _rows(home) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was still at work"
        database = sqlite3.connect(home.folder / "catalogue.sqlite")
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        files, images = (database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("files", "images"))
        assert wanted <= files == images < 60, "every row is whole: a file comes with its image"
        database.close()
    done = scan(folder, again(home), PIPELINE)
    assert len(done.rows) == 60 and 0 < done.decoded <= 20
    reference = scan(folder, SiteHome(tmp_path / "other"), PIPELINE)
    assert [row.content for row in done.rows] == [row.content for row in reference.rows]
    assert len(ImageCache(home.store, PIPELINE).open([row.content for row in done.rows])) == 60


def _rows(home: SiteHome) -> int:
    try:
        database = sqlite3.connect(f"file:{home.folder / 'catalogue.sqlite'}?mode=ro", uri=True)
        return int(database.execute("SELECT count(*) FROM images").fetchone()[0])
    except sqlite3.Error:
        return 0
