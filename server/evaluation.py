"""Probing a finished run's backbone on a labelled folder that its federation may never have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiseeme_models.errors import InputError
from client.scanning import scan
from client.site_home import SiteHome
from federation_configs.loading import load_config
from server.global_model import load_backbone
from server.model_manifest import MODEL_FOLDER
from server.probing import probe_run
from server.progress import Progress
from server.run_folder import CONFIG, existing_registry


def evaluate_run(run: str, data: Path, *, home: Path, device: str, progress: Progress) -> dict[str, Any]:
    """Linear and k-NN probe of a run's backbone, the random backbone and the floor, on ``data``.

    Raises:
        InputError: no such run, no model in it, or a folder that cannot be probed; the text says why.
    """
    row = existing_registry(home).get(run)
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
