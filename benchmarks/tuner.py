"""The search of ``lr = "auto"`` beside an exhaustive grid: what it finds, and what it costs.

Phantom hospitals, in one process. The grid trains the whole stage with every rate that the search may try, and each
backbone is scored by a k-NN probe on patients that nobody has chosen by. The grid's choice is the rate with the
smallest held-out pretext loss: what it can know. Its best is the rate with the best score: what nobody can. The search
then plays the same stage with ``lr = "auto"``, from the same seed. Prints one line of JSON: for each seed and method
the points of balanced accuracy that it is below either, and the images of its trials as a share of the grid's. Run from
the checkout: ``python -m benchmarks.tuner [--task simclr] [--seeds 0,1,2] [--rounds 9]``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from aiseeme_models.curriculum.tuning import TuneOptions
from aiseeme_models.images.phantoms import write_phantoms
from client.site_home import SiteHome
from federation_configs.command_line import console
from federation_configs.loading import check_config
from federation_configs.schema import FederationConfig
from server.global_model import backbone_of
from server.observer import Silent
from server.probing import ProbeImages, probe_images
from server.progress import Progress
from server.rounds import RoundLoop
from server.run_state import RunState
from server.simulation import ENGINES, Hospitals, hospitals_of

SITES, IMAGES, SIZE, EPOCHS = 3, 300, 48, 6
METHODS: dict[str, dict[str, Any]] = {
    "asha, held-out loss": {"score": "heldout"},
    "asha, probe": {"score": "probe"},
    "range test": {"method": "range"},
}


def federation(task: str, rounds: int, seed: int, **stage: Any) -> FederationConfig:
    """The federation with one stage."""
    table = {"task": task, "rounds": rounds, "local_epochs": EPOCHS, "batch_size": 32} | stage
    return check_config(
        {
            "name": "tuner",
            "seed": seed,
            "images": {"preset": "dermoscopy", "size": SIZE},
            "model": {"backbone": "resnet-tiny", "norm": "batch"},
            "curriculum": {"stage": [table]},
            "federation": {"min_sites": SITES},
            "holdout": {"test": 0.3, "validation": 0.25},
        },
        where="benchmark",
    )


def played(config: FederationConfig, hospitals: Hospitals, images: ProbeImages, folder: Path) -> tuple[float, RunState]:
    """The k-NN probe's balanced accuracy after a run, and the run's state."""
    folder.mkdir(parents=True)
    sites = [site.with_rows(site.name, site.rows, folder / "sites" / site.name) for site in hospitals.sites]
    names = [site.name for site in sites]
    state, vector = ENGINES["local"](
        lambda grid, clock, parallel: RoundLoop(grid, config, "run", folder, names, Silent(), clock, parallel), sites
    )
    return images.score(backbone_of(config, 0, vector)).knn.balanced_accuracy, state


def one_seed(task: str, rounds: int, seed: int, data: list[Path], folder: Path) -> dict[str, Any]:
    """Grid and searches of one seed."""
    home = folder / "home"
    config = federation(task, rounds, seed, lr=1e-3)
    hospitals = hospitals_of(config, data, None, None, "cpu", home, folder / "gathered", Progress(console(stderr=True)))
    images = probe_images(config, hospitals.rows, SiteHome(home).store, device="cpu")
    assert not isinstance(images, str), images
    rates = sorted(setting.lr for setting in TuneOptions().settings(1e-3, (32,), seed))
    grid = {}
    started = time.perf_counter()
    for rate in rates:
        setting = federation(task, rounds, seed, lr=rate, on_collapse="note")
        score, state = played(setting, hospitals, images, folder / f"grid-{rate:g}")
        grid[rate] = score, state.stages[0].heldout[-1]
    grid_s = time.perf_counter() - started
    best, (chosen, _) = max(score for score, _ in grid.values()), min(grid.values(), key=lambda one: one[1])
    searches = {}
    for name, tune in METHODS.items():
        started = time.perf_counter()
        score, state = played(
            federation(task, rounds, seed, tune=tune, on_collapse="note"),
            hospitals,
            images,
            folder / name.replace(" ", "-"),
        )
        found = state.stages[0].found
        assert found is not None
        searches[name] = {
            "lr": found.lr,
            "score": round(score, 4),
            "points_below_choice": round(100 * (chosen - score), 2),
            "points_below_best": round(100 * (best - score), 2),
            "share_of_grid": round(found.share / len(rates), 4),
            "wall_share": round((time.perf_counter() - started) / grid_s, 3),
        }
    told = {f"{rate:g}": [round(score, 4), round(loss, 4)] for rate, (score, loss) in grid.items()}
    return {"seed": seed, "grid": told, "searches": searches}


def main() -> None:
    """Run it, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="simclr")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as made:
        data = write_phantoms(Path(made) / "images", kind="dermoscopy", sites=SITES, images_per_site=IMAGES, seed=0)
        seeds = [
            one_seed(given.task, given.rounds, seed, data, Path(made) / f"seed-{seed}")
            for seed in map(int, given.seeds.split(","))
        ]
    line = {"benchmark": "tuner", "task": given.task, "rounds": given.rounds, "seeds": seeds}
    for name in METHODS:
        of_all = [seed["searches"][name] for seed in seeds]
        line[name] = {
            key: round(statistics.mean(one[key] for one in of_all), 4)
            for key in ("points_below_choice", "points_below_best", "share_of_grid")
        }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
