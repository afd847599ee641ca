"""A rehearsal plays every stage shortly with every site, and says who would not count and how long it will take."""

from __future__ import annotations

import pytest
from flwr.app import Error, Message

from server.canary import rehearsal_config, rehearsals
from tests.conftest import tiny_config


def silent_in_second_stage(message, reply):
    training = message.metadata.message_type == "train" and int(message.metadata.group_id) > 1
    return Message(Error(2, "no"), reply_to=message) if training else reply


def rehearsed(config, federation, alter=None):
    played = federation(rehearsal_config(config), alter or {})
    played.play()
    return {(one.stage, one.site): one for one in rehearsals(config, played.folder / "run", ["alpha", "beta", "gamma"])}


def test_every_stage_is_played_once_with_few_steps_whatever_the_run_has(federation):
    config = tiny_config(
        curriculum={
            "stage": [
                {"task": "rotation", "rounds": 40, "batch_size": 4, "lr": 0.01, "local_epochs": 50},
                {"task": "simclr", "rounds": 60, "batch_size": 4, "lr": 0.01, "stop": "plateau"},
            ]
        }
    )
    short = rehearsal_config(config)
    assert short.rounds == 2 and {stage.max_steps for stage in short.curriculum.stage} == {3}
    assert short.name == "canary-tiny" and short.federation.min_sites == 1
    found = rehearsed(config, federation)
    assert len(found) == 6 and all(one.problem is None for one in found.values())
    # 50 passes are foreseen, not the three steps that were made.
    assert found[0, "alpha"].round_s > 5 * found[1, "alpha"].round_s


def test_a_site_that_fails_in_a_later_stage_is_named_with_the_reason(federation):
    found = rehearsed(tiny_config(), federation, {"beta": silent_in_second_stage})
    assert found[0, "beta"].problem is None
    assert "the site's client failed" in found[1, "beta"].problem
    assert found[1, "alpha"].problem is None


@pytest.mark.parametrize("name", ["a" * 48, "x"])
def test_a_rehearsal_has_a_name_of_its_own(name):
    assert rehearsal_config(tiny_config(name=name)).name.startswith("canary-")
