"""``model/model.json``: what a final model is and which checkpoint it came from, signed by the coordinator."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from aiseeme_models.errors import InputError
from aiseeme_models.options import Options
from server.checkpoint_manifest import Sha256
from server.signed_files import read_manifest_as

MODEL_FOLDER, WEIGHTS_FILE, MANIFEST_FILE = "model", "backbone.safetensors", "model.json"
HEAD_FILE, CARD = "head.safetensors", "README.md"
"""A run's final model: the folder in the run's own, and what is in it beside the model card."""

_LARGEST_CARD = 1_000_000

RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
"""A run's id is a folder's name: nothing that leads to another folder."""


class ModelManifest(Options):
    """What the model of a finished run is.

    Attributes:
        format: version of this layout; 1 named no checkpoint.
        run: id of the run.
        backbone: as configurations name it.
        norm: its normalisation.
        images: the ``[images]`` table: how files become the arrays that it was trained on.
        config_sha256: of the resolved configuration, as the version of AISEEME that wrote this resolved it.
        config_file_sha256: of the bytes of the run's ``config.toml``, which later versions can still compare.
        sha256: of the bytes of ``backbone.safetensors``.
        version: of AISEEME.
        round: the last checkpoint's round.
        parent_sha256: of the bytes of that checkpoint's manifest.
        layout_sha256: of the order, names and shapes of what that checkpoint's vector holds.
        sites: training images of each site of the federation.
        head_sha256: of the bytes of ``head.safetensors``, the last layer of a classifier; None: the model is none.
        classes: what its outputs stand for, in order.
        temperature: what its logits are to be divided by, as validation images told; None: nobody knows.
        own_head_round: after which round the last layer is one hospital's own, joined to the run's backbone by
            `aiseeme personal`; None: it is the federation's.
    """

    format: Literal[1, 2] = 2
    run: RunId
    backbone: str
    norm: str
    images: dict[str, JsonValue]
    config_sha256: Sha256
    sha256: Sha256
    version: str
    round: int | None = Field(default=None, ge=0)
    parent_sha256: Sha256 | None = None
    config_file_sha256: Sha256 | None = None
    layout_sha256: Sha256 | None = None
    sites: dict[str, int] = Field(default_factory=dict)
    head_sha256: Sha256 | None = None
    classes: tuple[str, ...] = Field(default=(), strict=False)
    temperature: float | None = Field(default=None, gt=0)
    own_head_round: int | None = Field(default=None, ge=0)

    def to_bytes(self) -> bytes:
        """As it is written and signed."""
        return json.dumps(self.model_dump(mode="json"), indent=2).encode()


def is_trained_with(manifest: ModelManifest, config_file: Path) -> bool:
    """Whether a run's ``config.toml`` is the one that its model was trained with.

    Raises:
        InputError: it is no configuration, and the manifest is of the format that knew nothing of its bytes.
        OSError: it cannot be read.
    """
    if manifest.config_file_sha256 is not None:
        return hashlib.sha256(config_file.read_bytes()).hexdigest() == manifest.config_file_sha256
    from federation_configs.loading import config_sha256, load_config

    return config_sha256(load_config(config_file)) == manifest.config_sha256


def read_model_manifest(folder: Path) -> tuple[ModelManifest, bytes]:
    """The manifest of a model's folder, and its bytes.

    Raises:
        InputError: it is missing or not what a run writes.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise InputError(f"{folder}: no model here; a finished run has {WEIGHTS_FILE} and {MANIFEST_FILE}")
    return read_manifest_as(path, ModelManifest, "a model's manifest")


def read_model_card(folder: Path) -> str:
    """The model card in a model's folder, Markdown; empty where it was removed, or is a link to something else."""
    card = folder / CARD
    if card.is_symlink() or not card.is_file():
        return ""
    with card.open("rb") as opened:
        return opened.read(_LARGEST_CARD).decode(errors="replace")
