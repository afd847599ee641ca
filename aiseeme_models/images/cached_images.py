"""A fixed sequence of cached images, gathered from memory-mapped packs batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class CachedImages:
    """``N`` images of one shape, uint8.

    Args:
        packs: memory maps ``(n, C, S, S)`` uint8.
        pack_of: ``(N,)`` int64, the pack of each image.
        row_of: ``(N,)`` int64, its row there.
        shape: ``(C, S, S)``.
    """

    def __init__(
        self,
        packs: Sequence[NDArray[np.uint8]],
        pack_of: NDArray[np.int64],
        row_of: NDArray[np.int64],
        shape: tuple[int, int, int],
    ) -> None:
        self.shape = shape
        self._packs = list(packs)
        self._pack_of = pack_of
        self._row_of = row_of

    def __len__(self) -> int:
        return len(self._row_of)

    def only(self, places: Sequence[int]) -> CachedImages:
        """Some of the images, by their places, in that order."""
        chosen = np.asarray(places, dtype=np.int64)
        return CachedImages(self._packs, self._pack_of[chosen], self._row_of[chosen], self.shape)

    def batch(self, indices: Tensor) -> Tensor:
        """The images of ``indices`` ``(B,)`` int64, in their order, as uint8 ``(B, C, S, S)``.

        Raises:
            IndexError: an index outside the sequence.
        """
        chosen = indices.numpy()
        packs, rows = self._pack_of[chosen], self._row_of[chosen]
        images = np.empty((len(chosen), *self.shape), np.uint8)  # (B, C, S, S)
        for pack in np.unique(packs):
            here = np.flatnonzero(packs == pack)
            images[here] = self._packs[pack][rows[here]]
        return torch.from_numpy(images)
