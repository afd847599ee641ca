"""Quorum: so many sites, and those that must be among them; sites whose connection is gone are waited for."""

from __future__ import annotations

import json
import time

import pytest
from flwr.app import ConfigRecord, Error, Message

from aiseeme_models.errors import InputError, RunFailed
from federation_configs.loading import check_config
from server.observer import Silent
from tests.conftest import tiny_config


def needing(*names, **options):
    return tiny_config(federation={"min_sites": 2, "round_retries": 1, "required_sites": list(names)} | options)


def silent_in_training(message, reply):
    return Message(Error(2, "no"), reply_to=message) if message.metadata.message_type == "train" else reply


def test_a_round_without_a_required_site_has_no_quorum_however_many_answered(federation):
    with pytest.raises(RunFailed, match="2 of 3 sites gave a valid reply and min_sites is 2 with gamma among them"):
        federation(needing("gamma"), {"gamma": silent_in_training}).play()


def test_a_round_without_another_site_counts(federation):
    state, _ = federation(needing("gamma"), {"alpha": silent_in_training}).play()
    assert state.finished and state.sites["gamma"].answered == 4 and state.sites["alpha"].answered == 0


class Gone:
    """A grid from which a node is gone, and after some looks back."""

    def __init__(self, grid, node, looks):
        self._grid, self._node, self.looks = grid, node, looks

    def __getattr__(self, name):
        return getattr(self._grid, name)

    def get_node_ids(self):
        self.looks -= 1
        return [node for node in self._grid.get_node_ids() if node != self._node or self.looks < 0]


def test_a_site_that_is_not_connected_yet_is_waited_for(federation):
    loop = federation(needing("gamma")).loop()
    nodes = list(loop.grid.get_node_ids())
    loop.grid, loop.rejoin_s = Gone(loop.grid, nodes[2], looks=3), 30.0
    state, _ = loop.play()
    assert all(site.answered == 4 for site in state.sites.values())


def test_a_site_that_does_not_come_is_waited_for_no_longer_than_was_said(federation):
    loop = federation(needing()).loop()
    nodes = list(loop.grid.get_node_ids())
    loop.grid, loop.rejoin_s = Gone(loop.grid, nodes[2], looks=10**9), 1.0
    started = time.monotonic()
    state, _ = loop.play()
    assert state.finished and state.sites["gamma"].answered == 0
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sites": ["alpha", "alpha"]}, "sites names a site twice"),
        ({"sites": ["alpha"], "min_sites": 2}, "min_sites is 2, but sites names 1"),
        ({"sites": ["alpha", "beta"], "required_sites": ["gamma"]}, "required_sites names gamma, which sites does not"),
        ({"sites": ["../alpha"]}, "sites"),
        ({"required_sites": ["a/b"]}, "required_sites"),
    ],
)
def test_an_impossible_quorum_is_refused_when_the_configuration_is_read(options, says):
    with pytest.raises(InputError, match=says):
        tiny_config(federation={"min_sites": 2} | options)


def test_a_round_may_be_cut_to_a_few_steps(federation):
    stage = {"task": "rotation", "rounds": 1, "batch_size": 4, "lr": 0.01, "local_epochs": 3, "max_steps": 2}
    steps = []

    class Watch(Silent):
        def site_answered(self, site, images, seconds, loss):
            steps.append(site)

    played = federation(tiny_config(curriculum={"stage": [stage]}))
    state, _ = played.play(Watch())
    assert state.finished and sorted(steps) == ["alpha", "beta", "gamma"]
    assert check_config(played.config.model_dump(mode="json"), where="again") == played.config


class Grown:
    """A site whose runner is started again in the second round, and finds more images than it had described."""

    def __init__(self, times):
        self.times, self.described, self.grown = times, 0, 0

    def __call__(self, message, reply):
        body = json.loads(reply.content["body"]["json"])
        if message.metadata.message_type == "query.describe":
            self.described += 1
            if self.described == 1:
                self.grown = body["train"] * self.times + 1
            else:
                body["train"] = self.grown
        elif message.metadata.message_type == "train" and body["round"] > 1:
            body["images"] = self.grown
        reply.content["body"] = ConfigRecord({"json": json.dumps(body)})
        return reply


@pytest.mark.parametrize("times", [1, 20])
def test_a_site_whose_images_have_changed_describes_itself_again_and_counts(federation, times):
    stage = {"task": "rotation", "rounds": 3, "batch_size": 4, "lr": 0.01, "max_steps": 1}
    grown = Grown(times)
    config = tiny_config(curriculum={"stage": [stage]}, federation={"min_sites": 3, "round_retries": 1})
    state, _ = federation(config, {"gamma": grown}).play()
    assert state.finished and grown.described == 2
    assert state.sites["gamma"].answered == 3 and state.sites["gamma"].images == grown.grown
