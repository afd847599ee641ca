"""The command lines as a person or a script uses them: output, exit codes, and no traceback for a mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import SMALL, aiseeme, aiseeme_site, site_options
from tests.conftest import write_pictures


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("cli")
    folders = [write_pictures(root / name, 32, seed=i) for i, name in enumerate(("north", "south"))]
    (folders[0] / "images" / "cut.png").write_bytes((folders[0] / "images" / "picture-0-000.png").read_bytes()[:300])
    (folders[0] / "images" / "[bold]notes.txt").write_text("no image")
    with (folders[0] / "labels.csv").open("a") as labels:
        labels.write("gone.png,blobs,p9,d0\n")
    return folders


@pytest.fixture(scope="module")
def finished(hospitals: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A small run, played once for all tests of this file."""
    root = tmp_path_factory.mktemp("runs")
    (root / "small.toml").write_text(SMALL)
    done = aiseeme("simulate", root / "small.toml", *site_options(hospitals), "--runs", root, "--json")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return root, json.loads(done.stdout)


def test_results_hold_what_was_promised(finished):
    _, results = finished
    assert results["status"] == "done"
    assert results["rounds_done"] == results["rounds_total"] == 3
    assert len(results["backbone_sha256"]) == len(results["config_sha256"]) == 64
    assert [site["name"] for site in results["sites"]] == ["north", "south"]
    assert all(site["rounds_answered"] == 3 and site["missed"] == [] for site in results["sites"])
    assert results["sites"][0]["rejected"] == {"not-an-image": "<5", "truncated": "<5"}
    for score in (*results["probe"].values(), *results["baselines"]["random"].values(), results["baselines"]["floor"]):
        assert 0 <= score["balanced_accuracy"] <= 1
        assert score["n_test"] > 0
        assert "macro_auc" in score
    assert results["seconds"]["total"] >= results["seconds"]["training"] > 0
    assert results["version"]


def test_a_run_leaves_its_files_behind(finished):
    root, results = finished
    folder = root / results["run"]
    for name in ("config.toml", "metrics.jsonl", "results.json", "report.html"):
        assert (folder / name).stat().st_size > 0
    for name in ("backbone.safetensors", "model.json", "README.md"):
        assert (folder / "model" / name).stat().st_size > 0
    assert sorted(path.name for path in (folder / "checkpoints").glob("*.json"))[0] == "round-0000.json"
    page = (folder / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "north" in page


def test_what_was_skipped_is_listed_with_the_reason(hospitals, finished, tmp_path):
    root, _ = finished
    done = aiseeme("simulate", root / "small.toml", *site_options(hospitals), "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"left out of {hospitals[0]}: " in done.stdout
    assert "1 not-an-image" in done.stdout and "1 truncated" in done.stdout
    assert "labels.csv names 1 files that are not there" in done.stdout
    assert "cut.png" not in done.stdout and "notes.txt" not in done.stdout
    assert "pretrained" in done.stdout
    assert "thumbnail floor" in done.stdout


def test_runs_and_show_tell_of_a_run(finished):
    root, results = finished
    listed = json.loads(aiseeme("runs", "--runs", root, "--json").stdout)
    assert [(run["id"], run["status"], run["rounds_done"]) for run in listed] == [(results["run"], "done", 3)]
    assert results["run"] in aiseeme("runs", "--runs", root).stdout.replace("\n", "")
    assert json.loads(aiseeme("show", results["run"][:12], "--runs", root, "--json").stdout) == results
    assert "balanced accuracy" in aiseeme("show", results["run"], "--runs", root).stdout


def test_evaluate_probes_a_run_on_another_folder(finished, tmp_path):
    root, results = finished
    other = write_pictures(tmp_path / "elsewhere", 40, seed=9)
    done = aiseeme("evaluate", results["run"], "--data", other, "--runs", root, "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert scores["probe"]["linear"]["n_train"] + scores["probe"]["linear"]["n_test"] == 40
    assert scores["baselines"]["random"]["knn"]["k"] <= scores["probe"]["linear"]["n_train"]


def test_an_altered_model_is_not_evaluated(finished, tmp_path):
    root, results = finished
    copy = tmp_path / "runs"
    shutil.copytree(root, copy)
    weights = copy / results["run"] / "model" / "backbone.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    other = write_pictures(tmp_path / "elsewhere", 20, seed=9)
    done = aiseeme("evaluate", results["run"], "--data", other, "--runs", copy)
    assert done.returncode == 2
    assert "SHA-256" in done.stderr


def test_a_finished_run_is_not_resumed(finished):
    root, results = finished
    done = aiseeme("resume", results["run"], "--runs", root)
    assert (done.returncode, "is done" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulate", "no-such.toml", "--data", "."], "no such file; ready-made federations are demo"),
        (["simulate", "demo", "--data", "no-such-folder", "--sites", "2"], "no such folder"),
        (["simulate", "demo", "--data", "EMPTY", "--sites", "3"], "it is empty"),
        (["simulate", "demo", "--data", "NORTH"], "--sites"),
        (["simulate", "demo", "--data", "NORTH", "--sites", "2"], "fewer than federation.min_sites = 3"),
        (["simulate", "demo", "--data", "NORTH", "--sites", "3", "--partition", "by:moon"], "moon"),
        (["simulate", "demo", "--data", "NORTH", "--sites", "3", "--partition", "random"], "unknown partition"),
        (["simulate", "demo", "--data", "NORTH", "--sites", "3", "--engine", "spark"], "--engine spark"),
        (["simulate", "demo", "--data", "NORTH", "--sites", "3", "--device", "tpu"], "--device tpu"),
        (["simulate", "demo", "--data", "NORTH", "--data", "SOUTH", "--sites", "3"], "with several --data"),
        (["resume", "2026", "--runs", "EMPTY"], "no runs here"),
        (["show", "2026", "--runs", "EMPTY"], "no runs here"),
        (["evaluate", "2026", "--data", "NORTH", "--runs", "EMPTY"], "no runs here"),
        (["config", "check", "no-such.toml"], "no such file"),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_a_sentence(arguments, says, hospitals, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty", "NORTH": hospitals[0], "SOUTH": hospitals[1]}
    if "--runs" not in arguments and arguments[0] == "simulate":
        arguments = [*arguments, "--runs", str(tmp_path / "runs")]
    done = aiseeme(*(places.get(argument, argument) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_federation_that_loses_its_quorum_ends_with_exit_code_1(tmp_path):
    # Each site has fewer training images than a batch: it is told so, and nobody is left.
    folders = [write_pictures(tmp_path / name, 20, seed=i) for i, name in enumerate(("north", "south"))]
    (tmp_path / "large.toml").write_text(
        SMALL.replace("batch_size = 4", "batch_size = 64").replace("queue = 16", "queue = 64")
    )
    done = aiseeme("simulate", tmp_path / "large.toml", *site_options(folders), "--runs", tmp_path / "runs")
    assert done.returncode == 1
    assert "the stage's batch is larger than the site's number of training images" in done.stderr
    (run,) = json.loads(aiseeme("runs", "--runs", tmp_path / "runs", "--json").stdout)
    assert run["status"] == "failed"
    results = json.loads((tmp_path / "runs" / run["id"] / "results.json").read_text())
    assert (results["status"], results["backbone_sha256"]) == ("failed", None)
    assert "min_sites is 2" in results["reason"]
    assert "failed" in (tmp_path / "runs" / run["id"] / "report.html").read_text()


def test_config_show_prints_every_default():
    shown = aiseeme("config", "show", "demo")
    assert shown.returncode == 0
    assert "round_deadline_s = 3600.0" in shown.stdout
    assert "fine: demo" in aiseeme("config", "check", "demo").stdout


def test_doctor_says_what_is_here(tmp_path):
    done = aiseeme("doctor", "--runs", tmp_path, "--json")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert findings["flwr"]["says"] == "1.41.0"
    assert findings["runs"]["ok"]
    assert done.returncode == 0


def test_the_site_scans_its_folder(hospitals, tmp_path):
    done = aiseeme_site("scan", hospitals[0], "--home", tmp_path / "home", "--size", "32", "--json")
    summary = json.loads(done.stdout)
    assert (summary["images"], summary["missing"], sum(summary["rejected"].values())) == (32, 1, 2)


def test_the_site_writes_phantoms(tmp_path):
    done = aiseeme_site("phantom", tmp_path / "p", "--kind", "chest-xray", "--sites", "2", "--images", "4")
    assert len(done.stdout.splitlines()) == 2
    assert aiseeme_site("phantom", tmp_path / "p", "--kind", "hand").returncode == 2


@pytest.mark.parametrize("module", ["server.cli", "client.cli"])
def test_help_imports_nothing_heavy(module):
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'monai', 'sklearn', 'flwr', 'matplotlib', 'sqlmodel', 'pydicom'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
