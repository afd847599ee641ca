"""Invented names, ids and dates are in every phantom's header, path and pixels: none may turn up anywhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest

from aiseeme_models.images.phantom_intake import NODULES, write_mixed_phantoms
from aiseeme_models.images.pipeline import Pipeline, square
from aiseeme_models.images.reading import read_bytes, read_pictures
from aiseeme_models.images.rejection import ImageRejected
from client.scanning import scan
from client.site import Site
from client.site_home import SiteHome
from tests.conftest import InProcess, tiny_config

TAGS = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "InstitutionName", "StudyDate")
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
CONFIG = """
name = "tripwire"
seed = 1
[images]
preset = "chest-xray"
size = 32
[model]
backbone = "resnet-small"
[[curriculum.stage]]
task = "simclr"
rounds = 1
batch_size = BATCH
[federation]
min_sites = 2
round_retries = 0
"""


def needles(folder: Path) -> set[bytes]:
    """Everything in headers and paths that names a patient, each part by itself."""
    words: set[str] = {path.name for path in folder.iterdir() if path.is_dir()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in folder.rglob("*.dcm"):
            if path.stat().st_size == 0:
                continue
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
            for keyword in (*TAGS, *UIDS):
                value = str(header.get(keyword, ""))
                words |= {value, *value.replace("^", " ").split()} - {"", "Hospital"}
    return {word.encode() for word in words if len(word) >= 6}


def hits(data: bytes, words: set[bytes]) -> set[bytes]:
    """Which of ``words`` stand in ``data``, as UTF-8 or UTF-16, in any case."""
    runs = re.findall(rb"[\x20-\x7e]{6,}", data)
    wide = [run.replace(b"\0", b"") for run in re.findall(rb"(?:[\x20-\x7e]\0){6,}", data)]
    text = b"\n".join((*runs, *wide)).lower()
    return {word for word in words if word.lower() in text}


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], set[bytes]]:
    root = tmp_path_factory.mktemp("exports")
    folders = [root / name for name in ("north", "south")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        write_mixed_phantoms(folder, seed=20 + number)
    return folders, set().union(*map(needles, folders))


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", f"from {program}.cli import main; main()", *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=250, check=False
    )


def test_there_are_tripwires(hospitals) -> None:
    _, words = hospitals
    assert len(words) > 500
    word = next(iter(words))
    assert hits(b'{"x": "%s"}' % word, words) and hits(b"\xff" + word.decode().lower().encode("utf-16-le"), words)


def search(folder: Path, words: set[bytes]) -> int:
    """Look into every file below ``folder`` but the site's own log; how many there were."""
    searched = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "site.log":
            assert hits(str(path.relative_to(folder)).encode() + b"\n" + path.read_bytes(), words) == set(), path
            searched += 1
    return searched


def test_no_byte_of_a_patient_stands_in_what_a_scan_leaves_or_says(hospitals, tmp_path: Path) -> None:
    folders, words = hospitals
    home = ("--home", tmp_path / "site")
    nodules = ("--list", folders[0] / NODULES, "--out", tmp_path / "nodules")
    outputs = [
        run("client", "scan", folders[0], *home, "--size", "32"),
        run("client", "scan", folders[0], *home, "--size", "32", "--json"),
        run("client", "nodules", folders[0], *nodules, *home),
        run("client", "scan", tmp_path / "nodules", *home, "--preset", "ct-nodule", "--size", "32"),
    ]
    for done in outputs:
        assert (done.returncode, hits(done.stdout + done.stderr, words)) == (0, set())
    assert search(tmp_path, words) >= 6
    log = tmp_path / "site" / "site.log"
    assert hits(log.read_bytes(), words), "the site's own log says which file it was"


def test_no_byte_of_a_patient_stands_in_what_a_run_leaves_or_says(hospitals, tmp_path: Path) -> None:
    folders, words = hospitals
    data = [part for folder in folders for part in ("--data", folder)]
    (tmp_path / "good.toml").write_text(CONFIG.replace("BATCH", "4"))
    (tmp_path / "failing.toml").write_text(CONFIG.replace("BATCH", "1000"))
    runs = ("--runs", tmp_path / "runs")
    outputs = {
        "simulate": run("server", "simulate", tmp_path / "good.toml", *data, *runs),
        "failing run": run("server", "simulate", tmp_path / "failing.toml", *data, *runs),
        "runs": run("server", "runs", *runs),
    }
    assert [done.returncode for done in outputs.values()] == [0, 1, 0]
    assert len(list((tmp_path / "runs").glob("*/report.html"))) == 2
    for name, done in outputs.items():
        assert hits(done.stdout + done.stderr, words) == set(), name
        assert b"Traceback" not in done.stderr, name
    assert search(tmp_path, words) > 20


def test_text_in_the_pixels_is_in_no_cache(hospitals, tmp_path: Path) -> None:
    folders, _ = hospitals
    home, pipeline = SiteHome(tmp_path), Pipeline(1, "pad", 32)
    scan(folders[0], home, pipeline)
    cached = b"".join(path.read_bytes() for path in tmp_path.rglob("pack-*"))
    quarantined = 0
    for path in folders[0].rglob("*.dcm"):
        try:
            pictures = list(read_pictures(read_bytes(path)))
        except ImageRejected:
            continue
        for picture in pictures:
            image, _ = square(picture.pixels, pipeline)
            if picture.findings:
                quarantined += 1
                assert image.tobytes() not in cached, path.name
            elif picture.facts.modality == "US":
                assert not np.asarray(picture.pixels)[:24].any(), "what lies outside its regions is black"
    assert quarantined >= 6


def test_no_byte_of_a_patient_is_in_any_message(hospitals, tmp_path: Path) -> None:
    folders, words = hospitals
    config = tiny_config(
        images={"preset": "chest-xray", "size": 48},
        curriculum={"stage": [{"task": "rotation", "rounds": 2, "batch_size": 4, "lr": 0.01}]},
    )
    home = SiteHome(tmp_path / "home")
    sites, messages = [], []
    for folder in folders:
        done = scan(folder, home, config.images.pipeline)
        state = tmp_path / "sites" / folder.name
        sites.append(Site(folder.name, done.root, done.rows, home.store, state, rejected=done.reasons))

    def record(message, reply):
        for one in (message, reply):
            if one.has_error():
                messages.append(str(one.error).encode())
                continue
            for records in (one.content.config_records, one.content.array_records, one.content.metric_records):
                messages.extend(repr(dict(record)).encode() for record in records.values())
            messages.extend(array.data for record in one.content.array_records.values() for array in record.values())
        return reply

    played = InProcess(config, tmp_path / "run", sites, {site.name: record for site in sites})
    state, _ = played.play()
    assert all(site.answered == 2 for site in state.sites.values())
    assert state.sites["north"].rejected["burned-in-text"] == "<5"
    for site in sites:  # and when the site fails, with a path in the exception's text
        object.__setattr__(site, "store", None)
        site._opened.clear()
    with pytest.raises(Exception, match="quorum|sites"):
        InProcess(config, tmp_path / "failing", sites, {site.name: record for site in sites}).play()
    assert len(messages) > 10
    assert hits(b"\n".join(messages), words) == set()
