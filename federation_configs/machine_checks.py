"""What both parties look at on their machine: libraries, device, memory, disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from pydantic import BaseModel

from federation_configs.flower import FLWR_VERSION

_DISK_GB, _MEMORY_GB = 2.0, 2.0


class Check(BaseModel):
    """One thing that was looked at."""

    what: str
    ok: bool
    says: str


def library(name: str) -> Check:
    """Whether a library that is needed is installed, in the version that is needed."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(what=name, ok=False, says="missing; install from requirements.lock")
    if name == "flwr" and found != FLWR_VERSION:
        return Check(what=name, ok=False, says=f"{found}; this version of AISEEME needs exactly {FLWR_VERSION}")
    return Check(what=name, ok=True, says=found)


def optional(name: str, purpose: str) -> Check:
    """Whether a library is installed that only some need."""
    try:
        return Check(what=name, ok=True, says=version(name))
    except PackageNotFoundError:
        return Check(what=name, ok=True, says=f"not installed ({purpose})")


def torch_works() -> Check:
    """Whether PyTorch loads, and which devices it has."""
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


def memory() -> Check:
    """Whether there is memory to work with."""
    now = psutil.virtual_memory()
    free, total = now.available / 2**30, now.total / 2**30
    return Check(
        what="memory", ok=free >= _MEMORY_GB, says=f"{free:.1f} of {total:.1f} GiB free, {os.cpu_count()} cores"
    )


def disk(folder: Path) -> Check:
    """Whether there is space for what a folder will hold."""
    free = shutil.disk_usage(_existing(folder)).free / 2**30
    return Check(what="disk", ok=free >= _DISK_GB, says=f"{free:.1f} GiB free for {folder}")


def writable(what: str, wanted: Path) -> Check:
    """Whether a folder can be written, or made."""
    folder = _existing(wanted)
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            return Check(what=what, ok=True, says=f"{wanted} can be written")
    except OSError as error:
        return Check(what=what, ok=False, says=f"{folder} cannot be written: {error.strerror}")


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
