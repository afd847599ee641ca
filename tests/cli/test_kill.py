"""SIGKILL at any point, `aiseeme resume`, and the model is the one it would have been."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from tests.cli.commands import SMALL, aiseeme, site_options, start_aiseeme
from tests.conftest import write_pictures

DEADLINE_S = 120


def kill_when(happened: Callable[[], bool], *arguments: object) -> None:
    """Start a command and SIGKILL it as soon as ``happened``; it must not end before."""
    process = start_aiseeme(*arguments)
    try:
        give_up = time.monotonic() + DEADLINE_S
        while not happened():
            assert process.poll() is None, f"ended before it could be killed: {process.stderr.read()}"
            assert time.monotonic() < give_up, "what the test waits for never happened"
            time.sleep(0.001)
    finally:
        process.kill()
        process.communicate()


def exists(runs: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(runs.glob(pattern))


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_backbone(tmp_path):
    folders = [write_pictures(tmp_path / name, 40, seed=i) for i, name in enumerate(("north", "south"))]
    (tmp_path / "small.toml").write_text(SMALL.replace("rounds = 2", "rounds = 4"))
    options = [tmp_path / "small.toml", *site_options(folders)]

    whole = aiseeme("simulate", *options, "--runs", tmp_path / "whole", "--json")
    assert whole.returncode == 0, whole.stderr

    runs = tmp_path / "killed"
    # While a site trains: the other has answered already.
    kill_when(
        exists(runs, "*/sites/north/runs/*/stage-001/round-000002.safetensors"), "simulate", *options, "--runs", runs
    )
    (run,) = json.loads(aiseeme("runs", "--runs", runs, "--json").stdout)
    assert run["status"] == "interrupted"
    assert "go on with: aiseeme resume" in aiseeme("show", run["id"], "--runs", runs).stdout
    # Between two rounds: a checkpoint has just been written.
    kill_when(exists(runs, "*/checkpoints/round-0002.json"), "resume", run["id"], "--runs", runs)
    # While a checkpoint is written.
    kill_when(exists(runs, "*/checkpoints/round-0003.safetensors*"), "resume", run["id"], "--runs", runs)
    # While a site writes its own state.
    kill_when(exists(runs, "*/sites/south/runs/*/stage-001/round-000004*"), "resume", run["id"], "--runs", runs)

    resumed = aiseeme("resume", run["id"], "--runs", runs, "--json")
    assert resumed.returncode == 0, resumed.stderr
    first, second = json.loads(whole.stdout), json.loads(resumed.stdout)
    assert second["backbone_sha256"] == first["backbone_sha256"]
    assert [stage["loss_last"] for stage in second["stages"]] == [stage["loss_last"] for stage in first["stages"]]
    assert [site["rounds_answered"] for site in second["sites"]] == [5, 5]
    lines = [json.loads(line) for line in (runs / run["id"] / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if line.get("event") == "round"] == [1, 2, 3, 4, 5]


def test_a_run_whose_images_have_changed_is_not_resumed(tmp_path):
    folders = [write_pictures(tmp_path / name, 40, seed=i) for i, name in enumerate(("north", "south"))]
    (tmp_path / "small.toml").write_text(SMALL)
    runs = tmp_path / "runs"
    options = [tmp_path / "small.toml", *site_options(folders), "--runs", runs]
    kill_when(exists(runs, "*/checkpoints/round-0000.json"), "simulate", *options)
    (run,) = json.loads(aiseeme("runs", "--runs", runs, "--json").stdout)
    next((folders[0] / "images").iterdir()).unlink()
    done = aiseeme("resume", run["id"], "--runs", runs)
    assert done.returncode == 2
    assert "are not those that the run began with" in done.stderr
