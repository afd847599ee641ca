"""Three hospitals train several tasks in one stage: the same bits again, and after a crash in the middle of it."""

from __future__ import annotations

import numpy as np
import pytest

from client.ledger import Ledger
from server.global_model import start_of_stage
from tests.conftest import tiny_config
from tests.federation.gated_site import gated, played_signed
from tests.federation.test_same_bits import Crash, CrashAt

TASKS = [{"task": "rotation"}, {"task": "moco", "options": {"queue": 16}}]
WITHOUT_STATE = [{"task": "rotation"}, {"task": "simclr"}]
WEIGHTINGS = ["equal", "uncertainty", "dwa", "self-paced"]


def config(weighting, tasks=TASKS, **changes):
    options = {"tasks": tasks, "weighting": weighting}
    stage = {"task": "multi-task", "rounds": 4, "batch_size": 4, "lr": 0.01, "options": options}
    after = {"task": "simclr", "rounds": 1, "batch_size": 4}
    return tiny_config(curriculum={"stage": [stage, after]}, **changes)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("moment", "count"), [("a site has answered", 8), ("a checkpoint is written", 3)])
def test_a_run_that_crashed_within_the_stage_ends_with_the_same_bits(weighting, moment, count, federation):
    whole_state, whole = federation(config(weighting), where="whole").play()
    crashed = federation(config(weighting), where="crashed")
    with pytest.raises(Crash):
        crashed.play(CrashAt(moment, count))
    state, resumed = crashed.play()
    np.testing.assert_array_equal(whole, resumed)
    assert [stage.losses for stage in state.stages] == [stage.losses for stage in whole_state.stages]
    assert all(loss > 0 for stage in state.stages for loss in stage.losses + stage.heldout)


@pytest.mark.parametrize("weighting", ["dwa", "self-paced"])
def test_weights_go_on_from_the_losses_of_earlier_rounds(weighting, federation):
    """They are local state: without it a resumed site would answer otherwise."""
    whole = federation(config(weighting, WITHOUT_STATE), where="whole").play()[1]
    forgetful = federation(config(weighting, WITHOUT_STATE), where="forgetful")
    with pytest.raises(Crash):
        forgetful.play(CrashAt("a checkpoint is written", 3))
    kept = list(forgetful.folder.rglob("sites/*/runs/**/*.safetensors"))
    assert kept
    for file in kept:
        file.unlink()
    assert (forgetful.play()[1] != whole).any()


def only_stage(made):
    return tiny_config(curriculum={"stage": [made.curriculum.stage[0].model_dump(mode="json")]})


def test_log_variances_are_trained_at_the_sites_and_averaged(federation):
    one_stage = only_stage(config("uncertainty", WITHOUT_STATE))
    vector = federation(one_stage).play()[1]
    layout = start_of_stage(one_stage, 0, None).layout
    place = [entry.name for entry in layout.entries].index("head.weighting.values")
    values = vector[layout.slices[place]]
    assert values.shape == (2,)
    assert (values != 0).all()
    assert values[1] > values[0]  # SimCLR's loss is the larger one


def test_a_hospitals_ledger_says_which_tasks_share_a_stage(federation):
    made = gated(federation(only_stage(config("equal", WITHOUT_STATE))))
    played_signed(made)
    entries = Ledger.in_home(made.sites[0].state_folder).entries()
    assert {entry.fields["task"] for entry in entries if "task" in entry.fields} == {"multi-task (rotation + simclr)"}


def test_several_tasks_are_trained_with_patients_protected(federation):
    tasks = [{"task": "rotation"}, {"task": "relative-location"}]
    stage = {"task": "multi-task", "rounds": 2, "batch_size": 4, "options": {"tasks": tasks}}
    private = {"privacy": {"noise_multiplier": 1.0}, "holdout": {"test": 0.0, "validation": 0.0}}
    state, vector = federation(tiny_config(curriculum={"stage": [stage]}, **private)).play()
    assert state.finished
    assert np.isfinite(vector).all()
    assert all(site.epsilon > 0 for site in state.sites.values())
