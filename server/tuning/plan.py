"""What a search has settled before its first trial, kept so that one that goes on after a crash is the same."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import RunFailed

_FILE = "search.json"


class SearchPlan(BaseModel):
    """A search's own file.

    Attributes:
        config_sha256: of the configuration that it is for.
        sizes: the batch sizes that fit.
        sites: names of the sites that train, those that have images for the largest.
        fewest: training images of the smallest of them.
        notes: why batch sizes were left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config_sha256: str
    sizes: tuple[int, ...]
    sites: tuple[str, ...]
    fewest: int
    notes: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write it into the search's folder.

        Raises:
            RunFailed: it cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / _FILE, self.model_dump_json().encode())
        except OSError as error:
            raise RunFailed(f"{folder / _FILE}: cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, folder: Path, config_sha256: str) -> SearchPlan | None:
        """The plan that was settled for this configuration, if one was."""
        try:
            plan = cls.model_validate_json((folder / _FILE).read_bytes())
        except (OSError, ValidationError):
            return None
        return plan if plan.config_sha256 == config_sha256 else None
