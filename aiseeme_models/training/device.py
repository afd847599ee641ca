"""Which device computes."""

from __future__ import annotations

import torch

from aiseeme_models.errors import InputError


def choose_device(name: str) -> str:
    """The torch device called ``name``; ``auto`` is the first GPU where there is one, else the CPU.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: not a device; auto, cpu, cuda and cuda:1 are") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return name
