"""What a checkpoint is, as its manifest says it: of which run and round, from which sites, and what came before."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from aiseeme_models.options import Options

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CountedSite(Options):
    """A site whose update is in a round's model.

    Attributes:
        images: training images (patients, where they are protected) that its update counted with.
        epsilon: ε that the run has cost its patients so far, this round included; null where nothing was accounted.
    """

    images: int = Field(ge=0)
    epsilon: float | None = Field(default=None, ge=0)


class CheckpointManifest(Options):
    """What a checkpoint is.

    Attributes:
        format: version of this layout; 1 had neither ``sites`` nor ``version``.
        run: id of the run.
        round: absolute number of the round that made this model; 0 is the model before any round.
        stage: number of the curriculum's stage, from 0.
        round_in_stage: rounds of the stage that are done.
        config_sha256: of the resolved configuration.
        layout_sha256: of the order, names and shapes of what the vector holds.
        weights_file: always ``round-NNNN.safetensors``; a name for people, never used as a path.
        weights_sha256: of that file's bytes.
        parent_sha256: of the bytes of the manifest before; none for the first.
        state: what else is needed to go on, as JSON.
        sites: the sites that counted in the round, by name; none in round 0.
        version: of AISEEME, which wrote it.
    """

    format: Literal[1, 2] = 2
    run: str
    round: int = Field(ge=0)
    stage: int = Field(ge=0)
    round_in_stage: int = Field(ge=0)
    config_sha256: Sha256
    layout_sha256: Sha256
    weights_file: str
    weights_sha256: Sha256
    parent_sha256: Sha256 | None
    state: dict[str, JsonValue]
    sites: dict[str, CountedSite] = Field(default_factory=dict)
    version: str | None = None
