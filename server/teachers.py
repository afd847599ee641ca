"""The backbones that stages distil from: kept with the run, and sent to each site once a stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError, RunFailed
from federation_configs.records import Enclosure
from federation_configs.schema import FederationConfig
from federation_configs.transfer import outgoing, seen, sha256_of
from federation_configs.wire import TeachRequest
from server.observer import Observer
from server.questions import Questions
from server.replies import check_teaching
from server.weights_file import vector_in

_TENSOR = "backbone"


class Teachers:
    """The teacher of the stage that is being played, and which sites have it.

    Who has it is not part of a checkpoint: after a resume it is sent again, which changes nothing.

    Args:
        config: the federation.
        folder: the run's.
    """

    def __init__(self, config: FederationConfig, folder: Path) -> None:
        self._config, self._folder = config, folder / "teachers"
        self._vector: NDArray[np.float32] | None = None
        self.holders: set[str] = set()

    def start_stage(self, stage: int, backbone: NDArray[np.float32]) -> str | None:
        """Keep the handed-over backbone if the stage distils from it, and give its hash.

        Args:
            stage: index of the stage that begins.
            backbone: ``(B,)`` float32, the backbone's part of the vector.

        Raises:
            RunFailed: the file could not be written.
        """
        from safetensors.numpy import save

        self.holders, self._vector = set(), None
        distill = self._config.curriculum.stage[stage].distill
        if distill is None or distill.teacher != "stage":
            return None
        # As sites see it: with float16 they all round alike, whenever they get it.
        self._vector = seen(backbone, self._config.federation.transfer).copy()
        try:
            self._folder.mkdir(exist_ok=True)
            write_atomically(self._path(stage), save({_TENSOR: self._vector}))
        except OSError as error:
            raise RunFailed(
                f"{self._path(stage)}: the stage's teacher could not be written: {error.strerror}"
            ) from None
        return sha256_of(self._vector)

    def resume(self, stage: int, sha256: str | None) -> None:
        """Go on with the teacher of a stage that was begun before.

        Raises:
            RunFailed: its file is missing or not the one that the checkpoint names.
        """
        if sha256 is None:
            return
        path = self._path(stage)
        try:
            vector = vector_in(path.read_bytes(), str(path), _TENSOR)
        except (OSError, InputError) as error:
            raise RunFailed(f"{path}: the stage's teacher cannot be read: {error}") from None
        if sha256_of(vector) != sha256:
            raise RunFailed(f"{path}: not the teacher that the checkpoint names; the run cannot go on")
        self._vector = vector

    def teach(self, questions: Questions, asked: TeachRequest, nodes: Mapping[int, str], observer: Observer) -> None:
        """Send the stage's teacher to those sites that do not have it; one that does not take it cannot train."""
        pupils = {node: name for node, name in nodes.items() if name not in self.holders}
        if self._vector is None or not pupils:
            return
        beside = Enclosure(outgoing(self._vector, self._config.federation.transfer))
        taught = questions.valid(
            "teach",
            asked,
            pupils,
            beside,
            lambda message, site, nonce: check_teaching(message, site=site, asked=asked, nonce=nonce),
            lambda site, why: observer.note(f"{site} did not take the stage's teacher: {why.sentence}"),
        )
        self.holders.update(site for site, _ in taught)

    def _path(self, stage: int) -> Path:
        return self._folder / f"stage-{stage:03d}.safetensors"
