"""Who commands a federation's sites: one process at a time, a run's or a question's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from federation_configs.one_process import holding
from server.service_files import ServiceFiles, superlink_of

if TYPE_CHECKING:
    from server.federation_home import FederationHome
    from server.flower_adapter import Link

_LOCK, _FLOWER_RUN = "command.lock", "flower-run"


@dataclass(frozen=True)
class Command:
    """The right to ask the sites.

    Attributes:
        link: the way to the SuperLink.
    """

    link: Link
    _note: Path

    def note(self, flower_run: int) -> None:
        """Remember the Flower run that was begun, so that the next in command ends it if this process cannot."""
        self._note.write_text(str(flower_run))

    def end_former(self) -> None:
        """End the Flower run of a process that was killed, so that the sites stop working for it."""
        # Without that, or where the SuperLink is away, it ends by itself after a minute.
        with contextlib.suppress(FileNotFoundError, ValueError, httpx.HTTPError):
            self.link.stop_run(int(self._note.read_text()))
        self._note.unlink(missing_ok=True)


@contextlib.contextmanager
def commanding(home: FederationHome, busy: str) -> Iterator[Command]:
    """Be the one process that asks the sites: the SuperLink hands a task to whoever claims one first.

    Args:
        home: the federation's.
        busy: what is said where another process does.

    Raises:
        InputError: another process does.
        RunFailed: nobody has ever served the federation.
    """
    files = ServiceFiles(home.folder)
    with holding(files.folder / _LOCK, busy):
        command = Command(superlink_of(home), files.folder / _FLOWER_RUN)
        command.end_former()
        yield command
