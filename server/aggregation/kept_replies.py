"""Methods that need all replies at once: kept on disk, read back in slices, so that memory does not grow with sites."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aiseeme_models.errors import RunFailed
from aiseeme_models.options import Options
from server.aggregation.base import Aggregation, Vector
from server.aggregation.chunks import chunks

SLICE_BYTES = 32 * 2**20
"""Bytes of replies that are in memory at once."""


class KeptReplies(Aggregation):
    """Base of the coordinate-wise robust methods. Image counts carry no weight: a site could inflate its own.

    Values are sorted before they are combined, and -0 counts as 0, so that the order of arrival cannot change a bit.
    Statistics are treated like every other value.
    """

    def __init__(self, options: Options, statistics: Sequence[slice] = ()) -> None:
        super().__init__(options, statistics)
        self._scratch = Path()

    def _open(self, scratch: Path) -> None:
        self._scratch = scratch
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            self._forget()
        except OSError as error:
            raise RunFailed(f"no updates can be kept in {scratch}: {error.strerror}") from error

    def _take(self, update: Vector, weight: int) -> None:
        file = self._file(self.updates)
        try:
            with file.open("wb") as target:
                target.write(np.ascontiguousarray(update).data)
        except OSError as error:
            file.unlink(missing_ok=True)
            raise RunFailed(f"a site's update cannot be kept in {self._scratch}: {error.strerror}") from error

    def _close(self, current: Vector) -> Vector:
        result = np.empty_like(current)
        length = max(1, SLICE_BYTES // (4 * self.updates))
        try:
            for part in chunks(0, current.size, length):
                replies = np.stack([self._read(number, part) for number in range(self.updates)])  # (K, part)
                replies += np.float32(0)  # -0 + 0 = 0: sorting takes the two for equal and keeps them as they came
                replies.sort(axis=0)
                result[part] = self._combine(replies)
            self._forget()
        except OSError as error:
            raise RunFailed(f"the sites' updates in {self._scratch} cannot be read: {error.strerror}") from error
        return result

    @abstractmethod
    def _combine(self, replies: Vector) -> Vector:
        """One value per column of ``(K, n)`` replies, sorted along axis 0: ``(n,)`` float32."""

    def _read(self, number: int, part: slice) -> Vector:
        count = part.stop - part.start
        values = np.fromfile(self._file(number), dtype=np.float32, count=count, offset=4 * part.start)
        if values.size != count:
            raise RunFailed(f"an update kept in {self._scratch} was cut short while the round went on")
        return values

    def _file(self, number: int) -> Path:
        return self._scratch / f"reply-{number:05d}.f32"

    def _forget(self) -> None:
        for file in self._scratch.glob("reply-*.f32"):
            file.unlink()
