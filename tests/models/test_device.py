"""The device is the one that was asked for, and a GPU is told to compute the same thing twice."""

from __future__ import annotations

import os

import pytest
import torch

from aiseeme_models.errors import InputError
from aiseeme_models.training.device import choose_device, make_deterministic


@pytest.fixture
def _settings_are_put_back(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "x")  # so that what the test sets is undone
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn = torch.backends.cudnn
    for name in ("deterministic", "benchmark"):
        monkeypatch.setattr(cudnn, name, getattr(cudnn, name))
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])


def settings() -> tuple[object, ...]:
    return (
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )


@pytest.mark.usefixtures("_settings_are_put_back")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_is_made_deterministic(device):
    torch.backends.cudnn.benchmark = True
    make_deterministic(device)
    assert settings() == (":4096:8", True, True, True, False)


@pytest.mark.usefixtures("_settings_are_put_back")
def test_a_cpu_needs_nothing():
    before = settings()
    make_deterministic("cpu")
    assert choose_device("cpu") == "cpu"
    assert settings() == before


@pytest.mark.usefixtures("_settings_are_put_back")
@pytest.mark.parametrize(("asked", "given"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1")])
def test_choosing_a_gpu_makes_it_deterministic(asked, given, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(asked) == given
    assert settings() == (":4096:8", True, True, True, False)


@pytest.mark.parametrize("name", ["tpu", "cuda:7", "mps"])
def test_a_device_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=f"--device {name}"):
        choose_device(name)
