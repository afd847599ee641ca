"""The runs that were launched, played one at a time by a process each, which is started again when it is killed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from federation_configs.flower import quiet_environment
from federation_configs.supervision import Kept, say
from server.registry import UNFINISHED, RunRegistry
from server.run_folder import is_held, registry_url, was_launched
from server.service_files import ENDED

if TYPE_CHECKING:
    from server.federation_home import FederationHome
    from server.registry import RunRow
    from server.service_files import ServiceFiles

_MOST_CRASHES = 5


def player_command(home: FederationHome, run: str) -> list[str]:
    """What plays a run in a process of its own."""
    return [sys.executable, "-m", "server.coordinator", str(home.folder.resolve()), run]


class PlayedRuns:
    """Plays launched runs, one at a time, in the order of their launch."""

    def __init__(self, home: FederationHome, files: ServiceFiles) -> None:
        self._home, self._files = home, files
        self._registry = RunRegistry(registry_url(home.runs))
        self._playing: tuple[str, Kept] | None = None
        self._crashes, self._then = 0, ("", -1)

    @property
    def playing(self) -> list[Kept]:
        """The process that plays a run, where there is one."""
        return [] if self._playing is None else [self._playing[1]]

    def tend(self) -> None:
        """Start what waits, and start again what was killed; a run that keeps crashing has failed.

        Raises:
            RunFailed, OSError, SQLAlchemyError: the registry or the disk does not answer now. Nothing is forgotten:
                the next call judges the same end of the same process.
        """
        if self._playing is not None:
            run, kept = self._playing
            if kept.runs:
                kept.shorten_log()
                return
            row = self._registry.get(run)
            code = None if kept.process is None else kept.process.returncode
            resumed = row.status == "queued" and code == ENDED  # by somebody who was quicker than we
            if row.status in UNFINISHED and not resumed:
                self._crashed(row)
            else:
                say(f"run {run}: {row.status}{': ' + row.reason if row.reason else ''}")
                self._crashes = 0
            self._playing = None  # only now: had the registry not answered, a crash would not have been counted
        if (waiting := self._next()) is not None:
            self._play(waiting)

    def _next(self) -> RunRow | None:
        """The run to be played now: one that was interrupted before one that waits, the older one first."""
        waiting = sorted(self._registry.unfinished(), key=lambda row: (row.status != "running", row.created))
        launched = (row for row in waiting if was_launched(self._home.runs / row.id))
        return next((row for row in launched if not is_held(self._home.runs / row.id)), None)

    def _play(self, row: RunRow) -> None:
        say(f"run {row.id} ({row.name}): {'goes on' if row.status == 'running' else 'begins'}")
        kept = Kept(
            f"run {row.id}",
            lambda: player_command(self._home, row.id),
            quiet_environment(self._files.flower_home),
            self._home.runs / row.id / "coordinator.log",
        )
        kept.start()
        self._playing = row.id, kept  # not before: what never started has not crashed

    def _crashed(self, row: RunRow) -> None:
        now = row.id, row.rounds_done
        crashes = self._crashes + 1 if now == self._then else 1
        if crashes >= _MOST_CRASHES:
            reason = f"its process ended {crashes} times in round {row.rounds_done + 1}: see coordinator.log"
            self._registry.update(row.id, {"status": "failed", "reason": reason, "pid": None})
        self._crashes, self._then = (0 if crashes >= _MOST_CRASHES else crashes), now
        say(f"run {row.id}: its process ended unexpectedly ({crashes} of {_MOST_CRASHES})")
