"""``runs/<id>/``: where a run's files are, and that only one process plays it at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError

if TYPE_CHECKING:
    from server.registry import RunRegistry

HOME_VARIABLE = "AISEEME_RUNS"
CONFIG, PLAN, LOCK = "config.toml", "simulation.json", ".lock"


def runs_home(given: Path | None) -> Path:
    """The folder of all runs: the one given, else ``$AISEEME_RUNS``, else ``runs`` here."""
    return given or Path(os.environ.get(HOME_VARIABLE, "runs"))


def registry_url(home: Path) -> str:
    """Where the registry of a runs folder is."""
    return f"sqlite:///{home.resolve() / 'registry.sqlite'}"


def existing_registry(home: Path) -> RunRegistry:
    """The registry of a runs folder that has one.

    Raises:
        InputError: there are no runs.
    """
    from server.registry import RunRegistry

    if not (home / "registry.sqlite").exists():
        raise InputError(f"{home}: no runs here; `aiseeme simulate` makes one, --runs names another folder")
    return RunRegistry(registry_url(home))


class SimulationPlan(BaseModel):
    """What a simulation needs to be played again: data, partition, engine.

    Attributes:
        data: image folders, absolute.
        sites: number of sites that one folder is dealt to; None: one folder per site.
        partition: how it is dealt.
        engine: ``local`` or ``ray``.
        device: torch device of the sites.
        images_sha256: digest of every site's accepted images, so that a resumed run sees the same ones.
        threads: torch's threads; another number may give other bits.
        versions: of AISEEME and torch; others may give other bits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: tuple[str, ...]
    sites: int | None
    partition: str | None
    engine: str
    device: str
    images_sha256: str
    threads: int
    versions: dict[str, str]

    def save(self, folder: Path) -> None:
        """Write ``simulation.json``."""
        write_atomically(folder / PLAN, json.dumps(self.model_dump(mode="json"), indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> SimulationPlan:
        """Read ``simulation.json``.

        Raises:
            InputError: it is not there or not readable.
        """
        try:
            return cls.model_validate_json((folder / PLAN).read_bytes())
        except (OSError, ValidationError):
            raise InputError(f"{folder / PLAN}: missing or damaged, so the run cannot be played again") from None


@contextmanager
def held(folder: Path, *, only_look: bool = False) -> Iterator[None]:
    """Hold a run's folder; ``only_look`` does not get in the way of others who look.

    Raises:
        InputError: another process plays the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if only_look else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder.name}: another process is playing this run now") from None
        yield


def is_held(folder: Path) -> bool:
    """Whether a process plays the run now; a run that says ``running`` and is not held was interrupted."""
    try:
        with held(folder, only_look=True):
            return False
    except InputError:
        return True
