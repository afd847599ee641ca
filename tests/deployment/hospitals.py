"""The hospitals and the configuration that deployment tests play with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiseeme_models.errors import InputError
from scripts.loopback import Loopback
from server.gateway import find_nginx
from tests.conftest import write_pictures

HOSPITALS = ("alpha", "beta", "gamma")
_HEAD = """
name = "{name}"
seed = 5
[images]
preset = "dermoscopy"
size = 32
[model]
backbone = "{backbone}"
norm = "group"
"""
_ROTATION = """
[[curriculum.stage]]
task = "rotation"
rounds = {rounds}
batch_size = {batch_size}
"""
_MOCO = """
[[curriculum.stage]]
task = "moco"
rounds = 2
batch_size = 4
options = { queue = 16 }
"""


def head(name: str, backbone: str = "resnet-small") -> str:
    """The beginning of a configuration: all but its stages and its ``[federation]`` table."""
    return _HEAD.format(name=name, backbone=backbone)


def federation_table(**options: object) -> str:
    """A ``[federation]`` table."""
    return "[federation]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())


def one_stage(
    name: str,
    *,
    rounds: int = 1,
    batch_size: int = 4,
    backbone: str = "resnet-small",
    tables: str = "",
    **federation: object,
) -> str:
    """A configuration of one short stage, with more tables, and these values in its ``[federation]`` table."""
    stage = _ROTATION.format(rounds=rounds, batch_size=batch_size)
    return head(name, backbone) + stage + tables + federation_table(**federation)


FEDERATION = (
    head("loopback")
    + _ROTATION.format(rounds=2, batch_size=4)
    + _MOCO
    + federation_table(min_sites=3, round_deadline_s=120, rejoin_s=120)
)


def _has_nginx() -> bool:
    try:
        return bool(find_nginx())
    except InputError:
        return False


needs_nginx = pytest.mark.skipif(not _has_nginx(), reason="nginx is not installed (Debian: nginx-light)")


def loopback(folder: Path, config: str = FEDERATION, images: int = 16) -> Loopback:
    """A federation of three hospitals with a few pictures each, not started yet; ``with`` it."""
    pictures = {
        name: write_pictures(folder / "pictures" / name, images, seed=index) for index, name in enumerate(HOSPITALS)
    }
    return Loopback(folder, config, pictures)
