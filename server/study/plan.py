"""What a study is, in its folder: enough to know whether another command means the same study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.downstream.finetune import FineTuneOptions
from aiseeme_models.errors import InputError

FILE = "study.json"


class StudyPlan(BaseModel):
    """A study's own file.

    Attributes:
        kind: ``order``, ``tasks``, ``volume`` or ``hyperparameters``.
        options: the kind's own.
        config_sha256: of the federation's configuration.
        data: image folders, absolute.
        sites: number of sites that one folder is dealt to; None: one folder per site.
        partition: how.
        finetune: the fine-tunings that are measured.
        folds: in how many folds of patients probes are measured too; 0, as studies from before there were folds: none.
        initial_sha256: of the given weights, where there are any.
        device: torch device.
        threads: torch's threads; another number may give other bits.
        versions: of AISEEME and torch, and of what makes the folds, where there are any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    options: dict[str, Any]
    config_sha256: str
    data: tuple[str, ...]
    sites: int | None
    partition: str | None
    finetune: tuple[FineTuneOptions, ...]
    folds: int = 0
    initial_sha256: str | None
    device: str
    threads: int
    versions: dict[str, str]

    def save(self, folder: Path) -> None:
        """Write it, which makes the folder this study's."""
        write_atomically(folder / FILE, self.model_dump_json(indent=2).encode())

    def check_folder(self, folder: Path) -> None:
        """See that ``folder`` holds this study, or none yet.

        Raises:
            InputError: it holds another; the text says what differs.
        """
        path = folder / FILE
        if not path.exists():
            return
        try:
            there = StudyPlan.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            raise InputError(f"{path}: missing or damaged; use another --name") from None
        ours, theirs = self.model_dump(mode="json"), there.model_dump(mode="json")
        differing = [key for key in ours if ours[key] != theirs[key]]
        if differing:
            each = "; ".join(f"{key}: {theirs[key]} there, {ours[key]} now" for key in differing)
            raise InputError(f"{folder}: holds another study ({each}); use another --name, or remove the folder")
