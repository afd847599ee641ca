"""A run whose features become one is stopped in words where most sites see it, and tells nothing of patients."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from aiseeme_models.analysis import collapse
from aiseeme_models.errors import RunFailed
from aiseeme_models.pretext.byol import BYOL
from federation_configs.schema import FederationConfig
from server.metrics_log import read_lines
from server.observer import Silent
from tests.conftest import InProcess, tiny_config

HOLDOUT = {"test": 0.1, "validation": 0.5}


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def says(collapsed: bool | None, stage: int = 0) -> Callable[[Message, Message], Message]:
    """A site that says so from a stage on."""

    def alter(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train":
            body = json.loads(reply.content["body"]["json"])
            told = body | {"collapsed": collapsed if body["stage"] >= stage else False}
            reply.content["body"] = ConfigRecord({"json": json.dumps(told)})
        return reply

    return alter


def two_stages(**changes: Any) -> FederationConfig:
    stage = {"rounds": 1, "batch_size": 4, "lr": 0.01} | changes
    return tiny_config(
        holdout=HOLDOUT, curriculum={"stage": [stage | {"task": "rotation"}, stage | {"task": "simclr"}]}
    )


def test_a_stage_that_most_sites_say_has_collapsed_ends_the_run_with_what_to_try(
    federation: Callable[..., InProcess],
) -> None:
    made = federation(two_stages(), {"alpha": says(True, 1), "beta": says(False), "gamma": says(True, 1)})
    with pytest.raises(RunFailed) as failure:
        made.play()
    words = str(failure.value)
    assert words.startswith(
        "round 2: stage 2, simclr, has collapsed at 2 of 3 sites (alpha, gamma): the backbone gives"
    )
    for hint in ("a lower lr", "model.norm = group-ws or batch", "larger batch_size", "another task", "on_collapse"):
        assert hint in words
    lines, _ = read_lines(made.folder / "run" / "metrics.jsonl")
    assert {line["site"]: line["collapsed"] for line in lines if line["round"] == 2 and "site" in line} == {
        "alpha": True,
        "beta": False,
        "gamma": True,
    }
    assert sorted(path.name for path in (made.folder / "run" / "checkpoints").glob("*.json"))[-1] == "round-0001.json"
    with pytest.raises(RunFailed, match="round 2: stage 2, simclr, has collapsed"):
        made.play()  # resumed: it is played again from the last good round


@pytest.mark.parametrize(
    "alter",
    [
        {"alpha": says(True), "beta": says(False), "gamma": says(False)},
        {"alpha": says(True), "beta": says(None), "gamma": says(None)},
        {name: says(None) for name in ("alpha", "beta", "gamma")},
    ],
)
def test_a_minority_does_not_stop_it(alter: Mapping[str, Any], federation: Callable[..., InProcess]) -> None:
    state, _ = federation(two_stages(), alter).play()
    assert state.finished


def test_it_goes_on_where_the_stage_says_so(federation: Callable[..., InProcess]) -> None:
    notes = Notes()
    alter = {name: says(True) for name in ("alpha", "beta", "gamma")}
    state, _ = federation(two_stages(on_collapse="note"), alter).play(notes)
    assert state.finished
    assert [text[:40] for text in notes.said] == [
        "round 1: stage 1, rotation, has collapse",
        "round 2: stage 2, simclr, has collapsed ",
    ]


def test_healthy_sites_say_so_and_looking_changes_no_bit(
    federation: Callable[..., InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = federation(two_stages())
    _, vector = made.play()
    lines, _ = read_lines(made.folder / "run" / "metrics.jsonl")
    held = {site.name: len(site.rows_of("validation", made.config.holdout)) for site in made.sites}
    told = {line["site"]: line.get("collapsed") for line in lines if "site" in line}
    assert told == {name: False if count >= collapse.FEWEST else None for name, count in held.items()}
    assert False in told.values()
    monkeypatch.setattr(collapse, "has_collapsed", lambda *_, **__: None)
    np.testing.assert_array_equal(vector, federation(two_stages(), where="unseen").play()[1])


def test_byol_with_plain_group_norm_is_stopped(
    federation: Callable[..., InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration refuses it; here it is let through, to see that the rounds would stop it."""
    monkeypatch.setattr(BYOL, "check", classmethod(lambda cls, *_, **__: None))
    stage = {"task": "byol", "rounds": 12, "batch_size": 4, "optimizer": "adamw", "lr": 0.002}
    config = tiny_config(
        holdout=HOLDOUT,
        model={"backbone": "resnet-tiny", "norm": "group"},
        images={"preset": "dermoscopy", "size": 32},
        curriculum={"stage": [stage]},
    )
    with pytest.raises(RunFailed, match=r"stage 1, byol, has collapsed at [23] of 3 sites"):
        federation(config).play()


def test_where_patients_are_protected_nothing_is_told(federation: Callable[..., InProcess]) -> None:
    stage = {"task": "rotation", "rounds": 1, "batch_size": 4, "lr": 0.01}
    privacy = {"noise_multiplier": 1.0, "max_grad_norm": 1.0}
    config = tiny_config(
        holdout={"test": 0.1, "validation": 0.1},
        curriculum={"stage": [stage]},
        privacy=privacy,
        federation={"min_sites": 1, "round_retries": 0},
    )
    made = federation(config, {"beta": says(True)})
    state, _ = made.play()
    assert {missed.code for missed in state.sites["beta"].missed} == {"malformed-reply"}
    assert state.sites["gamma"].answered == 1
    lines, _ = read_lines(made.folder / "run" / "metrics.jsonl")
    assert lines and not any("collapsed" in line for line in lines)
