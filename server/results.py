"""``results.json``: every final figure of a run, machine-readable; the report and ``--json`` show nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from server.atomic_files import write_atomically

if TYPE_CHECKING:
    from aiseeme_models.downstream.metrics import ProbeScore

FILE = "results.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StageResult(_Part):
    """One stage. ``near_chance``: its last loss is above 0.75 of what a model that knows nothing would have."""

    task: str
    rounds: int
    rounds_done: int
    stopped_by: Literal["rounds", "plateau"] | None
    loss_first: float | None
    loss_last: float | None
    heldout_loss: float | None
    chance_loss: float | None
    near_chance: bool


class MissedRound(_Part):
    """A round in which a site did not count, and why, in the coordinator's own words."""

    round: int
    code: str
    reason: str


class SiteResult(_Part):
    """One site. ``images`` are its training images."""

    name: str
    images: int
    rejected: dict[str, int]
    rounds_answered: int
    missed: list[MissedRound]
    classes: dict[str, int] | None = None


class Probes(_Part):
    """The two probes of one backbone."""

    linear: dict[str, Any]
    knn: dict[str, Any]


class Baselines(_Part):
    """What the backbone must beat: itself before training, and a thumbnail."""

    random: Probes
    floor: dict[str, Any]


class Seconds(_Part):
    """Wall time over all processes of the run; ``training`` is at the sites, ``overhead`` the rest of the rounds."""

    total: float
    training: float
    overhead: float


class Results(_Part):
    """What a run came to."""

    run: str
    name: str
    status: Literal["done", "failed"]
    reason: str
    version: str
    seed: int
    config_sha256: str
    backbone_sha256: str | None
    rounds_done: int
    rounds_total: int
    stages: list[StageResult]
    sites: list[SiteResult]
    probe: Probes | None = None
    probe_note: str | None = None
    baselines: Baselines | None = None
    seconds: Seconds
    phantom: bool = False

    @property
    def complete(self) -> bool:
        """Whether every site counted in every round."""
        return self.status == "done" and not any(site.missed for site in self.sites)

    def save(self, run_folder: Path) -> Path:
        """Write ``results.json`` atomically."""
        path = run_folder / FILE
        write_atomically(path, self.model_dump_json(indent=2).encode())
        return path

    @classmethod
    def load(cls, run_folder: Path) -> Results:
        """Read ``results.json``."""
        return cls.model_validate_json((run_folder / FILE).read_bytes())


def probes(linear: ProbeScore, knn: ProbeScore) -> Probes:
    """Two scores as they stand in the file."""
    return Probes(linear=linear.model_dump(mode="json"), knn=knn.model_dump(mode="json"))
