"""Which model a person means: a run's id or its beginning, a run's folder, or the model's own in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aiseeme_models.backbones import Backbone
from aiseeme_models.errors import InputError
from federation_configs.loading import load_config
from federation_configs.schema import FederationConfig
from server.global_model import load_backbone
from server.model_manifest import MANIFEST_FILE, MODEL_FOLDER, is_trained_with, read_model_manifest
from server.run_folder import CONFIG, existing_registry


@dataclass(frozen=True)
class FoundModel:
    """A finished run's model.

    Attributes:
        run: the run's id.
        config: what it was trained with.
        backbone: its weights.
    """

    run: str
    config: FederationConfig
    backbone: Backbone


def find_model(reference: str, home: Path) -> FoundModel:
    """Load the model that ``reference`` names.

    Args:
        reference: a run's id or its beginning, or a path.
        home: the folder of all runs.

    Raises:
        InputError: there is no such model, its files are missing, altered or unreadable, or the configuration beside it
            is not the one that it was trained with.
    """
    folder = _folder(reference, home)
    manifest, _ = read_model_manifest(folder)
    settings = folder.parent / CONFIG
    if not settings.is_file():
        raise InputError(f"{settings}: missing; a model is compared on images prepared as its run's configuration says")
    config = load_config(settings)
    if not is_trained_with(manifest, settings):
        raise InputError(f"{settings}: not the configuration that the model in {folder} was trained with")
    return FoundModel(manifest.run, config, load_backbone(folder, config))


def _folder(reference: str, home: Path) -> Path:
    path = Path(reference)
    for folder in (path, path / MODEL_FOLDER):
        if (folder / MANIFEST_FILE).is_file():
            return folder.resolve()
    if path.is_dir():
        raise InputError(f"{path}: no model here; a finished run has {MODEL_FOLDER}/{MANIFEST_FILE}")
    return home / existing_registry(home).get(reference).id / MODEL_FOLDER
