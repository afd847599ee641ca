"""``runs/<id>/``: where a run's files are, and that only one process plays it at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError
from federation_configs import one_process
from server.given_start import GivenStart

if TYPE_CHECKING:
    from server.registry import RunRegistry

RUNS_VARIABLE, FEDERATION_VARIABLE = "AISEEME_RUNS", "AISEEME_HOME"
CONFIG, PLAN, FEDERATION_PLAN, LOCK = "config.toml", "simulation.json", "federation.json", ".lock"


def runs_home(given: Path | None, federation: Path | None = None) -> Path:
    """The folder of all runs.

    Args:
        given: what ``--runs`` names; it counts before all else.
        federation: what ``--federation`` names; its runs are meant. Without both, ``$AISEEME_RUNS``, the runs of
            ``$AISEEME_HOME``, or ``runs`` here.
    """
    if given is not None:
        return given
    if federation is not None:
        return federation / "runs"
    if runs := os.environ.get(RUNS_VARIABLE):
        return Path(runs)
    home = os.environ.get(FEDERATION_VARIABLE)
    return Path(home) / "runs" if home else Path("runs")


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


class _Plan(BaseModel):
    """What a run needs, beside its configuration, to be played again: a JSON file in its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: ClassVar[str]

    def save(self, folder: Path) -> None:
        """Write it."""
        write_atomically(folder / self.file, json.dumps(self.model_dump(mode="json"), indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read it.

        Raises:
            InputError: it is not there or not readable.
        """
        try:
            return cls.model_validate_json((folder / cls.file).read_bytes())
        except (OSError, ValidationError):
            raise InputError(f"{folder / cls.file}: missing or damaged, so the run cannot be played again") from None


class FederationPlan(_Plan):
    """Who takes part in a launched run.

    Attributes:
        sites: their names.
        versions: of AISEEME and torch at the coordinator.
        initial: the backbone that it begins with; None: a fresh one.
    """

    file: ClassVar[str] = FEDERATION_PLAN

    sites: tuple[str, ...]
    versions: dict[str, str]
    initial: GivenStart | None = None


def was_launched(folder: Path) -> bool:
    """Whether a run's folder is of one that the hospitals of a federation have played."""
    return (folder / FEDERATION_PLAN).is_file()


class SimulationPlan(_Plan):
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
        initial: the backbone that it begins with; None: a fresh one.
        dealt_by: the seed by which the folder is dealt; None: the configuration's.
    """

    file: ClassVar[str] = PLAN

    data: tuple[str, ...]
    sites: int | None
    partition: str | None
    engine: str
    device: str
    images_sha256: str
    threads: int
    versions: dict[str, str]
    initial: GivenStart | None = None
    dealt_by: int | None = None


class StopRequest:
    """Somebody's wish that a run should stop, as a file in its folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "stop.request"

    def __bool__(self) -> bool:
        return self._path.exists()

    def make(self) -> None:
        """Ask the run to stop."""
        self._path.touch()

    def withdraw(self) -> None:
        """Let it go on."""
        self._path.unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made where it is not there.

    Raises:
        InputError: another process plays the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with one_process.holding(folder / LOCK, f"{folder.name}: another process is playing this run now"):
        yield


def is_held(folder: Path) -> bool:
    """Whether a process plays the run now; a run that says ``running`` and is not held was interrupted."""
    return one_process.is_held(folder / LOCK)
