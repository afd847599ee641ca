"""Random draws that a coordinator must not be able to guess, and the same from a seed for simulations.

Who knows the noise can take it away, and who knows which patients were drawn gains what the drawing was to hide. At a
site both come from a key that the operating system's random source gives anew for every round and nobody keeps.
"""

from __future__ import annotations

import math
import secrets
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from aiseeme_models.seeding import generator

_PIECE = 2**20


class Draws(Protocol):
    """A source of independent draws, float64 on the CPU."""

    def uniform(self, count: int) -> Tensor:
        """``(count,)`` in (0, 1)."""
        ...

    def normal(self, count: int) -> Tensor:
        """``(count,)`` with mean 0 and variance 1."""
        ...


class SecretDraws:
    """AES-256 in counter mode as a random generator, and Box and Muller's transform (1958).

    The normals are in double precision and are added before anything is rounded to float32. That floating-point noise
    is not exactly normal (Mironov 2012) is not defended against beyond that.

    Args:
        key: 32 bytes; default: fresh from the operating system.
    """

    def __init__(self, key: bytes | None = None) -> None:
        cipher = Cipher(algorithms.AES256(secrets.token_bytes(32) if key is None else key), modes.CTR(bytes(16)))
        self._stream = cipher.encryptor()

    def uniform(self, count: int) -> Tensor:
        """See `Draws.uniform`: 53 random bits each, centred, so that 0 and 1 never come."""
        if not count:
            return torch.zeros(0, dtype=torch.float64)
        integers = torch.frombuffer(bytearray(self._stream.update(bytes(8 * count))), dtype=torch.int64)
        return ((integers >> 11) & (2**53 - 1)).double().add_(0.5).mul_(2.0**-53)

    def normal(self, count: int) -> Tensor:
        """See `Draws.normal`."""
        found = torch.empty(count, dtype=torch.float64)
        for first in range(0, count, _PIECE):
            piece = found[first : first + _PIECE]
            half = (len(piece) + 1) // 2
            radius, angle = self.uniform(half).log_().mul_(-2).sqrt_(), self.uniform(half).mul_(2 * math.pi)
            piece[:half] = radius * angle.cos()
            piece[half:] = (radius * angle.sin())[: len(piece) - half]
        return found


class SeededDraws:
    """The draws of a simulation: the same for the same seed, and so no protection at all.

    Args:
        seed: of this site and round.
    """

    def __init__(self, seed: int) -> None:
        self._generator = generator(seed, "privacy")

    def uniform(self, count: int) -> Tensor:
        """See `Draws.uniform`."""
        drawn = torch.randint(2**53, (count,), generator=self._generator)
        return drawn.double().add_(0.5).mul_(2.0**-53)

    def normal(self, count: int) -> Tensor:
        """See `Draws.normal`."""
        return torch.randn(count, generator=self._generator, dtype=torch.float64)
