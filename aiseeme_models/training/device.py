"""Which device computes, and that it computes the same thing twice."""

from __future__ import annotations

import os

import torch

from aiseeme_models.errors import InputError


def choose_device(name: str) -> str:
    """The torch device called ``name``; ``auto`` is the first GPU where there is one, else the CPU.

    On a GPU `make_deterministic` is called for this process. Another process that computes must call it itself.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: not a device; auto, cpu, cuda and cuda:1 are") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    make_deterministic(name)
    return name


def make_deterministic(device: str) -> None:
    """Have this process compute the same bits again on ``device``, as far as PyTorch can; call it before computing.

    For the whole process, and for good. That runs are equal bit for bit was checked on CPUs only, which are so anyway:
    there nothing is done. On a GPU PyTorch warns of each operation that has no deterministic form (the gradient of the
    max-pooling of resnet18, 34 and 50 is one) and goes on.

    Args:
        device: a torch device string.
    """
    if torch.device(device).type != "cuda":
        return
    # cuBLAS reads it when its first handle is made. ":16:8", the other deterministic setting, may have been chosen.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
