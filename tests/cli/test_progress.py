"""What a run prints while it goes: hostile names, speed, and the time that is left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from server.partitions import PartitionRow
from server.progress import Progress
from server.replies import Missed, Refused
from server.run_state import RunState, SiteState, StageState
from tests.conftest import tiny_config

SITES = ("north", "south")


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def progress(screen: io.StringIO) -> Progress:
    return Progress(Console(file=screen, width=300, emoji=False))


class Run:
    """A run whose rounds take the seconds that a test says."""

    def __init__(self, progress: Progress, tmp_path, rounds: tuple[int, int] = (6, 4)) -> None:
        first = {"task": "rotation", "rounds": rounds[0], "batch_size": 4}
        second = {"task": "simclr", "rounds": rounds[1], "batch_size": 4, "local_epochs": 3}
        self.config = tiny_config(curriculum={"stage": [first, second]})
        self.state = RunState(stages=[StageState(), StageState()], sites={name: SiteState() for name in SITES})
        self.progress = progress
        progress.start(self.config, tmp_path, [], [], [])

    def round(self, seconds: float, ends_stage: bool = False) -> None:
        self.progress.round_started(self.config, self.state, self.state.round + 1, 0)
        for site in SITES:
            self.progress.site_answered(site, 100, 2.0, 1.0)
        self.state.round += 1
        self.state.round_in_stage += 1
        self.state.rounds_s += seconds
        if ends_stage:
            self.state.stage, self.state.round_in_stage = self.state.stage + 1, 0
        self.progress.round_done(self.state, 1.0, None)


def last_line(screen: io.StringIO) -> str:
    return screen.getvalue().splitlines()[-1]


def test_images_per_second_count_every_local_epoch(progress, screen, tmp_path):
    run = Run(progress, tmp_path)
    run.round(1.0, ends_stage=True)
    assert " 50 images/s" in last_line(screen)
    run.round(1.0)
    assert " 150 images/s" in last_line(screen)


def test_the_time_left_follows_the_last_three_rounds_of_the_stage(progress, screen, tmp_path):
    run = Run(progress, tmp_path)
    for seconds in (50.0, 1.0, 2.0, 3.0):
        run.round(seconds)
    assert "about 12 s left" in last_line(screen)  # 2 + 4 rounds of 2 seconds
    run.round(2.0)
    run.round(2.0, ends_stage=True)
    run.round(10.0)
    assert "about 30 s left" in last_line(screen)  # 3 rounds of 10 seconds, whatever the first stage took


def test_a_resumed_run_does_not_count_earlier_seconds(progress, screen, tmp_path):
    run = Run(progress, tmp_path)
    run.state.round = run.state.round_in_stage = 2
    run.state.rounds_s = 5000.0
    run.round(2.0)
    assert "about 14 s left" in last_line(screen)  # 3 + 4 rounds


def test_rounds_that_a_plateau_saved_are_not_waited_for(progress, screen, tmp_path):
    run = Run(progress, tmp_path)
    run.round(1.0)
    run.round(1.0, ends_stage=True)
    assert "about 4 s left" in last_line(screen)


def test_a_retry_keeps_the_sites_that_had_answered(progress, screen, tmp_path):
    run = Run(progress, tmp_path)
    progress.round_started(run.config, run.state, 1, 0)
    progress.site_answered("north", 100, 2.0, 1.0)
    progress.round_started(run.config, run.state, 1, 1)
    progress.site_answered("south", 100, 2.0, 1.0)
    run.state.round = run.state.round_in_stage = 1
    progress.round_done(run.state, 1.0, None)
    assert "2/2 sites" in last_line(screen)


def test_labels_sites_and_files_are_shown_as_they_are(progress, screen, tmp_path):
    hostile = "[/bold]\x1b[2J\u202e"
    table = [PartitionRow(hostile, 3, 2, {hostile: 3})]
    progress.start(tiny_config(), tmp_path, table, [(hostile, {"truncated": 2})], 1)
    progress.site_missed(hostile, Refused(Missed.NO_ANSWER, hostile))
    progress.sites_described(RunState(stages=[], sites={}), {hostile: Refused(Missed.NO_ANSWER, hostile)})
    with progress.reading(tmp_path / hostile.replace("/", "")):
        pass
    text = screen.getvalue()
    assert text.count("[/bold]\ufffd[2J\ufffd") == 2 + 2 + 2 + 2
    assert not {"\x1b", "\u202e"} & set(text)
