"""What a task keeps at the site between rounds: queues, banks, local statistics, optimiser state.

One file per round, written before the reply leaves. A round that is asked again (the coordinator crashed, or the
quorum was missed) starts from the newest state BEFORE that round, so that it gives the same answer again.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.atomic_files import as_system_error, replacing

if TYPE_CHECKING:
    from torch import Tensor

_MOST_TRIALS = 32
_FILE = re.compile(r"round-(\d{6})\.safetensors")


class LocalState:
    """The state of one site in one run and stage.

    Args:
        state_folder: the site's.
        run: the run's id.
        stage: index of the stage.
        kept: how many rounds are kept, so that the coordinator can go back to an older checkpoint.
        trial: number of a setting that is tried; its state is apart.
    """

    def __init__(self, state_folder: Path, run: str, stage: int, kept: int, trial: int | None = None) -> None:
        self.run_folder = state_folder / "runs" / run
        self.of_stage = self.run_folder / f"stage-{stage:03d}"
        self.folder = self.of_stage if trial is None else self.of_stage / f"trial-{trial:04d}"
        self._kept = kept

    def load_before(self, round_number: int) -> dict[str, Tensor] | None:
        """The tensors saved by the newest round before ``round_number``, or None at the start of a stage."""
        from safetensors.torch import load_file

        earlier = [number for number in self._rounds() if number < round_number]
        return load_file(self._path(max(earlier))) if earlier else None

    def newest_round(self) -> int | None:
        """The number of the newest round whose state is kept; None where none is."""
        return max(self._rounds(), default=None)

    def save(self, round_number: int, tensors: dict[str, Tensor]) -> None:
        """Write the state after ``round_number`` atomically; only the newest rounds are kept.

        Raises:
            OSError: as the system reports it, for instance when the disk is full.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(round_number)
        with replacing(path) as temporary:
            try:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
            except SafetensorError as error:
                raise as_system_error(error) from error
        # A later round's state belongs to a history that is being replayed: it would never be read, and never pruned.
        rounds = [number for number in self._rounds() if number <= round_number]
        for number in set(self._rounds()) - set(sorted(rounds)[-self._kept :]):
            self._path(number).unlink()
        if self.folder != self.of_stage:
            self._forget_all_but(_MOST_TRIALS)  # few are trained at the same time
        elif len(rounds) >= self._kept:  # nobody goes back to an earlier stage any more
            for stage in self.run_folder.glob("stage-*"):
                if stage.name < self.of_stage.name:
                    shutil.rmtree(stage, ignore_errors=True)

    def forget_trials(self) -> None:
        """Remove what trials have left: the stage itself is trained now."""
        self._forget_all_but(0)

    def _forget_all_but(self, newest: int) -> None:
        trials = sorted(self.of_stage.glob("trial-*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for trial in trials[newest:]:
            shutil.rmtree(trial, ignore_errors=True)

    def _rounds(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return [int(match[1]) for entry in self.folder.iterdir() if (match := _FILE.fullmatch(entry.name))]

    def _path(self, round_number: int) -> Path:
        return self.folder / f"round-{round_number:06d}.safetensors"


def forget_old_runs(state_folder: Path, days: float) -> None:
    """Remove what runs left behind that nothing was asked for in the last ``days`` days."""
    runs = state_folder / "runs"
    for run in runs.iterdir() if runs.is_dir() else ():
        newest = max((path.stat().st_mtime for path in run.rglob("*")), default=run.stat().st_mtime)
        if newest < time.time() - days * 86_400:
            shutil.rmtree(run, ignore_errors=True)
