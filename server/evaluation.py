"""How good a finished run's model is on a labelled folder that its federation may never have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiseeme_models.errors import InputError
from client.scanning import scan
from client.site_home import SiteHome
from federation_configs.loading import load_config
from server.external_test import ExternalTest, evaluate_classifier
from server.global_model import load_backbone
from server.model_manifest import MODEL_FOLDER, read_model_manifest
from server.probing import probe_run
from server.progress import Progress
from server.run_folder import CONFIG, existing_registry


def evaluate_run(
    run: str, data: Path, *, task: str | None = None, home: Path, device: str, progress: Progress
) -> dict[str, Any] | ExternalTest:
    """Test a run's classifier on ``data``; of a run that has none, probe its backbone, the random one and the floor.

    Args:
        run: id of a finished run, or its beginning.
        data: a labelled folder.
        task: see `evaluate_classifier`.
        home: the folder of all runs.
        device: where to compute.
        progress: shows what happens.

    Raises:
        InputError: no such run, no model in it, or a folder that cannot be tested on; the text says why.
    """
    row = existing_registry(home).get(run)
    manifest, _ = read_model_manifest(home / row.id / MODEL_FOLDER)
    if manifest.head_sha256 is not None:
        return evaluate_classifier(row.id, data, task=task, home=home, device=device, progress=progress)
    if task is not None:
        raise InputError(f"--task: {row.id} is no classifier; its backbone is probed with the labels of the folder")
    config = load_config(home / row.id / CONFIG)
    backbone = load_backbone(home / row.id / MODEL_FOLDER, config)
    site = SiteHome(home)
    with progress.reading(data) as on_file:
        scanned = scan(data, site, config.images.pipeline, on_file=on_file)
    outcome = probe_run(config, backbone, scanned.rows, site.store, device=device, say=progress.say)
    if outcome.probe is None or outcome.baselines is None:
        raise InputError(f"{data}: {outcome.note}")
    return {
        "run": row.id,
        "data": scanned.summary(),
        "probe": outcome.probe.model_dump(),
        "baselines": outcome.baselines.model_dump(),
    }
