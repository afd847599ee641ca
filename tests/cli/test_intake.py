"""The hospital's commands: scan, images, nodules."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aiseeme_models.images.phantom_intake import NODULES
from tests.cli.commands import ENVIRONMENT, aiseeme_site


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    done = aiseeme_site("phantom", root, "--kind", "mixed", "--sites", "1")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def home(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a site that has scanned the mixed phantoms."""
    home = tmp_path_factory.mktemp("site") / "home"
    done = aiseeme_site("scan", mixed, "--home", home, "--preset", "chest-xray", "--size", "32")
    assert done.returncode == 0, done.stderr
    for text in ("images accepted", "quarantined: burned-in-text", "rejected: truncated", "images/s", "--left-out"):
        assert text in done.stdout
    assert "PHANTOM" not in done.stdout, "the table counts; it names no file"
    return home


def test_scan_tells_counts_as_json(mixed: Path, home: Path) -> None:
    done = aiseeme_site("scan", mixed, "--home", home, "--preset", "chest-xray", "--size", "32", "--json")
    summary = json.loads(done.stdout)
    assert (summary["decoded"], summary["vanished"], summary["missing"]) == (0, 0, 0)
    assert summary["images"] > 50 and summary["groups"] > 30
    assert summary["quarantined"]["ultrasound-text"] == 1
    assert summary["rejected"]["truncated"] == 3


def test_images_browses_the_catalogue(mixed: Path, home: Path) -> None:
    shown = aiseeme_site("images", mixed, "--home", home, "--limit", "7")
    statuses = ("accepted", "duplicate", "quarantined", "rejected")
    assert sum(shown.stdout.count(status) for status in statuses) >= 7
    assert "more: --limit" in shown.stdout
    lines = [json.loads(line) for line in aiseeme_site("images", mixed, "--home", home, "--json").stdout.splitlines()]
    assert {line["status"] for line in lines} == {"accepted", "duplicate", "quarantined", "rejected"}
    assert {"CT", "DX", "US", "XC", ""} <= {line["modality"] for line in lines}
    assert all(len(line["content"]) == 64 for line in lines if line["frame"] is not None)
    out = aiseeme_site("images", mixed, "--home", home, "--left-out", "--json").stdout.splitlines()
    assert {json.loads(line)["status"] for line in out} == {"duplicate", "quarantined", "rejected"}


def test_a_contact_sheet_shows_what_the_network_sees(mixed: Path, home: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    options = ("--preset", "chest-xray", "--size", "32", "--sample", "6")
    done = aiseeme_site("images", mixed, "--home", home, "--sheet", sheet, *options)
    assert done.returncode == 0 and "patients' images" in done.stdout
    assert sheet.stat().st_mode & 0o077 == 0
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape[1] == 4 + 10 * 36
    tiles = pixels[4 + 18 : 4 + 18 + 32, 4 : 4 + 6 * 36]  # the first row: CT
    assert tiles.std() > 40
    again = tmp_path / "again.png"
    aiseeme_site("images", mixed, "--home", home, "--sheet", again, *options)
    assert again.read_bytes() == sheet.read_bytes(), "the same seed shows the same images"
    other = tmp_path / "left-out.png"
    aiseeme_site("images", mixed, "--home", home, "--sheet", other, "--left-out", *options)
    assert np.asarray(Image.open(other)).shape != pixels.shape


def test_nodules_become_a_patch_set_that_scan_reads(mixed: Path, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "nodules"
    listed = ("--list", mixed / NODULES, "--home", home)
    done = aiseeme_site("nodules", mixed, *listed, "--out", out, "--size", "32", "--json")
    assert json.loads(done.stdout) == {"patches": 3, "series": 1, "absent": 0, "unusable": {}}
    assert np.load(out / "patches.npz")["images"].shape == (3, 32, 32, 32)
    table = (out / "labels.csv").read_text()
    assert table.startswith("index,patient_id,seriesuid,split_point,diameter_mm\n")
    assert (mixed / NODULES).read_text().splitlines()[1].split(",")[0] not in table, "series are pseudonyms"
    done = aiseeme_site("scan", out, "--home", home, "--preset", "ct-nodule", "--size", "32", "--json")
    summary = json.loads(done.stdout)
    assert (summary["images"], summary["groups"]) == (3, 1)
    again = aiseeme_site("nodules", mixed, *listed, "--out", out)
    assert again.returncode == 2 and "not empty" in again.stderr


def test_a_patient_s_slices_and_nodules_lie_in_one_split(mixed: Path, home: Path, tmp_path: Path) -> None:
    from aiseeme_models.images.pipeline import Pipeline
    from client.scanning import scan
    from client.site_home import SiteHome

    out = tmp_path / "nodules"
    aiseeme_site("nodules", mixed, "--list", mixed / NODULES, "--home", home, "--out", out)
    site, pipeline = SiteHome(home), Pipeline(1, "pad", 32)
    slices = {row.point for row in scan(mixed, site, pipeline).rows if "/ct-" in row.file}
    patches = {row.point for row in scan(out, site, pipeline).rows}
    assert slices == patches and len(slices) == 1


def test_watching_takes_in_what_arrives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "inbox"
    folder.mkdir()  # empty at first: that ends a single scan, and not the watch
    Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(tmp_path / "first.png")
    arguments = ["scan", folder, "--home", tmp_path / "home", "--size", "16", "--watch", "1", "--json"]
    command = [sys.executable, "-c", "from client.cli import main; main()", *map(str, arguments)]
    watcher = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert watcher.stdout is not None and watcher.stderr is not None
        assert "it is empty" in watcher.stderr.readline()
        (tmp_path / "first.png").rename(folder / "1.png")
        assert json.loads(watcher.stdout.readline())["images"] == 1
        Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(folder / ".part.png")
        (folder / ".part.png").rename(folder / "2.png")
        for _ in range(30):
            counts = json.loads(watcher.stdout.readline())
            if counts["images"] == 2:
                break
        assert counts["images"] == 2
        watcher.send_signal(signal.SIGINT)
        _, errors = watcher.communicate(timeout=60)
        assert watcher.returncode == 130
        assert {line.partition(": ")[0] for line in errors.splitlines()} <= {"error", "interrupted"}
    finally:
        watcher.kill()
        watcher.wait()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("scan", "nowhere"), "nowhere: no such folder"),
        (("scan", "empty"), "it is empty"),
        (("scan", "empty", "--preset", "xray"), "unknown image preset 'xray'"),
        (("scan", "empty", "--cohort", "A B"), "a cohort is named by"),
        (("images", "empty"), "was not scanned yet"),
        (("nodules", "empty", "--list", "list.csv", "--out", "o"), "none of the 1 listed series"),
        (("nodules", "empty", "--list", "list.csv", "--out", "o", "--window", "brain"), "there are lung"),
        (("nodules", "empty", "--list", "nowhere.csv", "--out", "o"), "cannot be read"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(tmp_path: Path, monkeypatch, arguments, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("seriesuid,z,y,x\n1.2.3,1,2,3\n")
    done = aiseeme_site(*arguments, "--home", tmp_path / "home")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr and "Traceback" not in done.stderr and done.stderr.startswith("error: ")


def test_a_lost_key_is_told_and_nothing_is_lost(mixed: Path, home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    (copy / "site.key").unlink()
    done = aiseeme_site("images", mixed, "--home", copy)
    assert done.returncode == 2 and "another site key" in done.stderr
    (copy / "site.key").unlink()
    shutil.copy(home / "site.key", copy / "site.key")
    assert aiseeme_site("images", mixed, "--home", copy).returncode == 0
