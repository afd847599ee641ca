"""Failures that need no federation of processes: those of the supervisor, and a checkpoint that is another model's."""

from __future__ import annotations

import errno
import os
import sys
import time

import numpy as np
import pytest

from aiseeme_models.errors import RunFailed
from federation_configs.supervision import Kept, end_all
from server.checkpoints import CheckpointStore
from server.run_state import RunState


def kept(command):
    return Kept("the part", command, dict(os.environ), None)


def tended(part, happened, deadline_s=20.0):
    """Tend a part until something has happened; gives what was said."""
    said = []
    until = time.monotonic() + deadline_s
    while not happened():
        assert time.monotonic() < until, said
        part.tend(said.append)
        time.sleep(0.02)
    return said


def test_a_part_that_cannot_be_started_on_a_full_disk_is_tried_again_and_its_keeper_lives_on():
    full = [True]

    def command():
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return [sys.executable, "-c", "import time; time.sleep(60)"]

    part = kept(command)
    try:
        said = []
        part.tend(said.append)
        assert said == ["the part cannot be started (No space left on device); it is tried again in 2 s"]
        assert not part.runs
        full[0] = False
        tended(part, lambda: part.runs)
    finally:
        end_all([part])


def test_a_part_that_ends_is_started_again_whatever_its_exit_code_was():
    """Flower's node ends with 0 where it should be started again."""
    part = kept(lambda: [sys.executable, "-c", "pass"])
    try:
        said = tended(part, lambda: part.starts >= 2)
        assert "the part ended (exit code 0); it is started again in 2 s" in said
    finally:
        end_all([part])


def test_a_part_that_lives_but_does_nothing_is_killed_and_started_again():
    part = kept(lambda: [sys.executable, "-c", "import time; time.sleep(60)"])
    part.is_deaf, part.patience_s = (lambda: part.starts == 1), 0.1
    try:
        said = tended(part, lambda: part.starts >= 2)
        assert any("lives but does nothing any more" in line for line in said)
    finally:
        end_all([part])


@pytest.mark.parametrize("change", ["another layout", "another length"])
def test_a_checkpoint_of_another_architecture_is_not_loaded(federation, change):
    """Another project loaded one silently, and published the figures."""
    one = federation()
    state, vector = one.play()
    assert isinstance(state, RunState)
    store = CheckpointStore(one.folder / "run" / "checkpoints")
    checkpoint = store.latest()
    assert checkpoint is not None
    manifest = checkpoint.manifest
    other = np.zeros(vector.size + 1, np.float32) if change == "another length" else vector
    layout = "0" * 64 if change == "another layout" else manifest.layout_sha256
    store.save(
        run=manifest.run,
        round=manifest.round + 1,
        stage=manifest.stage,
        round_in_stage=manifest.round_in_stage,
        config_sha256=manifest.config_sha256,
        layout_sha256=layout,
        state=manifest.state | {"round": manifest.round + 1},
        vector=other,
        optimizer_state=checkpoint.optimizer_state,
    )
    with pytest.raises(RunFailed, match="hold a model of another architecture"):
        one.play()
