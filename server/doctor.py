"""``aiseeme doctor``: what this machine has, and what is missing."""

from __future__ import annotations

import platform
from pathlib import Path

from aiseeme_models import __version__
from federation_configs.machine_checks import Check, disk, library, memory, optional, torch_works, writable

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


def examine(runs: Path) -> list[Check]:
    """Look at Python, libraries, devices, memory, disk and the runs folder."""
    findings = [
        Check(what="aiseeme", ok=True, says=__version__),
        Check(what="python", ok=True, says=f"{platform.python_version()} on {platform.machine()}"),
    ]
    findings += [library(name) for name in _LIBRARIES]
    findings += [optional(name, purpose) for name, purpose in _OPTIONAL.items()]
    return [*findings, torch_works(), memory(), disk(runs), writable("runs", runs)]
