"""Every pretext task runs in a federation of three sites, and goes on in the middle of a stage with the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from aiseeme_models.pretext import pretext_tasks
from server.observer import Silent
from tests.conftest import tiny_config
from tests.models.small_tasks import SMALL


class Crash(Silent):
    def round_started(self, config, state, round_number, attempt):
        if round_number == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("task", list(pretext_tasks))
def test_it_runs_over_three_sites_and_resumes_in_the_middle_of_a_stage(task, federation):
    stage = {"task": task, "rounds": 3, "batch_size": 8, "lr": 1e-3, "options": SMALL.get(task, {})}
    config = tiny_config(
        model={"backbone": "resnet-tiny", "norm": "batch"},
        curriculum={"stage": [stage | {"on_collapse": "note"}]},
        federation={"min_sites": 3},
    )
    state, whole = federation(config, where="whole").play()
    assert state.stages[0].rounds_done == 3
    assert all(site.answered == 3 for site in state.sites.values())
    assert np.isfinite(whole).all()
    crashed = federation(config, where="crashed")
    with pytest.raises(KeyboardInterrupt):
        crashed.play(Crash())
    again, resumed = crashed.play()
    np.testing.assert_array_equal(whole, resumed)
    assert again.stages[0].losses == state.stages[0].losses
