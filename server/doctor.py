"""``aiseeme doctor``: what this machine has, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from pydantic import BaseModel

from aiseeme_models import __version__
from server.flower_adapter import FLWR_VERSION

_LIBRARIES = (
    "torch",
    "torchvision",
    "monai",
    "flwr",
    "pydicom",
    "imagecodecs",
    "nibabel",
    "scikit-learn",
    "safetensors",
)
_OPTIONAL = {"ray": "only for simulate --engine ray"}
_DISK_GB, _MEMORY_GB = 2.0, 2.0


class Check(BaseModel):
    """One thing that was looked at."""

    what: str
    ok: bool
    says: str


def examine(runs: Path) -> list[Check]:
    """Look at Python, libraries, devices, memory, disk and the runs folder."""
    findings = [
        Check(what="aiseeme", ok=True, says=__version__),
        Check(what="python", ok=True, says=f"{platform.python_version()} on {platform.machine()}"),
    ]
    findings += [_library(name) for name in _LIBRARIES]
    findings += [_optional(name, purpose) for name, purpose in _OPTIONAL.items()]
    return [*findings, _torch_works(), _memory(), _disk(runs), _writable(runs)]


def _library(name: str) -> Check:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(what=name, ok=False, says="missing; install from requirements.lock")
    if name == "flwr" and found != FLWR_VERSION:
        return Check(what=name, ok=False, says=f"{found}; this version of AISEEME needs exactly {FLWR_VERSION}")
    return Check(what=name, ok=True, says=found)


def _optional(name: str, purpose: str) -> Check:
    try:
        return Check(what=name, ok=True, says=version(name))
    except PackageNotFoundError:
        return Check(what=name, ok=True, says=f"not installed ({purpose})")


def _torch_works() -> Check:
    try:
        import torch
        import torchvision  # an unfitting pair fails at import
    except (ImportError, RuntimeError, OSError) as error:
        return Check(what="device", ok=False, says=f"torch and torchvision do not load together: {error}")
    del torchvision
    if not torch.cuda.is_available():
        return Check(what="device", ok=True, says=f"no CUDA device; CPU with {torch.get_num_threads()} threads")
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    told = ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in names)
    return Check(what="device", ok=True, says=told)


def _memory() -> Check:
    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    return Check(
        what="memory", ok=free >= _MEMORY_GB, says=f"{free:.1f} of {total:.1f} GiB free, {os.cpu_count()} cores"
    )


def _disk(runs: Path) -> Check:
    free = shutil.disk_usage(_existing(runs)).free / 2**30
    return Check(what="disk", ok=free >= _DISK_GB, says=f"{free:.1f} GiB free for {runs}")


def _writable(runs: Path) -> Check:
    folder = _existing(runs)
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            return Check(what="runs", ok=True, says=f"{runs} can be written")
    except OSError as error:
        return Check(what="runs", ok=False, says=f"{folder} cannot be written: {error.strerror}")


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
