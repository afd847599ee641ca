"""The federation's model as the coordinator holds it: one flat vector, its layout, and what becomes of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.backbones import Backbone, build_backbone
from aiseeme_models.backbones.initialise import initialise
from aiseeme_models.curriculum.stage_tasks import build_task
from aiseeme_models.downstream.classification import Classification, ClassificationOptions
from aiseeme_models.downstream.network import ClassifyingNetwork
from aiseeme_models.errors import InputError
from aiseeme_models.pretext import PretextTask
from aiseeme_models.seeding import generator
from aiseeme_models.training.shared_state import SharedLayout, flatten, layout_of, load_flat
from federation_configs.schema import FederationConfig
from server.model_manifest import HEAD_FILE, MANIFEST_FILE, MODEL_FOLDER, WEIGHTS_FILE, read_model_manifest
from server.weights_file import tensors_in

NEAR_CHANCE = 0.75
_CLASSIFIER = frozenset({"fc.weight", "fc.bias"})


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


def task_of(config: FederationConfig, stage: int, vector: NDArray[np.float32]) -> PretextTask:
    """The task of a stage with the weights of its flat vector."""
    options = config.curriculum.stage[stage]
    task = build_task(options.task, new_backbone(config), options.options, config.model.norm)
    load_flat(task, layout_of(task, config.model.norm), vector)
    return task


def backbone_of(config: FederationConfig, stage: int, vector: NDArray[np.float32]) -> Backbone:
    """The backbone inside a stage's flat vector."""
    return task_of(config, stage, vector).backbone


def save_weights(folder: Path, backbone: Backbone) -> str:
    """Write ``backbone.safetensors`` (torchvision's names); gives its SHA-256.

    The bytes depend on the weights only, so that equal models have equal files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return _save(folder / WEIGHTS_FILE, backbone)


def save_head(folder: Path, head: nn.Module) -> str:
    """Write ``head.safetensors``, the last layer of a classifier, into a model's folder; gives its SHA-256."""
    return _save(folder / HEAD_FILE, head)


def _save(path: Path, module: nn.Module) -> str:
    payload = _payload(module)
    write_atomically(path, payload)
    return hashlib.sha256(payload).hexdigest()


def load_classifier(folder: Path, backbone: Backbone) -> ClassifyingNetwork:
    """The classifier in a model's folder, around its ``backbone``.

    Raises:
        InputError: the file is missing, altered, or does not fit the backbone and the classes.
    """
    manifest, _ = read_model_manifest(folder)
    path = folder / HEAD_FILE
    payload = _vouched(path, manifest.head_sha256)
    head = nn.Linear(backbone.feature_dim, len(manifest.classes))
    tensors = tensors_in(payload, str(path))
    if {name: value.shape for name, value in tensors.items()} != {
        name: value.shape for name, value in head.state_dict().items()
    }:
        raise InputError(f"{path}: it does not fit {len(manifest.classes)} classes and this backbone")
    head.load_state_dict(tensors)
    return ClassifyingNetwork(backbone, head, manifest.temperature or 1.0)


def load_classification(folder: Path, backbone: Backbone, options: ClassificationOptions) -> Classification:
    """The classifier in a model's folder as the task that it was trained as.

    Raises:
        InputError: see `load_classifier`.
    """
    network = load_classifier(folder, backbone)
    task = Classification(network.backbone, options)
    task.head.load_state_dict(network.fc.state_dict())
    return task


def backbone_sha256(backbone: Backbone) -> str:
    """The SHA-256 of the file that `save_weights` makes of a backbone."""
    return hashlib.sha256(_payload(backbone)).hexdigest()


def _payload(module: nn.Module) -> bytes:
    return save({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()})


def _vouched(path: Path, sha256: str | None) -> bytes:
    """The bytes of a model's file, which must be those that its manifest names.

    Raises:
        InputError: it is missing, or another one.
    """
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise InputError(f"{path}: its SHA-256 is not the one in {MANIFEST_FILE}; the file was altered")
    return payload


def load_backbone(folder: Path, config: FederationConfig) -> Backbone:
    """Read the backbone of a finished run.

    Raises:
        InputError: missing or altered files, weights of another architecture, or a file that is no safetensors.
    """
    manifest, _ = read_model_manifest(folder)
    path = folder / WEIGHTS_FILE
    payload = _vouched(path, manifest.sha256)
    return _filled(config, payload, str(path))


def read_backbone(source: Path, config: FederationConfig) -> Backbone:
    """The backbone to start from that a person names: a run's or model's folder, or a safetensors file.

    A file of torchvision's names may hold the last layer too (``fc.weight``, ``fc.bias``), which is left out.

    Raises:
        InputError: nothing there, altered files, weights of another architecture, or a file that is no safetensors.
    """
    if source.is_dir():
        return load_backbone(source / MODEL_FOLDER if (source / MODEL_FOLDER).is_dir() else source, config)
    try:
        payload = source.read_bytes()
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}") from None
    return _filled(config, payload, str(source), beside=_CLASSIFIER)


def flat_backbone(config: FederationConfig, stage: int, backbone: Backbone) -> NDArray[np.float32]:
    """The backbone's part of a stage's flat vector, ``(B,)``: what `start_of_stage` takes."""
    options = config.curriculum.stage[stage]
    task = build_task(options.task, backbone, options.options, config.model.norm)
    layout = layout_of(task, config.model.norm)
    return flatten(task, layout)[: layout.backbone_size]


def _filled(config: FederationConfig, payload: bytes, name: str, beside: frozenset[str] = frozenset()) -> Backbone:
    """A backbone with the weights of a file's bytes; tensors called as ``beside`` are passed over."""
    backbone = new_backbone(config)
    tensors = {key: value for key, value in tensors_in(payload, name).items() if key not in beside}
    expected = {key: (tuple(value.shape), value.dtype) for key, value in backbone.state_dict().items()}
    if {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()} != expected:
        raise InputError(
            f"{name}: its weights are not those of a {config.model.backbone} with {config.model.norm} norm"
        )
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise InputError(f"{name}: some of its weights are not finite")
    backbone.load_state_dict(tensors)
    return backbone
