"""Same seed, same bits: again, in any order of arrival, and after a crash at any point."""

from __future__ import annotations

import numpy as np
import pytest

from aiseeme_models.errors import RunFailed
from server.checkpoints import CheckpointStore
from server.observer import Silent
from tests.conftest import tiny_config

MOCO = {"task": "moco", "rounds": 3, "batch_size": 4, "options": {"queue": 16}}
BYOL = {"task": "byol", "rounds": 2, "batch_size": 4, "optimizer": "sgd"}
SWAV = {"task": "swav", "rounds": 3, "batch_size": 4, "options": {"queue": 8, "queue_from": 0.2, "freeze": 0.4}}


class Crash(BaseException):
    """Stands for a power cut: nothing catches it."""


class CrashAt(Silent):
    """Crashes the coordinator at a chosen moment."""

    def __init__(self, moment: str, count: int) -> None:
        self.moment, self.left = moment, count

    def _pass(self, moment: str) -> None:
        if moment == self.moment:
            self.left -= 1
            if self.left == 0:
                raise Crash

    def round_started(self, config, state, round_number, attempt):
        self._pass("a round begins")

    def site_answered(self, site, images, seconds, loss):
        self._pass("a site has answered")

    def round_done(self, state, loss, heldout):
        self._pass("a checkpoint is written")


def curriculum(**changes):
    return tiny_config(model={"backbone": "tiny", "norm": "batch-local"}, curriculum={"stage": [MOCO, BYOL]}, **changes)


def test_two_runs_give_the_same_bits(federation):
    first, second = federation(curriculum(), where="first").play(), federation(curriculum(), where="second").play()
    np.testing.assert_array_equal(first[1], second[1])


def test_another_seed_gives_other_bits(federation):
    first, second = federation(curriculum(), where="a").play(), federation(curriculum(seed=4), where="b").play()
    assert (first[1] != second[1]).any()


def test_the_order_of_arrival_does_not_change_a_bit(federation, monkeypatch):
    def play(where, order):
        played = federation(curriculum(), where=where)
        loop = played.loop()
        push = loop.grid.push_messages
        loop.grid.push_messages = lambda messages: push(order(list(messages)))
        ask = __import__("server.exchange", fromlist=["ask"]).ask
        monkeypatch.setattr(
            "server.questions.ask",
            lambda grid, contents, *a, **k: ask(grid, dict(order(list(contents.items()))), *a, **k),
        )
        loop.grid.push_messages = push
        return loop.play()[1]

    in_order = play("in-order", lambda items: items)
    np.testing.assert_array_equal(in_order, play("reversed", lambda items: items[::-1]))


@pytest.mark.parametrize("aggregation", ["fedavg", "fedadam", "fedavgm", "median", "fedema", "l-dawa"])
@pytest.mark.parametrize(
    ("moment", "count"),
    [
        ("a round begins", 1),
        ("a round begins", 3),
        ("a site has answered", 1),
        ("a site has answered", 5),
        ("a site has answered", 12),
        ("a checkpoint is written", 2),
        ("a checkpoint is written", 3),
        ("a checkpoint is written", 5),
    ],
)
def test_a_run_that_crashed_ends_with_the_same_bits(moment, count, aggregation, federation):
    config = curriculum(federation={"min_sites": 2, "aggregation": aggregation})
    whole_state, whole = federation(config, where="whole").play()
    crashed = federation(config, where="crashed")
    with pytest.raises(Crash):
        crashed.play(CrashAt(moment, count))
    state, resumed = crashed.play()
    np.testing.assert_array_equal(whole, resumed)
    assert [stage.losses for stage in state.stages] == [stage.losses for stage in whole_state.stages]
    assert {n: s.answered for n, s in state.sites.items()} == {n: s.answered for n, s in whole_state.sites.items()}


@pytest.mark.parametrize(
    "step", ["write .safetensors", "flush .safetensors", "rename .safetensors", "write .json", "rename .json", "prune"]
)
def test_a_crash_while_a_checkpoint_is_written_loses_no_earlier_one(step, federation, monkeypatch):
    config = curriculum()
    whole = federation(config, where="whole").play()[1]
    crashed = federation(config, where="crashed")
    seen = []

    def watch(name):
        seen.append(name)
        if seen.count(step) == 4 and name == step:
            raise Crash

    plain = CheckpointStore.__init__
    with monkeypatch.context() as patched:
        watched = lambda self, folder, keep, key: plain(self, folder, keep, key, watch=watch)  # noqa: E731
        patched.setattr(CheckpointStore, "__init__", watched)
        with pytest.raises(Crash):
            crashed.play()
    np.testing.assert_array_equal(whole, crashed.play()[1])


def test_a_full_disk_fails_the_run_and_loses_no_checkpoint(federation, monkeypatch):
    config = curriculum()
    whole = federation(config, where="whole").play()[1]
    full = federation(config, where="full")

    def no_space(path, vector, optimizer_state):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    class ThenFull(Silent):
        def round_done(self, state, loss, heldout):
            if state.round == 2:
                patched.setattr("server.checkpoints._write_tensors", no_space)

    with monkeypatch.context() as patched, pytest.raises(RunFailed, match="No space left on device"):
        full.play(ThenFull())
    assert CheckpointStore(full.folder / "run" / "checkpoints", keep=2).latest().manifest.round == 2
    np.testing.assert_array_equal(whole, full.play()[1])


def test_a_queue_goes_on_where_it_was(federation):
    """MoCo's queue is local state: without it a resumed site would answer otherwise."""
    config = tiny_config(curriculum={"stage": [MOCO]})
    whole = federation(config, where="whole").play()[1]
    forgetful = federation(config, where="forgetful")
    with pytest.raises(Crash):
        forgetful.play(CrashAt("a checkpoint is written", 2))
    for kept in forgetful.folder.rglob("sites/*/runs/**/*.safetensors"):
        kept.unlink()
    assert (forgetful.play()[1] != whole).any()


@pytest.mark.parametrize(("moment", "count"), [("a site has answered", 1), ("a site has answered", 5)])
def test_prototypes_that_are_not_yet_trained_and_a_queue_that_fills_go_on_where_they_were(moment, count, federation):
    config = tiny_config(curriculum={"stage": [SWAV]})
    whole = federation(config, where="whole").play()[1]
    crashed = federation(config, where="crashed")
    with pytest.raises(Crash):
        crashed.play(CrashAt(moment, count))
    np.testing.assert_array_equal(whole, crashed.play()[1])


def damage(folder, rounds):
    for number in rounds:
        (folder / "run" / "checkpoints" / f"round-{number:04d}.safetensors").write_bytes(b"damaged")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_damaged_checkpoints_are_passed_over_to_the_same_bits_and_said(count, federation):
    config = curriculum(federation={"min_sites": 2, "keep_checkpoints": 4})
    whole = federation(config, where="whole").play()[1]
    damaged = federation(config, where="damaged")
    with pytest.raises(Crash):
        damaged.play(CrashAt("a site has answered", 13))  # in round 5; 1 to 4 are written
    damage(damaged.folder, range(4, 4 - count, -1))
    notes = []

    class Notes(Silent):
        def note(self, text):
            notes.append(text)

    np.testing.assert_array_equal(whole, damaged.play(Notes())[1])
    assert sum("damaged checkpoint" in note for note in notes) == count


def test_a_run_without_one_good_checkpoint_does_not_quietly_begin_again(federation):
    damaged = federation(curriculum())
    with pytest.raises(Crash):
        damaged.play(CrashAt("a site has answered", 7))
    damage(damaged.folder, range(0, 3))
    with pytest.raises(RunFailed, match="none of its checkpoints can be used"):
        damaged.play()


def test_a_cut_line_of_the_metrics_does_not_stop_a_resume(federation):
    cut = federation(curriculum())
    with pytest.raises(Crash):
        cut.play(CrashAt("a site has answered", 7))
    with (cut.folder / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "site": "al')
    assert cut.play()[0].finished


def test_metrics_on_a_full_disk_fail_the_run_with_the_reason(federation):
    full = federation(curriculum())
    (full.folder / "run").mkdir(parents=True)
    (full.folder / "run" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunFailed, match=r"metrics.jsonl could not be written: No space left on device"):
        full.play()
