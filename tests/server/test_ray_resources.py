"""What a site of the Ray engine reserves. Ray itself is not started."""

from __future__ import annotations

import importlib.machinery
import importlib.util

import flwr.simulation
import pytest
import torch
from flwr.clientapp import ClientApp

from aiseeme_models.errors import InputError
from server.ray_engine import play_with_ray


class _Stop(Exception):
    """The simulation would have begun."""


@pytest.mark.parametrize("gpus", [0, 2])
@pytest.mark.parametrize(("use_gpu", "reserved"), [(False, 0.0), (True, 1.0)])
def test_a_site_reserves_a_gpu_only_where_it_computes_on_one(use_gpu, reserved, gpus, monkeypatch):
    seen = {}

    def run_simulation(server_app, client_app, *, num_supernodes, backend_config):
        seen.update(backend_config["client_resources"], sites=num_supernodes)
        raise _Stop

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    monkeypatch.setattr(flwr.simulation, "run_simulation", run_simulation)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(_Stop):
        play_with_ray(ClientApp(), 3, lambda grid: None, use_gpu=use_gpu)
    assert seen == {"num_cpus": 1.0, "num_gpus": reserved, "sites": 3}


def test_without_ray_the_option_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--engine ray"):
        play_with_ray(ClientApp(), 3, lambda grid: None, use_gpu=False)
