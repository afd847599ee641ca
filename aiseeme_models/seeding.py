"""Random streams named by what they are for, so that no code needs global random state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called ``names`` under ``seed``, equal on every machine (BLAKE2b)."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for the stream called ``names`` under ``seed``.

    Random numbers are always drawn on the CPU and then moved, so that a run on a GPU sees the same draws.
    """
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *names))
