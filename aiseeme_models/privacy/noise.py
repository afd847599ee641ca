"""Random draws that a coordinator must not be able to guess, and the same from a seed for simulations.

Who knows the noise can take it away, and who knows which patients were drawn gains what the drawing was to hide. At a
site both come from a key that the operating system's random source gives anew for every round and nobody keeps.
"""

from __future__ import annotations

import math
import secrets
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

from aiseeme_models.seeding import generator

_PIECE = 2**16  # half a megabyte: stays in a core's cache
_ZEROS = memoryview(bytes(8 * _PIECE))


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
        self._bits = bytearray(8 * _PIECE + 15)  # the cipher wants room for a block more

    def uniform(self, count: int) -> Tensor:
        """See `Draws.uniform`: 53 random bits each, centred, so that 0 and 1 never come."""
        found = torch.empty(count, dtype=torch.float64)
        numbers = found.numpy()
        for first in range(0, count, _PIECE):
            self._fill(numbers[first : first + _PIECE])
        return found

    def normal(self, count: int) -> Tensor:
        """See `Draws.normal`."""
        found = torch.empty(count, dtype=torch.float64)
        for first in range(0, count, _PIECE):
            piece = found[first : first + _PIECE]
            half = (len(piece) + 1) // 2
            radius, angle = self.uniform(half).log_().mul_(-2).sqrt_(), self.uniform(half).mul_(2 * math.pi)
            torch.mul(radius, angle.cos(), out=piece[:half])
            piece[half:] = radius.mul_(angle.sin_())[: len(piece) - half]
        return found

    def _fill(self, numbers: NDArray[np.float64]) -> None:
        """Draw as many as fit."""
        self._stream.update_into(_ZEROS[: 8 * len(numbers)], self._bits)
        drawn = np.frombuffer(self._bits, dtype="<u8", count=len(numbers))
        np.right_shift(drawn, 11, out=drawn)
        np.add(drawn, 0.5, out=numbers)
        numbers *= 2.0**-53


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
