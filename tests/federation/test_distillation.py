"""A stage that distils gets its teacher once, keeps it, and ends with the same bits whatever happens on the way."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from flwr.app import Error, Message
from safetensors.numpy import load_file, save_file

from aiseeme_models.errors import InputError, RunFailed
from federation_configs.records import pack
from federation_configs.site_errors import SiteError
from federation_configs.transfer import sha256_of
from federation_configs.wire import TrainRequest
from server.global_model import start_of_stage
from server.local_grid import LocalGrid
from server.observer import Silent
from tests.conftest import tiny_config

STAGE = {"rounds": 3, "batch_size": 4, "lr": 0.01}


def taught(transfer="float32", norm="batch", **distill):
    second = STAGE | {"task": "simclr", "distill": {"kind": "mse", **distill}}
    return tiny_config(
        model={"backbone": "tiny", "norm": norm},
        curriculum={"stage": [STAGE | {"task": "rotation"}, second]},
        federation={"min_sites": 2, "round_retries": 1, "transfer": transfer},
    )


class Watched(Silent):
    """Crashes the coordinator when a round begins, and keeps what is told."""

    def __init__(self, crash_at: int | None = None) -> None:
        self.crash_at, self.notes = crash_at, []

    def round_started(self, config, state, round_number, attempt):
        if round_number == self.crash_at:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


def counted(kinds):
    def count(message, reply):
        kinds[message.metadata.message_type, message.metadata.dst_node_id] += 1
        return reply

    return count


@pytest.mark.parametrize("transfer", ["float32", "float16"])
def test_every_site_gets_the_teacher_once_a_stage(transfer, federation):
    kinds = Counter()
    played = federation(taught(transfer), alter=dict.fromkeys(("alpha", "beta", "gamma"), counted(kinds)))
    state, _ = played.play()
    assert [kinds[key] for key in sorted(kinds) if key[0] == "query.teach"] == [1, 1, 1]
    assert [kinds[key] for key in sorted(kinds) if key[0] == "train"] == [6, 6, 6]
    assert state.stages[0].teacher is None
    assert len(state.stages[1].teacher) == 64


def test_the_teacher_is_the_backbone_that_the_stage_before_ended_with(federation):
    played = federation(taught())
    state, _ = played.play()
    teacher = load_file(played.folder / "run" / "teachers" / "stage-001.safetensors")["backbone"]
    assert sha256_of(teacher) == state.stages[1].teacher
    alone = federation(
        tiny_config(model={"backbone": "tiny", "norm": "batch"}, curriculum={"stage": [STAGE | {"task": "rotation"}]}),
        where="alone",
    )
    np.testing.assert_array_equal(teacher, alone.play()[1][: teacher.size])


@pytest.mark.parametrize("distill", [{}, {"kind": "moon", "teacher": "round"}, {"kind": "kl", "teacher": "round"}])
def test_it_changes_what_is_learnt(distill, federation):
    plain = tiny_config(
        model={"backbone": "tiny", "norm": "batch"},
        curriculum={"stage": [STAGE | {"task": "rotation"}, STAGE | {"task": "simclr"}]},
    )
    assert (federation(taught(**distill), where="taught").play()[1] != federation(plain, where="plain").play()[1]).any()


@pytest.mark.parametrize(
    "distill", [{}, {"kind": "moon", "teacher": "round", "pretext_weight": 1.0}], ids=["stage", "moon"]
)
@pytest.mark.parametrize("crash_at", [4, 5, 6])
def test_a_run_that_crashed_ends_with_the_same_bits(crash_at, distill, federation):
    whole = federation(taught("float16", **distill), where="whole").play()[1]
    crashed = federation(taught("float16", **distill), where="crashed")
    with pytest.raises(KeyboardInterrupt):
        crashed.play(Watched(crash_at))
    np.testing.assert_array_equal(whole, crashed.play()[1])


def test_a_site_that_comes_late_or_lost_its_teacher_gets_it_then(federation):
    def lose_teacher(site):
        (played.folder / "sites" / site / "runs" / "run" / "stage-001" / "teacher.safetensors").unlink()

    kinds = Counter()

    def away_at_first(message, reply):
        kinds[message.metadata.message_type] += 1
        if message.metadata.message_type == "query.teach" and kinds["query.teach"] == 1:
            lose_teacher("beta")
            return Message(Error(1, "gone"), reply_to=message)
        return reply

    played = federation(taught(), alter={"beta": away_at_first})
    observer = Watched()

    def lose(config, state, round_number, attempt):
        if round_number == 6:
            lose_teacher("gamma")

    observer.round_started = lose
    state, _ = played.play(observer)
    assert [missed.round for missed in state.sites["beta"].missed] == [4]
    assert state.sites["beta"].missed[0].reason == SiteError.TEACHER_MISSING.sentence
    assert [missed.round for missed in state.sites["gamma"].missed] == [6]
    assert observer.notes[0].startswith("beta did not take the stage's teacher")
    assert state.finished


def test_a_site_does_not_learn_from_another_teacher_than_the_one_it_is_told(federation):
    played = federation(taught())

    class Swap(Silent):
        def round_started(self, config, state, round_number, attempt):
            if round_number == 5:
                path = played.folder / "sites" / "alpha" / "runs" / "run" / "stage-001" / "teacher.safetensors"
                save_file({"backbone": load_file(path)["backbone"] + 1}, path)

    state, _ = played.play(Swap())
    assert [(missed.round, missed.code) for missed in state.sites["alpha"].missed] == [(5, "site-error")]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_coordinator_does_not_go_on_with_a_teacher_that_is_not_the_checkpoints(damage, federation):
    played = federation(taught())
    with pytest.raises(KeyboardInterrupt):
        played.play(Watched(5))
    path = played.folder / "run" / "teachers" / "stage-001.safetensors"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(RunFailed, match="teacher"):
        played.play()


@pytest.mark.parametrize(("stage", "teacher"), [(1, None), (0, "0" * 64)])
def test_a_request_that_names_a_teacher_where_there_is_none_or_none_where_there_is_one_is_refused(
    stage, teacher, federation
):
    played, config = federation(taught()), taught()
    model = start_of_stage(config, stage, None)
    asked = TrainRequest(
        run="run",
        config=config,
        round=4,
        stage=stage,
        round_in_stage=0,
        layout_sha256=model.layout.digest,
        teacher=teacher,
    )
    grid = LocalGrid(played.app(), 3)
    ids = grid.push_messages([Message(pack(asked, model.vector), 2, "train", ttl=600, group_id="1")])
    (reply,) = grid.pull_messages(ids)
    assert reply.error.code == SiteError.BAD_REQUEST


@pytest.mark.parametrize(
    ("stage", "distill", "says"),
    [
        (0, {}, "needs a stage before this one"),
        (1, {"kind": "klt"}, "did you mean 'kl'"),
        (1, {"weight": 0}, "greater than 0"),
        (1, {"wieght": 1}, "did you mean weight"),
        (1, {"kind": "mse", "options": {"temperature": 3.0}}, "temperature: unknown key"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused_while_the_configuration_is_read(stage, distill, says):
    stages = [STAGE | {"task": "rotation"}, STAGE | {"task": "simclr"}]
    stages[stage] = stages[stage] | {"distill": distill}
    with pytest.raises(InputError, match=says):
        tiny_config(curriculum={"stage": stages})


def test_local_statistics_make_no_teacher():
    with pytest.raises(InputError, match="batch-local"):
        taught(norm="batch-local")
