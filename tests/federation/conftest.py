"""A site behind its gate, and what it did although it should not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from client import comparing, rounds
from client.scanning import scan
from client.site import Site
from client.site_home import SiteHome
from tests.conftest import write_pictures
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
    for kind in TYPES:
        place = comparing if kind == "analyse" else rounds
        monkeypatch.setattr(place, kind, lambda *_, kind=kind: done.append(kind))
    for place in (comparing, rounds):
        monkeypatch.setattr(place, "expected_size", lambda *_: done.append("built a model"))
    return done
