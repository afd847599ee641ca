"""What every test may use: small pictures that we make, and a federation in this process."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from PIL import Image

from aiseeme_models.backbones import PER_IMAGE_NORMS, Backbone, Norm, backbones
from client.app import make_client_app
from client.scanning import scan
from client.site import Site
from client.site_home import SiteHome
from federation_configs.loading import check_config
from federation_configs.schema import FederationConfig
from server.flower_adapter import site_index
from server.local_grid import LocalGrid
from server.observer import Silent
from server.rounds import RoundLoop
from server.run_state import RunState

torch.set_num_threads(1)  # tiny models: threads only wait for each other

REPOSITORY = Path(__file__).parent.parent
DATA = Path(os.environ.get("AISEEME_DATA", REPOSITORY.parent / "shared" / "data"))


class TinyBackbone(Backbone):
    """Two convolutions: what a test of the federation needs of a backbone, and no more."""

    feature_dim = 8

    def __init__(self, norm: Norm, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.conv1 = torch.nn.Conv2d(in_channels, 8, 3, stride=2, padding=1)
        self.norm = norm
        self.norm1 = torch.nn.GroupNorm(2, 8) if norm in PER_IMAGE_NORMS else torch.nn.BatchNorm2d(8)
        self.conv2 = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward_map(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv2(torch.relu(self.norm1(self.conv1(x)))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_map(x).mean(dim=(2, 3))


@backbones.register("tiny")
def _tiny(*, norm: Norm, in_channels: int) -> Backbone:
    return TinyBackbone(norm, in_channels)


def write_pictures(folder: Path, count: int, *, seed: int = 0, side: int = 48, labels: bool = True) -> Path:
    """A hospital's folder: pictures of stripes or blobs, two per patient, with a labels.csv."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:side, 0:side] / side
    rows = []
    for index in range(count):
        label = ("stripes", "blobs")[(index // 2) % 2]
        phase = rng.uniform(0, 6, size=2)
        pattern = (
            np.sin(25 * x + phase[0]) if label == "stripes" else np.sin(25 * x + phase[0]) * np.sin(25 * y + phase[1])
        )
        picture = 0.5 + 0.3 * pattern[..., None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 0.05, (side, side, 3))
        name = f"picture-{seed}-{index:03d}.png"
        Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8)).save(folder / "images" / name)
        rows.append({"file": name, "label": label, "patient_id": f"p{seed}-{index // 2}", "device": f"d{index % 3}"})
    if labels:
        with (folder / "labels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return folder


def tiny_config(**changes: Any) -> FederationConfig:
    """Two short stages on the tiny backbone; ``changes`` replace whole tables."""
    stage = {"rounds": 2, "batch_size": 4, "lr": 0.01}
    settings: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "images": {"preset": "dermoscopy", "size": 48},
        "model": {"backbone": "tiny", "norm": "group"},
        "curriculum": {"stage": [stage | {"task": "rotation"}, stage | {"task": "simclr"}]},
        "federation": {"min_sites": 2, "round_retries": 1},
        "holdout": {"test": 0.25, "validation": 0.25},
    }
    return check_config(settings | changes, where="test")


Alter = Callable[[Message, Message], Message]


@dataclass
class InProcess:
    """A federation in this process, whose sites can be made to misbehave."""

    config: FederationConfig
    folder: Path
    sites: list[Site]
    alter: Mapping[str, Alter] = field(default_factory=dict)

    def app(self) -> ClientApp:
        honest = make_client_app(lambda context: self.sites[site_index(context)])

        class Altered(ClientApp):
            def __call__(app, message: Message, context: Context) -> Message:
                reply = honest(message, context)
                change = self.alter.get(self.sites[site_index(context)].name)
                return change(message, reply) if change else reply

        return Altered()

    def loop(self, observer: Any = None, run: str = "run") -> RoundLoop:
        grid = LocalGrid(self.app(), len(self.sites))
        names = [site.name for site in self.sites]
        folder = self.folder / run
        folder.mkdir(parents=True, exist_ok=True)
        return RoundLoop(grid, self.config, run, folder, names, observer or Silent(), grid.clock, parallel=False)

    def play(self, observer: Any = None, run: str = "run") -> tuple[RunState, np.ndarray]:
        return self.loop(observer, run).play()


@pytest.fixture(scope="session")
def three_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three hospitals of 24, 30 and 36 pictures."""
    root = tmp_path_factory.mktemp("hospitals")
    return [write_pictures(root / name, 24 + 6 * i, seed=i) for i, name in enumerate(("alpha", "beta", "gamma"))]


@pytest.fixture(scope="session")
def site_home(tmp_path_factory: pytest.TempPathFactory) -> SiteHome:
    """One catalogue and cache for the hospitals of all tests, which do not change."""
    return SiteHome(tmp_path_factory.mktemp("site"))


@pytest.fixture
def federation(three_folders: list[Path], tmp_path: Path, site_home: SiteHome) -> Callable[..., InProcess]:
    """Makes an in-process federation of the three hospitals."""

    def make(
        config: FederationConfig | None = None, alter: Mapping[str, Alter] | None = None, where: str = "one"
    ) -> InProcess:
        config = config or tiny_config()
        folder = tmp_path / where
        sites = []
        for data in three_folders:
            scanned = scan(data, site_home, config.images.pipeline)
            sites.append(Site(data.name, scanned.root, scanned.rows, site_home.store, folder / "sites" / data.name))
        return InProcess(config, folder, sites, alter or {})

    return make
