"""The hospitals and the configuration that deployment tests play with."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiseeme_models.errors import InputError
from scripts.loopback import Loopback
from server.gateway import find_nginx
from tests.conftest import write_pictures

HOSPITALS = ("alpha", "beta", "gamma")
FEDERATION = """
name = "loopback"
seed = 5
[images]
preset = "dermoscopy"
size = 32
[model]
backbone = "resnet-small"
norm = "group"
[[curriculum.stage]]
task = "rotation"
rounds = 2
batch_size = 4
[[curriculum.stage]]
task = "moco"
rounds = 2
batch_size = 4
options = { queue = 16 }
[federation]
min_sites = 3
round_deadline_s = 120
rejoin_s = 120
"""


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
