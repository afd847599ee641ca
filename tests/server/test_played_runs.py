"""What becomes of a launched run whose process is killed again and again, also while its registry is busy."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import OperationalError

from server import played_runs
from server.federation_home import FederationHome
from server.played_runs import PlayedRuns
from server.registry import RunRegistry
from server.run_folder import FEDERATION_PLAN, registry_url
from server.service_files import ServiceFiles

if TYPE_CHECKING:
    from pathlib import Path

RUN = "20260101-000000-abcdef"


@dataclass
class Played:
    """A federation with one launched run, whose process ends as soon as it begins."""

    runs: PlayedRuns
    registry: RunRegistry
    starts: list[str]

    def until_ended(self) -> None:
        """One turn, and the end of the process that it may have started."""
        self.runs.tend()
        for kept in self.runs.playing:
            assert kept.process is not None
            kept.process.wait(60)


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    home = FederationHome(tmp_path / "federation")
    (home.runs / RUN).mkdir(parents=True)
    (home.runs / RUN / FEDERATION_PLAN).write_text("{}")
    registry = RunRegistry(registry_url(home.runs))
    registry.create(
        id=RUN,
        name="a-run",
        seed=0,
        config_sha256="0" * 64,
        version="0",
        rounds_total=3,
        sites_total=1,
        folder=RUN,
        status="queued",
    )
    starts: list[str] = []

    def command(_: FederationHome, run: str) -> list[str]:
        starts.append(run)
        return [sys.executable, "-S", "-c", "raise SystemExit(1)"]

    monkeypatch.setattr(played_runs, "player_command", command)
    return Played(PlayedRuns(home, ServiceFiles(home.folder)), registry, starts)


def test_the_fifth_crash_in_a_round_fails_the_run(played: Played) -> None:
    for _ in range(8):
        played.until_ended()
    assert played.starts == [RUN] * 5
    row = played.registry.get(RUN)
    assert row.status == "failed" and row.reason == "its process ended 5 times in round 1: see coordinator.log"


def test_a_process_that_could_not_be_started_has_not_crashed(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(played_runs.Kept, "start", full)
        for _ in range(6):
            with pytest.raises(OSError, match="too many open files"):
                played.runs.tend()
    played.until_ended()
    assert played.registry.get(RUN).status == "queued" and played.starts == [RUN]


def test_a_round_that_was_played_meanwhile_begins_the_count_anew(played: Played) -> None:
    for done in range(3):
        for _ in range(4):
            played.until_ended()
        played.registry.update(RUN, {"rounds_done": done + 1})
    assert played.registry.get(RUN).status == "queued"
    assert len(played.starts) == 12


@pytest.mark.parametrize("method", ["get", "update"])
def test_a_crash_counts_though_the_registry_was_busy_when_it_was_seen(
    played: Played, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole = getattr(RunRegistry, method)
    busy = 0

    def now_and_then(self: RunRegistry, *given: object) -> object:
        nonlocal busy
        busy += 1
        if busy % 2:
            raise OperationalError("UPDATE", {}, Exception("database is locked"))
        return whole(self, *given)

    monkeypatch.setattr(RunRegistry, method, now_and_then)
    refused = 0
    for _ in range(16):
        try:
            played.until_ended()
        except OperationalError:
            refused += 1
    monkeypatch.setattr(RunRegistry, method, whole)
    assert refused == (5 if method == "get" else 1)  # once at each end that was judged
    assert played.starts == [RUN] * 5
    assert played.registry.get(RUN).reason == "its process ended 5 times in round 1: see coordinator.log"
