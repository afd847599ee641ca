"""The backbone that a run begins with, where it is not a fresh one: noted with its hash, so that a resume has it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict

from aiseeme_models.errors import InputError

if TYPE_CHECKING:
    from federation_configs.schema import FederationConfig
    from server.run_start import Start


class GivenStart(BaseModel):
    """A backbone that somebody named.

    Attributes:
        path: run, model or file, absolute.
        sha256: of its weights, as `server.global_model.backbone_sha256` makes it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    sha256: str

    @classmethod
    def of(cls, source: Path, config: FederationConfig) -> Self:
        """Note the backbone of a run's or model's folder, or of a safetensors file.

        Raises:
            InputError: nothing there, or no backbone of this configuration.
        """
        from server.global_model import backbone_sha256, read_backbone

        return cls(path=str(source.resolve()), sha256=backbone_sha256(read_backbone(source, config)))

    def start(self, config: FederationConfig) -> Start:
        """Where a run begins with it.

        Raises:
            InputError: it is not there any more, or another one by now.
        """
        from server.global_model import backbone_sha256, flat_backbone, read_backbone
        from server.run_start import Start

        backbone = read_backbone(Path(self.path), config)
        if backbone_sha256(backbone) != self.sha256:
            raise InputError(f"{self.path}: its weights are not those that the run began with")
        return Start(0, flat_backbone(config, 0, backbone))

    @property
    def sentence(self) -> str:
        """What it is, without the folders of this machine."""
        return f"{Path(self.path).name}, backbone sha256 {self.sha256}"


def given_start(given: GivenStart | None, config: FederationConfig, folder: Path) -> Start | None:
    """Where a run in ``folder`` begins: with what was given, unless it has played rounds, whose checkpoints hold it.

    Raises:
        InputError: see `GivenStart.start`.
    """
    if given is None or any((folder / "checkpoints").glob("*.json")):
        return None
    return given.start(config)
