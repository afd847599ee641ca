"""A site behind its gate, and what it did although it should not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from client import comparing, measuring, rounds, scoring
from client.scanning import scan
from client.site import Site
from client.site_home import SiteHome
from tests.conftest import InProcess, write_pictures
from tests.federation.gated_site import CONFIG, TYPES, Asked


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital with held-out pictures enough to compare models on."""
    return write_pictures(tmp_path_factory.mktemp("large") / "alpha", 180, seed=7)


@pytest.fixture
def asked(large_folder: Path, site_home: SiteHome, tmp_path: Path) -> Asked:
    scanned = scan(large_folder, site_home, CONFIG.images.pipeline)
    return Asked(Site("alpha", scanned.root, scanned.rows, site_home.store, tmp_path / "sites" / "alpha"))


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was worked on although it should not have been."""
    done: list[str] = []
    others = {
        "analyse": (comparing, "analyse"),
        "score": (scoring, "score"),
        "range": (measuring, "find_rate"),
        "fit": (measuring, "find_batch"),
    }
    for kind in TYPES:
        place, name = others.get(kind, (rounds, kind))
        monkeypatch.setattr(place, name, lambda *_, kind=kind: done.append(kind))
    for place in (comparing, rounds):
        monkeypatch.setattr(place, "expected_size", lambda *_: done.append("built a model"))
    return done


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Hospitals with about 75 and about 150 held-out pictures, and one with a few."""
    root = tmp_path_factory.mktemp("comparing")
    counts = {"alpha": 150, "beta": 280, "gamma": 40}
    return [write_pictures(root / name, count, seed=9 + count) for name, count in counts.items()]


@pytest.fixture
def three(hospitals: list[Path], site_home: SiteHome, tmp_path: Path) -> InProcess:
    sites = []
    for data in hospitals:
        scanned = scan(data, site_home, CONFIG.images.pipeline)
        sites.append(Site(data.name, scanned.root, scanned.rows, site_home.store, tmp_path / "sites" / data.name))
    return InProcess(CONFIG, tmp_path, sites)
