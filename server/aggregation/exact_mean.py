"""The weighted mean as an exact sum: each update is folded in as it comes, and the order cannot change a bit.

Floating-point sums depend on the order of their terms, and replies come in any order. Here every term is rounded once
to a 64-bit fixed-point number, and integers add up exactly. With the bound ``|x| < 2^R`` on a value and
``W < 2^N`` on the sum of all weights, both known before the first reply, a term is

    round(x * n * 2^S),   S = 62 - R - N,

so that no sum of terms can leave 64 bits. The error of the mean is at most ``K / (2 W) * 2^-S`` for ``K`` replies:
with R = 12 and weights that add up to ``2^N``, ``K * 2^-51``. The ring of 64-bit integers is also what secure
aggregation needs.

Memory: the sums, which are twice the model, whatever the number of sites. The result takes their place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from aiseeme_models.options import Options
from server.aggregation.base import Aggregation, Vector
from server.aggregation.chunks import CHUNK, chunks, on_all_cores


class ExactMean(Aggregation):
    """Exact weighted mean of the updates, ``sum n_i x_i / sum n_i``, and then `_server_step`."""

    def __init__(self, options: Options, statistics: Sequence[slice] = (), variances: Sequence[slice] = ()) -> None:
        super().__init__(options, statistics, variances)
        self._buffer: Vector | None = None
        self._scale_bits = 0

    def _open(self, scratch: Path) -> None:
        self._scale_bits = 62 - self._bound_bits - self._max_weight.bit_length()
        self._buffer = np.zeros(2 * self._opened().size, dtype=np.float32)  # (2 P,): holds the (P,) int64 sums

    def _take(self, update: Vector, weight: int) -> None:
        on_all_cores(update.size, lambda parts: self._add(update, weight, parts))

    def _add(self, update: Vector, weight: int, parts: Iterator[slice]) -> None:
        """Add ``update`` times ``weight`` to the sums, in these parts of the vector, each at most `CHUNK` long."""
        assert self._buffer is not None
        sums = self._buffer.view(np.int64)  # (P,)
        scale = math.ldexp(float(weight), self._scale_bits)
        scaled, terms = np.empty(CHUNK), np.empty(CHUNK, dtype=np.int64)
        for part in parts:
            count = part.stop - part.start
            term = terms[:count]
            value = scaled[:count]
            np.multiply(update[part], scale, out=value, dtype=np.float64)
            np.rint(value, out=value)
            np.copyto(term, value, casting="unsafe")
            total = sums[part]
            np.add(total, term, out=total)

    def _close(self, current: Vector) -> Vector:
        divisor = math.ldexp(float(self.total_weight), self._scale_bits)
        return self._divided(current, [(slice(0, current.size), divisor)])

    def _divided(self, current: Vector, divisors: Iterable[tuple[slice, float]]) -> Vector:
        """The sums over their divisors, and the server's step; where the divisor is 0, what is ``current``.

        Args:
            current: the global model ``(P,)``.
            divisors: parts of the vector in order, without gaps.
        """
        buffer, self._buffer = self._buffer, None
        assert buffer is not None
        sums = buffer.view(np.int64)  # (P,)
        # In place, forwards and on one core: writing float32 number k only overwrites the sum k / 2, which is used up.
        for whole, divisor in divisors:
            for part in chunks(whole.start, whole.stop):
                buffer[part] = sums[part] / divisor if divisor else current[part]
        del sums
        buffer.resize(current.size, refcheck=False)  # no view is left; the second half goes back to the system
        self._server_step(current, buffer)
        return buffer

    def _server_step(self, current: Vector, mean: Vector) -> None:
        """Turn ``mean`` into the next global model, in place; the plain mean leaves it as it is."""
