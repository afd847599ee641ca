"""The federation's model as the coordinator holds it: one flat vector, its layout, and what becomes of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.backbones import Backbone, build_backbone
from aiseeme_models.backbones.initialise import initialise
from aiseeme_models.errors import InputError
from aiseeme_models.pretext import build_task
from aiseeme_models.seeding import generator
from aiseeme_models.training.shared_state import SharedLayout, flatten, layout_of, load_flat
from federation_configs.schema import FederationConfig
from server.model_manifest import MANIFEST_FILE, WEIGHTS_FILE, read_model_manifest
from server.weights_file import tensors_in

NEAR_CHANCE = 0.75


@dataclass(frozen=True)
class StageModel:
    """What a stage starts from.

    Attributes:
        layout: what of the model travels, in which order; backbone first.
        vector: ``(P,)`` float32.
        chance_loss: the loss of a model that knows nothing, where the task has such a level.
    """

    layout: SharedLayout
    vector: NDArray[np.float32]
    chance_loss: float | None


def start_of_stage(config: FederationConfig, stage: int, backbone: NDArray[np.float32] | None) -> StageModel:
    """The model at the start of a stage: the backbone so far (or a seeded fresh one) and a seeded fresh head.

    Args:
        config: the federation.
        stage: index into its curriculum.
        backbone: ``(B,)`` float32, the backbone's part of the vector so far; None at the very start.
    """
    options = config.curriculum.stage[stage]
    task = build_task(options.task, new_backbone(config), options.options, config.model.norm)
    initialise(task.shared["head"], generator(config.seed, "head", stage))
    layout = layout_of(task, config.model.norm)
    vector = flatten(task, layout)
    if backbone is not None:
        vector[: layout.backbone_size] = backbone
    return StageModel(layout, vector, task.chance_loss(options.batch_size))


def new_backbone(config: FederationConfig) -> Backbone:
    """The backbone before any training: the federation's starting point, and the baseline of its probe."""
    channels = config.images.resolved_preset.channels
    backbone = build_backbone(config.model.backbone, norm=config.model.norm, in_channels=channels)
    initialise(backbone, generator(config.seed, "backbone"))
    return backbone


def backbone_of(config: FederationConfig, stage: int, vector: NDArray[np.float32]) -> Backbone:
    """The backbone inside a stage's flat vector."""
    options = config.curriculum.stage[stage]
    task = build_task(options.task, new_backbone(config), options.options, config.model.norm)
    load_flat(task, layout_of(task, config.model.norm), vector)
    return task.backbone


def save_weights(folder: Path, backbone: Backbone) -> str:
    """Write ``backbone.safetensors`` (torchvision's names); gives its SHA-256.

    The bytes depend on the weights only, so that equal models have equal files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    payload = save({name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()})
    write_atomically(folder / WEIGHTS_FILE, payload)
    return hashlib.sha256(payload).hexdigest()


def load_backbone(folder: Path, config: FederationConfig) -> Backbone:
    """Read the backbone of a finished run.

    Raises:
        InputError: missing or altered files, weights of another architecture, or a file that is no safetensors.
    """
    manifest, _ = read_model_manifest(folder)
    path = folder / WEIGHTS_FILE
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if hashlib.sha256(payload).hexdigest() != manifest.sha256:
        raise InputError(f"{path}: its SHA-256 is not the one in {MANIFEST_FILE}; the file was altered")
    backbone = new_backbone(config)
    tensors = tensors_in(payload, str(path))
    expected = {name: (tuple(value.shape), value.dtype) for name, value in backbone.state_dict().items()}
    if {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()} != expected:
        raise InputError(
            f"{path}: its weights are not those of a {config.model.backbone} with {config.model.norm} norm"
        )
    backbone.load_state_dict(tensors)
    return backbone
