"""A finished run as the coordinator leaves it, made without training: what verify, models and export are tried on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from federation_configs.loading import check_config, config_sha256, to_toml
from federation_configs.schema import FederationConfig
from server.checkpoint_manifest import CountedSite
from server.checkpoints import CheckpointStore
from server.final_files import FinalFiles
from server.global_model import backbone_of, start_of_stage
from server.probing import ProbeOutcome
from server.registry import RunRegistry
from server.run_folder import registry_url
from server.run_state import RunState, SiteState, StageState

RUN = "20261125-120000-abcdef"
SITES = {"north": 40, "south": 31}


def run_config(**changes: Any) -> FederationConfig:
    """Two stages of two rounds each, on a backbone of 32 pixels."""
    stage = {"rounds": 2, "batch_size": 4}
    settings: dict[str, Any] = {
        "name": "lineage",
        "images": {"preset": "dermoscopy", "size": 32},
        "model": {"backbone": "resnet-small"},
        "curriculum": {"stage": [stage | {"task": "rotation"}, stage | {"task": "simclr"}]},
        "federation": {"min_sites": 2},
    }
    return check_config(settings | changes, where="test")


def finished_run(home: Path, config: FederationConfig | None = None, *, key: Any = None, run: str = RUN) -> Path:
    """A run with every file that a coordinator writes; ``key`` signs it. Gives its folder."""
    config = config or run_config()
    folder = home / run
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(config))
    registry = RunRegistry(registry_url(home))
    registry.create(
        id=run,
        name=config.name,
        seed=config.seed,
        config_sha256=config_sha256(config),
        version="0",
        rounds_total=config.rounds,
        sites_total=len(SITES),
        folder=str(folder),
    )
    store = CheckpointStore(folder / "checkpoints", config.federation.keep_checkpoints, key)
    random = np.random.default_rng(0)
    stages = config.curriculum.stage
    round_number, backbone = 0, None
    for index, options in enumerate(stages):
        model = start_of_stage(config, index, backbone)
        vector = model.vector
        for in_stage in range(options.rounds + (index == 0)):
            if round_number:
                # What training changes: not the statistics of a normalisation, which must stay possible ones.
                change = random.standard_normal(vector.size, dtype=np.float32) * np.float32(0.01)
                for statistics in model.layout.statistic_slices:
                    change[statistics] = 0
                vector = vector + change
            store.save(
                run=run,
                round=round_number,
                stage=index,
                round_in_stage=in_stage + (index > 0),
                config_sha256=config_sha256(config),
                layout_sha256=model.layout.digest,
                vector=vector,
                optimizer_state={},
                state={},
                sites={name: CountedSite(images=images) for name, images in SITES.items()} if round_number else {},
            )
            round_number += 1
        backbone = vector[: model.layout.backbone_size]
    state = RunState(
        round=round_number - 1,
        finished=True,
        stages=[StageState(rounds_done=options.rounds, stopped_by="rounds", losses=[1.0]) for options in stages],
        sites={name: SiteState(images=images, answered=round_number - 1) for name, images in SITES.items()},
    )
    files = FinalFiles(config, folder, classes={}, signing_key=key)
    files.done(state, backbone_of(config, len(stages) - 1, vector), ProbeOutcome(None, None, "not probed"), 1.0)
    registry.update(run, {"status": "done", "rounds_done": round_number - 1, "sites_complete": len(SITES)})
    registry.close()
    return folder
