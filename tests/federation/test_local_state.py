"""What stays at a site between rounds: kept by round, and never from the future."""

from __future__ import annotations

import torch

from client.local_state import LocalState


def test_a_round_that_is_played_again_starts_from_the_state_before_it(tmp_path):
    state = LocalState(tmp_path, "run", 0, kept=3)
    assert state.load_before(1) is None
    for number in (1, 2, 3):
        state.save(number, {"queue": torch.full((2,), float(number))})
    assert state.load_before(3)["queue"].tolist() == [2.0, 2.0]
    state.save(3, {"queue": torch.full((2,), 30.0)})
    assert state.load_before(4)["queue"].tolist() == [30.0, 30.0]


def test_a_round_that_the_site_missed_is_no_gap(tmp_path):
    state = LocalState(tmp_path, "run", 0, kept=3)
    state.save(1, {"queue": torch.ones(1)})
    state.save(4, {"queue": torch.full((1,), 4.0)})
    assert state.load_before(4)["queue"].item() == 1.0


def test_only_the_newest_states_are_kept_and_none_of_a_history_that_is_replayed(tmp_path):
    state = LocalState(tmp_path, "run", 0, kept=3)
    for number in range(1, 6):
        state.save(number, {"queue": torch.ones(1)})
    assert sorted(path.name for path in state.folder.iterdir()) == [f"round-00000{n}.safetensors" for n in (3, 4, 5)]
    state.save(4, {"queue": torch.zeros(1)})
    assert sorted(path.name for path in state.folder.iterdir()) == [f"round-00000{n}.safetensors" for n in (3, 4)]


def test_stages_and_runs_have_states_of_their_own(tmp_path):
    LocalState(tmp_path, "run", 0, kept=3).save(1, {"queue": torch.ones(1)})
    assert LocalState(tmp_path, "run", 1, kept=3).load_before(9) is None
    assert LocalState(tmp_path, "other", 0, kept=3).load_before(9) is None


def test_an_earlier_stage_is_let_go_once_nobody_can_go_back_to_it(tmp_path):
    first, second = (LocalState(tmp_path, "run", stage, kept=2) for stage in (0, 1))
    first.save(1, {"queue": torch.ones(1)})
    second.save(2, {"queue": torch.ones(1)})
    assert first.load_before(2) is not None
    second.save(3, {"queue": torch.ones(1)})
    assert first.load_before(2) is None
