"""Which model a person means: a run's id or its beginning, a run's folder, or the model's own in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.backbones import Backbone
from aiseeme_models.errors import InputError
from federation_configs.loading import load_config
from federation_configs.schema import FederationConfig
from server.global_model import load_backbone
from server.model_manifest import MANIFEST_FILE, MODEL_FOLDER, ModelManifest, is_trained_with, read_model_manifest
from server.run_folder import CONFIG, existing_registry
from server.signed_files import MODEL, is_vouched_for

if TYPE_CHECKING:
    from server.coordinator_key import PinnedKey


@dataclass(frozen=True)
class FoundModel:
    """A finished run's model.

    Attributes:
        run: the run's id.
        folder: where its files are.
        manifest: what it says of itself.
        raw: the bytes of that.
        listed: whether the registry of runs led to it, and not a path.
        config: what it was trained with.
        backbone: its weights.
    """

    run: str
    folder: Path
    manifest: ModelManifest
    raw: bytes = field(repr=False)
    listed: bool
    config: FederationConfig
    backbone: Backbone


def find_model(reference: str, home: Path, key: PinnedKey | None = None) -> FoundModel:
    """Load the model that ``reference`` names.

    Args:
        reference: a run's id or its beginning, or a path.
        home: the folder of all runs.
        key: the coordinator's, where it is known: what another one signed is refused.

    Raises:
        InputError: there is no such model, its files are missing, altered or unreadable, the configuration beside it
            is not the one that it was trained with, or its signature is of something else or by another key.
    """
    folder, run = _folder(reference, home)
    manifest, raw = read_model_manifest(folder)
    if run is not None and manifest.run != run:
        raise InputError(f"{folder / MANIFEST_FILE}: it is the model of run {manifest.run}")
    public = None if key is None else key.key
    is_vouched_for(folder / MANIFEST_FILE, raw, MODEL, public, demanded=key is not None and key.named)
    settings = folder.parent / CONFIG
    if not settings.is_file():
        raise InputError(f"{settings}: missing; images are prepared for a model as its run's configuration says")
    config = load_config(settings)
    if not is_trained_with(manifest, settings):
        raise InputError(f"{settings}: not the configuration that the model in {folder} was trained with")
    return FoundModel(manifest.run, folder, manifest, raw, run is not None, config, load_backbone(folder, config))


def _folder(reference: str, home: Path) -> tuple[Path, str | None]:
    """The model's folder, and the run that it must be of: a folder that a person names may have been moved."""
    if not reference:
        raise InputError("a run's id, its beginning, or a run's folder was expected")
    path = Path(reference)
    for folder in (path, path / MODEL_FOLDER):
        if (folder / MANIFEST_FILE).is_file():
            return folder.resolve(), None
    if path.is_dir():
        raise InputError(f"{path}: no model here; a finished run has {MODEL_FOLDER}/{MANIFEST_FILE}")
    run = existing_registry(home).get(reference).id
    return home / run / MODEL_FOLDER, run
