"""A tiny study over three hospitals of pictures, in this process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from aiseeme_models.downstream.finetune import FineTuneOptions
from federation_configs.schema import FederationConfig
from server.study import study_kinds
from server.study.playing import Asked, play_study, study_folder
from server.study.progress import StudyProgress
from server.study.table import StudyTable
from tests.conftest import tiny_config

ROTATION = {"task": "rotation", "rounds": 1, "batch_size": 4, "lr": 0.01}
SIMCLR = {"task": "simclr", "rounds": 2, "batch_size": 4, "lr": 0.01}
LOCATION = {"task": "relative-location", "rounds": 1, "batch_size": 4, "lr": 0.01}
FINETUNE = (FineTuneOptions(fraction=0.5, epochs=1, batch_size=8), FineTuneOptions(epochs=1, batch_size=8))


def study_config(*stages: dict[str, Any], **changes: Any) -> FederationConfig:
    return tiny_config(curriculum={"stage": list(stages or (ROTATION, SIMCLR))}, **changes)


def asked(kind: str, data: list[Path], *, options: dict[str, Any] | None = None, **changes: Any) -> Asked:
    settings: dict[str, Any] = {
        "sites": None,
        "partition": None,
        "seeds": 2,
        "finetune": (),
        "folds": 0,
        "initial": None,
        "engine": "local",
        "device": "cpu",
    }
    return Asked(kind=kind, options=study_kinds[kind](**(options or {})), data=tuple(data), **(settings | changes))


class Played:
    """A study that was played, with what a person saw of it."""

    def __init__(self, config: FederationConfig, study: Asked, home: Path) -> None:
        self.screen = io.StringIO()
        progress = StudyProgress(Console(file=self.screen, width=200))
        self.table: StudyTable = play_study(config, study, home=home, progress=progress)
        self.folder = study_folder(home, config, study)

    def line(self, arm: str):
        return next(line for line in self.table.lines if line.arm == arm)
