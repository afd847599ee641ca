"""The same federation on Flower's own simulation engine."""

from __future__ import annotations

import json

import pytest

from tests.cli.commands import SMALL, aiseeme, site_options
from tests.conftest import write_pictures


@pytest.mark.slow
def test_ray_plays_the_same_federation(tmp_path):
    folders = [write_pictures(tmp_path / name, 32, seed=i) for i, name in enumerate(("north", "south"))]
    (tmp_path / "small.toml").write_text(SMALL)
    options = [tmp_path / "small.toml", *site_options(folders), "--json"]
    local = aiseeme("simulate", *options, "--runs", tmp_path / "local")
    ray = aiseeme("simulate", *options, "--runs", tmp_path / "ray", "--engine", "ray")
    assert ray.returncode == 0, ray.stderr[-2000:]
    assert "Traceback" not in ray.stderr
    first, second = json.loads(local.stdout), json.loads(ray.stdout)
    # One thread each (`ENVIRONMENT`), so even the bits are the same.
    assert second["backbone_sha256"] == first["backbone_sha256"]
    assert [site["rounds_answered"] for site in second["sites"]] == [3, 3]
