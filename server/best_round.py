"""The weights of a stage's best round, kept beside the checkpoints until the stage ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError, RunFailed
from server.weights_file import vector_in

if TYPE_CHECKING:
    from server.run_state import StageState

_TENSOR = "weights"


class BestRounds:
    """Keeps the weights of the rounds that were the best so far.

    Args:
        folder: the run's.
        keep: how many files of earlier best rounds stay: a run that falls back to an older checkpoint needs the one
            that was the best by then.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder / "best", keep

    def consider(
        self, stage: int, state: StageState, number: int, loss: float | None, vector: NDArray[np.float32]
    ) -> None:
        """Keep the weights after a round if no round of the stage before it had a lower held-out loss.

        Args:
            stage: its index.
            state: what is known of it; says afterwards which round was the best.
            number: the round, absolute.
            loss: held-out loss of the round; None: nobody told one.
            vector: ``(P,)`` float32 the global weights after it.

        Raises:
            RunFailed: the file could not be written.
        """
        from safetensors.numpy import save

        if loss is None or (state.best_loss is not None and loss >= state.best_loss):
            return
        state.best_round, state.best_loss = number, loss
        path = self._path(stage, number)
        try:
            self._folder.mkdir(exist_ok=True)
            write_atomically(path, save({_TENSOR: vector}))
            for old in self._files()[: -self._keep]:
                old.unlink()
        except OSError as error:
            raise RunFailed(f"{path}: the best weights so far could not be written: {error.strerror}") from None

    def chosen(self, stage: int, state: StageState, last: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights that a stage ends with; those of the ``last`` round where no site has told a held-out loss.

        Raises:
            RunFailed: the file of the best round is missing or damaged.
        """
        if state.best_round is None:
            return last
        path = self._path(stage, state.best_round)
        try:
            vector = vector_in(path.read_bytes(), str(path), _TENSOR)
        except (OSError, InputError) as error:
            raise RunFailed(f"{path}: the weights of the best round cannot be read: {error}") from None
        if vector.shape != last.shape or vector.dtype != np.float32:
            raise RunFailed(f"{path}: not the weights of this stage; the run cannot go on")
        return vector

    def cut_after(self, number: int) -> None:
        """Remove the files of rounds after this one, which are played again."""
        for path in self._files():
            if int(path.stem.rpartition("-")[2]) > number:
                path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the files, when no checkpoint before the stage's end can be gone back to any more."""
        self.cut_after(0)
        if self._folder.is_dir():
            self._folder.rmdir()

    def _files(self) -> list[Path]:
        """Oldest first."""
        return sorted(self._folder.glob("stage-*-round-*.safetensors"))

    def _path(self, stage: int, number: int) -> Path:
        return self._folder / f"stage-{stage:03d}-round-{number:04d}.safetensors"
