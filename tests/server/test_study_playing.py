"""A study is played once, goes on where it was, and is what `aiseeme simulate` would have made."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from aiseeme_models.errors import InputError, RunFailed
from server.global_model import new_backbone, save_weights
from server.progress import Progress
from server.simulation import simulate
from server.study import bench, playing
from server.study.cells import Cell
from server.study.playing import Asked
from tests.server.studies import FINETUNE, LOCATION, ROTATION, SIMCLR, Played, asked, study_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from tests.conftest import write_pictures

    root = tmp_path_factory.mktemp("data")
    return [write_pictures(root / name, 30 + 6 * i, seed=i) for i, name in enumerate(("alpha", "beta", "gamma"))]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def tasks(data, home) -> Played:
    return Played(study_config(), asked("tasks", data, finetune=FINETUNE), home)


@pytest.fixture
def own(data, request) -> Callable[..., Asked]:
    """A study of the test's own, beside the others: the pictures are read once for all."""

    def make(kind: str, **changes: Any) -> Asked:
        name = re.sub(r"[^a-z0-9]+", "-", request.node.name)[-60:]
        return asked(kind, data, **({"name": f"{kind}-{name}"} | changes))

    return make


def cells(played: Played) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for path in sorted((played.folder / "cells").glob("*/seed-*/cell.json")):
        cell = Cell.load(path.parent)
        assert cell is not None
        found.setdefault(cell.arm, []).append(cell)
    return found


def test_every_arm_has_a_cell_for_every_seed_and_every_measure(tasks):
    assert set(cells(tasks)) == {
        "federated",
        "rotation-alone",
        "simclr-alone",
        "local-only",
        "pooled",
        "random",
        "floor",
    }
    for arm, own in cells(tasks).items():
        assert [cell.seed for cell in own] == [3, 4]
        wanted = {"linear"} if arm == "floor" else {"linear", "knn", "finetune-50", "finetune-100"}
        assert all(set(model.scores) == wanted for cell in own for model in cell.models)
    assert [model.name for model in cells(tasks)["local-only"][0].models] == ["alpha", "beta", "gamma"]


def test_the_sites_counted_equal_compute_and_the_table_says_it(tasks):
    counted = {arm: [cell.images for cell in own] for arm, own in cells(tasks).items() if own[0].images}
    assert len(counted) == 5
    assert all(images == counted["federated"] for images in counted.values()), counted
    told = (tasks.folder / "table.md").read_text()
    assert f"{counted['federated'][0]:,}" in told
    assert "equally many images" in told
    assert f"{counted['federated'][0]:,}" in tasks.screen.getvalue()


def test_a_federated_cell_is_the_run_that_simulate_makes(tasks, data, home):
    for cell in cells(tasks)["federated"]:
        config = study_config(seed=cell.seed)
        results = simulate(
            config,
            data,
            sites=None,
            partition=None,
            engine="local",
            device="cpu",
            home=home,
            progress=Progress(Console(quiet=True)),
        )
        (model,) = cell.models
        assert model.backbone_sha256 == results.backbone_sha256
        assert results.probe is not None and results.baselines is not None
        assert (model.scores["linear"], model.scores["knn"]) == (results.probe.linear, results.probe.knn)
        (random,) = next(own for own in cells(tasks)["random"] if own.seed == cell.seed).models
        assert random.scores["linear"] == results.baselines.random.linear


def test_a_study_that_is_whole_is_not_played_again(tasks, data, home, monkeypatch):
    def never(*_):
        raise AssertionError("played again")

    monkeypatch.setattr(bench.Bench, "train", never)
    monkeypatch.setattr(bench.Bench, "score", never)
    again = Played(study_config(), asked("tasks", data, finetune=FINETUNE), home)
    assert again.table == tasks.table
    assert "was there" in again.screen.getvalue()


def test_folds_are_measured_beside_the_test_split_of_the_same_models(tasks, home, own):
    folded = Played(study_config(), own("tasks", folds=3), home)
    for arm, own_cells in cells(folded).items():
        wanted = {"linear", "linear-3-folds"} if arm == "floor" else {"linear", "knn", "linear-3-folds", "knn-3-folds"}
        before = cells(tasks)[arm]
        for cell, earlier in zip(own_cells, before, strict=True):
            for model, same in zip(cell.models, earlier.models, strict=True):
                assert set(model.scores) == wanted
                assert model.backbone_sha256 == same.backbone_sha256
                assert model.scores["linear"] == same.scores["linear"]
                assert model.scores["linear-3-folds"].n_test == 108  # every picture of the three hospitals
    assert folded.table.measures == ["linear", "knn", "linear-3-folds", "knn-3-folds"]
    told = (folded.folder / "table.md").read_text()
    assert "linear in 3 folds" in told and "each of 108 labelled images is tested once" in told
    assert "In folds" not in (tasks.folder / "table.md").read_text()


def test_more_folds_than_patients_are_refused_before_anything_is_trained(own, home, monkeypatch):
    monkeypatch.setattr(bench.Bench, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(InputError, match="55 folds: 54 labelled patients"):
        Played(study_config(), own("tasks", folds=55), home)


def test_a_study_from_before_there_were_folds_is_the_same_study(tasks, data, home):
    path = tasks.folder / "study.json"
    plan = json.loads(path.read_text())
    assert plan.pop("folds") == 0
    path.write_text(json.dumps(plan))
    again = Played(study_config(), asked("tasks", data, finetune=FINETUNE), home)
    assert again.table == tasks.table
    with pytest.raises(InputError, match="folds: 0 there, 3 now"):
        Played(study_config(), asked("tasks", data, finetune=FINETUNE, folds=3), home)


def test_a_study_that_was_cut_off_goes_on_to_the_same_table(tasks, monkeypatch, home, own):
    class Cut(BaseException):
        pass

    begun = []
    play = playing._cell

    def cut(arm, *rest):
        begun.append(arm.name)
        if len(begun) == 5:
            raise Cut
        return play(arm, *rest)

    study = own("tasks", finetune=FINETUNE)
    with monkeypatch.context() as patched:
        patched.setattr(playing, "_cell", cut)
        with pytest.raises(Cut):
            Played(study_config(), study, home)
    again = Played(study_config(), study, home)
    assert again.screen.getvalue().count("was there") == 4
    for line, whole in zip(again.table.lines, tasks.table.lines, strict=True):
        assert line.figures == whole.figures


def test_more_seeds_are_added_to_a_study_that_is_there(home, own):
    config = study_config(SIMCLR)
    first = Played(config, own("tasks", seeds=1), home)
    assert first.line("federated").figures["linear"].sd is None
    more = Played(config, own("tasks", seeds=2), home)
    assert more.screen.getvalue().count("was there") == len(first.table.lines)
    assert more.line("federated").figures["linear"].values[0] == first.line("federated").figures["linear"].values[0]


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        (study_config(ROTATION, SIMCLR | {"lr": 0.02}), {}, "config_sha256"),
        (study_config(), {"finetune": FINETUNE[:1]}, "finetune"),
        (study_config(), {"options": {"initial": False}, "kind": "order", "name": "tasks-tiny"}, "kind"),
    ],
)
def test_a_folder_refuses_another_study(config, changes, says, tasks, data, home):
    changes = {"kind": "tasks", "finetune": FINETUNE} | changes
    with pytest.raises(InputError, match=f"holds another study.*{says}"):
        Played(config, asked(changes.pop("kind"), data, **changes), home)


def test_curricula_that_begin_alike_share_their_beginning_to_the_bit(tmp_path, own):
    config = study_config(ROTATION, LOCATION, SIMCLR)
    played = Played(config, own("order", seeds=1), tmp_path)
    # Of 6 orders of 3 stages and 3 single tasks: 3 first stages for two orders each, 6 second, 6 third, 3 alone.
    stages = tmp_path / "stages"
    assert len(list(stages.iterdir())) == 3 + 6 + 6 + 3
    shared = cells(played)["rotation-then-simclr-then-relative-location"][0].models[0]
    alone = Played(study_config(ROTATION, SIMCLR, LOCATION), own("tasks", seeds=1), tmp_path)
    # What the study before has played of it is not played again; the sites alone (3) and the pool have 3 stages each.
    assert len(list(stages.iterdir())) == 3 + 6 + 6 + 3 + 4 * 3
    assert cells(alone)["federated"][0].models[0].backbone_sha256 == shared.backbone_sha256


def test_the_stages_before_the_one_that_is_tuned_are_played_once(tmp_path, own):
    study = own("hyperparameters", seeds=1, options={"lr": (0.01, 0.001), "batch": (2, 4)})
    played = Played(study_config(), study, tmp_path)
    assert len(list((tmp_path / "stages").iterdir())) == 1 + 4
    assert played.table.reference == "lr 0.01, batch 4"
    assert len({cell[0].images for cell in cells(played).values()}) == 1


def test_settings_are_chosen_by_patients_that_are_in_no_test(home, own):
    study = own("hyperparameters", seeds=1, options={"lr": (0.01, 0.001)})
    chosen = Played(study_config(), study, home)
    assert chosen.table.tested == "validation"
    tested = Played(study_config(SIMCLR), own("tasks", seeds=1), home)
    # All 108 pictures have labels; the test split's are in neither part of the choice.
    assert chosen.table.train_images + chosen.table.test_images == 108 - tested.table.test_images


def test_volume_is_played_in_equally_many_steps(home, own):
    study = own("volume", seeds=1, options={"fractions": (0.5, 0.75, 1.0)})
    played = Played(study_config(SIMCLR), study, home)
    trained = [cell[0] for arm, cell in cells(played).items() if arm != "random"]
    assert len(trained) == 3
    assert len({(cell.steps, cell.images) for cell in trained}) == 1
    assert len({cell.models[0].backbone_sha256 for cell in trained}) == 3


def test_given_weights_are_compared_and_begun_with(home, own, tmp_path):
    config = study_config(SIMCLR)
    digest = save_weights(tmp_path / "weights", new_backbone(study_config(seed=77)))
    study = own(
        "tasks",
        seeds=1,
        options={"initial": True},
        initial=tmp_path / "weights" / "backbone.safetensors",
    )
    played = Played(config, study, home)
    assert cells(played)["given"][0].models[0].backbone_sha256 == digest
    digests = {cells(played)[arm][0].models[0].backbone_sha256 for arm in ("federated", "given-simclr", "given")}
    assert len(digests) == 3
    save_weights(tmp_path / "weights", new_backbone(study_config(seed=78)))
    with pytest.raises(InputError, match="initial_sha256"):
        Played(config, study, home)


def test_an_altered_stage_is_not_built_on(tmp_path, own):
    config = study_config(SIMCLR)
    played = Played(config, own("tasks", seeds=1), tmp_path)
    shutil.rmtree(played.folder / "cells")
    for stage in (tmp_path / "stages").iterdir():
        save_weights(stage, new_backbone(config))
    with pytest.raises(RunFailed, match="its backbone was altered"):
        Played(config, own("tasks", seeds=1), tmp_path)


def test_a_site_that_misses_a_round_fails_the_cell(monkeypatch, home, own):
    """On less data an arm would not be at equal compute: it must not count."""
    from server import local_grid

    play = local_grid.LocalGrid._play
    trained = []

    def late(self, message):
        if message.metadata.message_type == "train":
            trained.append(message)
            if len(trained) == 5:  # one site in the second round
                message.metadata.ttl = 0.0
        return play(self, message)

    monkeypatch.setattr(local_grid.LocalGrid, "_play", late)
    with pytest.raises(RunFailed, match=r"federated.*\n?.*round 2"):
        Played(study_config(SIMCLR, federation={"min_sites": 2, "round_retries": 0}), own("tasks"), home)


def test_an_arm_that_collapses_is_scored_like_the_others_and_named(tasks):
    """Without it in the table only the seeds that went well would count."""
    collapsed = [cell for own in cells(tasks).values() for cell in own if cell.collapsed]
    assert [(cell.arm, cell.seed) for cell in collapsed] == [("pooled", 3)]  # eight features are soon all alike
    assert tasks.line("pooled").seeds == [3, 4]
    assert "Collapsed" in (tasks.folder / "table.md").read_text() and not tasks.table.failed


def test_a_setting_that_diverges_is_named_in_the_table_and_the_others_are_played(home, own):
    study = own("hyperparameters", seeds=1, options={"lr": (0.01, 1e30)})
    played = Played(study_config(SIMCLR), study, home)
    assert [line.seeds for line in played.table.lines] == [[3], []]
    (reason,) = played.table.failed
    assert "lr 1e+30" in reason and reason in (played.folder / "table.md").read_text()
    assert "FAILED" in played.screen.getvalue()


@pytest.mark.parametrize(
    ("config", "study", "says"),
    [
        (study_config(SIMCLR | {"stop": "plateau"}), {}, "needs stop = 'rounds'"),
        (study_config(ROTATION, SIMCLR | {"batch_size": 3}), {}, "not be trained on equally many images"),
        (study_config(SIMCLR | {"batch_size": 64}), {}, "fewer than batch_size = 64"),
        (study_config(SIMCLR), {"engine": "spark"}, "--engine spark"),
        (study_config(SIMCLR), {"name": "../elsewhere"}, "--name"),
        (study_config(ROTATION, privacy={"noise_multiplier": 1.0}), {}, r"without \[privacy\]"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(config, study, says, monkeypatch, home, own):
    monkeypatch.setattr(bench.Bench, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(InputError, match=says):
        Played(config, own("tasks", seeds=1, **study), home)


def test_a_mistake_that_was_refused_does_not_stand_in_the_way_of_its_correction(home, own):
    with pytest.raises(InputError, match="fewer than batch_size"):
        Played(study_config(SIMCLR | {"batch_size": 64}), own("tasks", seeds=1), home)
    assert Played(study_config(SIMCLR), own("tasks", seeds=1), home).table.seeds == [3]


def test_a_cell_is_json_that_holds_what_was_played(tasks):
    cell = json.loads((tasks.folder / "cells" / "federated" / "seed-3" / "cell.json").read_text())
    (model,) = cell["models"]
    assert [(stage["task"], stage["rounds"]) for stage in model["stages"]] == [("rotation", 1), ("simclr", 2)]
    assert all(stage["loss"] > 0 and stage["steps"] > 0 for stage in model["stages"])
