"""What federating costs over the training itself: a plain PyTorch loop against the in-process federation.

Both do the same optimiser steps (SimCLR, ResNet-18, 64 px) on the same images, 4 sites x 5 rounds, in turns in one
process, so that both see the same machine. The plain loop holds the images in memory, trains one model per site and
averages the four with torch. The federation reads the same images from its cache, sends messages through Flower's
ClientApp, checks and sums the replies exactly, keeps optimiser state at the sites, and writes a durable checkpoint per
round. Flower's own simulation engine (Ray) plays the same federation once, its start-up not counted.

Prints one line of JSON. A round costs the same however long it trains, so the ratio falls with the images per
hospital. Run:
``python benchmarks/federation_overhead.py [--pairs 3] [--images 512] [--no-ray]``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aiseeme_models.backbones import build_backbone
from aiseeme_models.backbones.initialise import initialise
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.pretext.simclr import SimCLROptions, nt_xent
from aiseeme_models.seeding import generator
from client.app import make_client_app
from client.scanning import scan
from client.site import Site
from client.site_home import SiteHome
from federation_configs.loading import check_config
from federation_configs.schema import FederationConfig
from server.flower_adapter import site_index
from server.global_model import start_of_stage
from server.local_grid import LocalGrid
from server.observer import Silent
from server.rounds import RoundLoop

SITES, ROUNDS, BATCH, SIZE = 4, 5, 64, 64


def config() -> FederationConfig:
    """The federation that is timed."""
    return check_config(
        {
            "name": "overhead",
            "images": {"preset": "dermoscopy", "size": SIZE},
            "model": {"backbone": "resnet18", "norm": "group"},
            "curriculum": {"stage": [{"task": "simclr", "rounds": ROUNDS, "batch_size": BATCH, "lr": 1e-3}]},
            "federation": {"min_sites": SITES},
            "holdout": {"test": 0.0, "validation": 0.0},
        },
        where="benchmark",
    )


def hospitals(root: Path, images: int) -> list[Site]:
    """Four folders of random pictures, read into the cache."""
    rng = np.random.default_rng(0)
    sites = []
    for index in range(SITES):
        folder = root / f"site-{index}"
        folder.mkdir()
        for number in range(images):
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize((SIZE, SIZE)).save(folder / f"{number}.png")
        home = SiteHome(root / "home")
        rows = scan(folder, home, config().images.pipeline).rows
        sites.append(Site(f"site-{index}", folder, rows, home.store, root / "state" / f"site-{index}"))
    return sites


def plain_loop(sites: list[Site], rounds: int = ROUNDS) -> float:
    """Seconds of the loop that a researcher would write without a federation."""
    options = config()
    preset = options.images.resolved_preset
    augment = BatchAugmentation(preset.augmentation, preset.mean, preset.std)
    sets = [site.images(options.images, "train", options.holdout) for site in sites]
    count = len(sets[0])
    data = [images.batch(torch.arange(count)) for images in sets]
    started = time.perf_counter()
    backbone = build_backbone("resnet18", norm="group", in_channels=3)
    initialise(backbone, generator(0, "backbone"))
    width = backbone.feature_dim
    head = torch.nn.Sequential(
        torch.nn.Linear(width, width), torch.nn.LayerNorm(width), torch.nn.ReLU(), torch.nn.Linear(width, 128)
    )
    model = torch.nn.Sequential(backbone, head).to(memory_format=torch.channels_last)
    temperature = SimCLROptions().temperature
    shared = {name: value.clone() for name, value in model.state_dict().items()}
    moments: list[dict | None] = [None] * SITES
    for round_number in range(rounds):
        trained = []
        for site, images in enumerate(data):
            model.load_state_dict(shared)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            if moments[site] is not None:
                optimizer.load_state_dict(moments[site])
            draws = generator(0, site, round_number)
            order = torch.randperm(count, generator=draws)
            for first in range(0, count - BATCH + 1, BATCH):
                batch = images[order[first : first + BATCH]]
                views = torch.cat([augment(batch, draws), augment(batch, draws)])
                loss = nt_xent(*model(views).chunk(2), temperature)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()
            moments[site] = optimizer.state_dict()
            trained.append({name: value.clone() for name, value in model.state_dict().items()})
        shared = {name: torch.stack([each[name] for each in trained]).mean(0) for name in shared}
    return time.perf_counter() - started


def federation(sites: list[Site], root: Path, run: str) -> float:
    """Seconds of the in-process federation, from the first message to the last checkpoint."""
    grid = LocalGrid(make_client_app(lambda context: sites[site_index(context)]), SITES)
    loop = _loop(grid, root, run)
    started = time.perf_counter()
    loop.play()
    return time.perf_counter() - started


def ray(sites: list[Site], root: Path) -> float:
    """Seconds of the same federation on Flower's Ray engine; its start-up is not counted."""
    from server.ray_engine import play_with_ray

    def timed(grid) -> float:
        loop = _loop(grid, root, "ray")
        loop.clock, loop.parallel = time.monotonic, True
        started = time.perf_counter()
        loop.play()
        return time.perf_counter() - started

    distant = [replace(site, state_folder=root / "ray-state" / site.name) for site in sites]
    return play_with_ray(make_client_app(lambda context: distant[site_index(context)]), SITES, timed, use_gpu=False)


def _loop(grid, root: Path, run: str) -> RoundLoop:
    folder = root / "runs" / run
    folder.mkdir(parents=True)
    names = [f"site-{index}" for index in range(SITES)]
    clock = grid.clock if isinstance(grid, LocalGrid) else time.monotonic
    return RoundLoop(grid, config(), run, folder, names, Silent(), clock, parallel=False)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--images", type=int, default=512, help="training images per hospital")
    parser.add_argument("--no-ray", action="store_true")
    arguments = parser.parse_args()
    start_of_stage(config(), 0, None)  # imports and first calls are not what is measured
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        sites = hospitals(root, arguments.images)
        plain_loop(sites, rounds=1)
        plain, federated = [], []
        for pair in range(arguments.pairs):
            plain.append(plain_loop(sites))
            federated.append(federation(sites, root, f"run-{pair}"))
        ratios = [ours / theirs for ours, theirs in zip(federated, plain, strict=True)]
        result = {
            "benchmark": "federation_overhead",
            "images_per_site": arguments.images,
            "steps": SITES * ROUNDS * (arguments.images // BATCH),
            "plain_s": [round(value, 2) for value in plain],
            "federation_s": [round(value, 2) for value in federated],
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(value, 3) for value in ratios],
        }
        if not arguments.no_ray:
            seconds = ray(sites, root)
            result |= {"ray_s": round(seconds, 2), "ray_ratio": round(seconds / statistics.median(plain), 3)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
