"""``aiseeme study`` as a person uses it: phantoms in, a table and a plot out, and a sentence for a mistake."""

from __future__ import annotations

import json

import pytest

from tests.cli.commands import SMALL, aiseeme, aiseeme_site, site_options
from tests.conftest import write_pictures

STUDY = SMALL.replace("rounds = 2", "rounds = 1")


@pytest.mark.slow
def test_phantom_hospitals_are_studied_from_the_command_line(tmp_path):
    aiseeme_site("phantom", tmp_path / "phantoms", "--kind", "dermoscopy", "--sites", "2", "--images", "60")
    folders = sorted((tmp_path / "phantoms").iterdir())
    (tmp_path / "small.toml").write_text(STUDY)
    options = [tmp_path / "small.toml", *site_options(folders), "--seeds", "2", "--runs", tmp_path / "runs"]
    done = aiseeme("study", "tasks", *options, "--finetune", "1:1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    folder = tmp_path / "runs" / "studies" / "tasks-small"
    for text in ("federated: relative-location > moco", "pooled", "thumbnail floor", "fine-tune 100 %", str(folder)):
        assert text in done.stdout
    for name in ("study.json", "config.toml", "table.json", "table.md", "plot.svg"):
        assert (folder / name).stat().st_size > 0
    again = aiseeme("study", "tasks", *options, "--finetune", "1:1", "--json")
    assert json.loads(again.stdout) == json.loads((folder / "table.json").read_text())
    assert again.stderr.count("was there") == 14
    refused = aiseeme("study", "tasks", *options, "--finetune", "none")
    assert (refused.returncode, "holds another study (finetune" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_ray_plays_the_same_study(tmp_path):
    folders = [write_pictures(tmp_path / name, 32, seed=i) for i, name in enumerate(("north", "south"))]
    (tmp_path / "small.toml").write_text(STUDY)
    options = [tmp_path / "small.toml", *site_options(folders), "--lr", "1e-3,1e-2", "--seeds", "1", "--json"]
    local = aiseeme("study", "hyperparameters", *options, "--runs", tmp_path / "local")
    ray = aiseeme("study", "hyperparameters", *options, "--runs", tmp_path / "ray", "--engine", "ray")
    assert ray.returncode == 0, ray.stderr[-2000:]
    first, second = json.loads(local.stdout), json.loads(ray.stdout)
    # One thread each, so even the bits are the same.
    assert [line["figures"] for line in second["lines"]] == [line["figures"] for line in first["lines"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tasks", "demo", "--data", "no-such-folder", "--sites", "2"], "no such folder"),
        (["order", "no-such.toml", "--data", "."], "no such file"),
        (["hyperparameters", "demo", "--data", ".", "--sites", "2"], "at least two settings"),
        (["hyperparameters", "demo", "--data", ".", "--lr", "fast"], "--lr fast"),
        (["volume", "demo", "--data", ".", "--fractions", "0,1"], "fractions"),
        (["tasks", "demo", "--data", ".", "--finetune", "half"], "--finetune half"),
        (["tasks", "demo", "--data", ".", "--folds", "1"], "--folds 1: write a number from 2 to 20"),
        (["order", "demo", "--data", ".", "--folds", "21"], "--folds 21: write a number from 2 to 20"),
        (["tasks", "demo", "--data", ".", "--initial", "no-such-model"], "no-such-model"),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_a_sentence(arguments, says, tmp_path):
    done = aiseeme("study", *arguments, "--runs", tmp_path / "runs")
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
