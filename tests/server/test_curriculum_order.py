"""`aiseeme curriculum order`: trials at hospitals that send scores only, the order found, and why."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from aiseeme_models.errors import InputError, RunFailed
from federation_configs.loading import load_config, to_toml
from server.ordering.finding import find_order
from server.progress import Progress
from tests.cli.commands import aiseeme
from tests.conftest import tiny_config, write_pictures
from tests.federation.test_private_rounds import PRIVATE

ROTATION = {"task": "rotation", "rounds": 2, "batch_size": 4, "lr": 0.01}
SIMCLR = {"task": "simclr", "rounds": 4, "batch_size": 4, "lr": 0.01}
LOCATION = {"task": "relative-location", "rounds": 1, "batch_size": 4, "lr": 0.01}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("ordering")
    return [write_pictures(root / name, 140, seed=seed) for name, seed in (("alpha", 1), ("beta", 2))]


def config(*stages, **changes):
    settings = {"holdout": {"test": 0.0, "validation": 0.5}} | changes
    return tiny_config(curriculum={"stage": list(stages or (SIMCLR, ROTATION))}, **settings)


def find(given, policy, folders, home, **changes):
    settings = {
        "sites": None,
        "partition": None,
        "trial_rounds": None,
        "probe": "knn",
        "engine": "local",
        "device": "cpu",
    }
    options = changes.pop("options", {})
    progress = Progress(Console(file=io.StringIO()))
    return find_order(given, policy, options, folders, home=home, progress=progress, **(settings | changes))


def test_greedy_plays_what_it_needs_once_and_says_why(folders, tmp_path):
    found = find(config(), "greedy", folders, tmp_path, options={"min_gain": 0.0})
    tried = set(found.scores)
    first = found.order[0]
    assert {"(untrained)", "simclr", "rotation"} <= tried
    assert len(tried) == 4 and any(name.startswith(f"{first} > ") for name in tried)
    assert found.rounds == 1 + 1 + 1, "a quarter of each stage, each trial's first stage played once"
    assert [stage.task for stage in found.config.curriculum.stage] == list(found.order)
    assert sorted(stage.rounds for stage in found.config.curriculum.stage) in ([2, 4], [2], [4])
    assert found.why[0].startswith("untrained: ")
    assert all(0 <= score <= 1 for score in found.scores.values())


def test_what_was_played_is_not_played_again(folders, tmp_path, monkeypatch):
    first = find(config(), "ascending", folders, tmp_path)

    def never(*_, **__):
        raise AssertionError("a stage was played again")

    monkeypatch.setattr("server.rounds.RoundLoop.play", never)
    again = find(config(), "ascending", folders, tmp_path)
    assert (again.order, again.scores) == (first.order, first.scores)
    assert find(config(), "descending", folders, tmp_path).order[0] == max(first.scores, key=first.scores.get) or (
        len(set(first.scores.values())) < len(first.scores)
    )


def test_distances_are_asked_of_the_sites(folders, tmp_path):
    found = find(config(SIMCLR, ROTATION, LOCATION), "representation", folders, tmp_path, options={"min_gain": -0.9})
    assert sorted(found.order) == ["relative-location", "rotation", "simclr"]
    assert found.left_out == ()
    assert "is furthest: 1 - CKA = " in found.why[1]


def test_trials_may_be_longer_or_whole(folders, tmp_path):
    assert find(config(), "ascending", folders, tmp_path, trial_rounds=3).rounds == 2 + 3


def test_a_family_order_plays_nothing(folders, tmp_path):
    found = find(config(), "family", folders, tmp_path)
    assert (found.order, found.rounds, found.scores) == (("rotation", "simclr"), 0, {})


def test_sites_that_cannot_score_fail_the_trial_with_what_would_do(folders, tmp_path):
    with pytest.raises(RunFailed, match="a larger holdout.validation gives more"):
        find(config(holdout={"test": 0.0, "validation": 0.1}), "greedy", folders, tmp_path)


@pytest.mark.parametrize(
    ("changes", "policy", "options", "says"),
    [
        ({}, "gredy", {}, "did you mean 'greedy'"),
        ({}, "greedy", {"gain": 0.1}, "gain: unknown key"),
        ({"privacy": PRIVATE}, "greedy", {}, "without .privacy."),
    ],
)
def test_mistakes_are_named_before_anything_is_played(changes, policy, options, says, folders, tmp_path):
    given = config(ROTATION, LOCATION, **changes)
    with pytest.raises(InputError, match=says):
        find(given, policy, folders, tmp_path, options=options)


def test_the_command_writes_a_configuration_that_says_why(folders, tmp_path):
    (tmp_path / "two.toml").write_text(
        to_toml(config(model={"backbone": "resnet-tiny", "norm": "batch"}, federation={"min_sites": 2}))
    )
    given = [part for folder in folders for part in ("--data", folder)]
    out = tmp_path / "ordered.toml"
    said = aiseeme(
        "curriculum", "order", tmp_path / "two.toml", *given, "--policy", "ascending", "--trial-rounds", 1,
        "--out", out, "--runs", tmp_path / "runs", "--json",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    answer = json.loads(said.stdout)
    text = out.read_text()
    assert text.startswith("# policy: ascending\n")
    assert [stage.task for stage in load_config(out).curriculum.stage] == answer["order"]
    wrong = aiseeme("curriculum", "order", tmp_path / "two.toml", *given, "--option", "min_gain", "--runs", tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "min_gain=0.01" in wrong.stderr
    assert aiseeme("curriculum", "order", "demo", *given, "--out", out).returncode == 2
