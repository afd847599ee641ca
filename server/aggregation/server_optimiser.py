"""Adaptive federated optimisation: the mean of the sites' models is a step that a server optimiser takes its own way.

Reddi et al., Adaptive Federated Optimization, ICLR 2021 (arXiv 2003.00295), algorithm 2: with the global model x and
the mean of the sites' models, the pseudo-gradient is ``d = mean - x``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from aiseeme_models.errors import InputError
from aiseeme_models.options import Options
from server.aggregation.base import Vector
from server.aggregation.chunks import chunks
from server.aggregation.exact_mean import ExactMean


class ServerOptimiser(ExactMean):
    """Base of the server optimisers: float32 state, float64 arithmetic, and statistics that take the plain mean."""

    def __init__(self, options: Options, statistics: Sequence[slice] = ()) -> None:
        super().__init__(options, statistics)
        self._state: dict[str, Vector] = {}

    def state(self) -> dict[str, Vector]:
        """The optimiser's vectors by name; empty before the first finished round."""
        return dict(self._state)

    def load_state(self, state: Mapping[str, Vector]) -> None:
        """Go on from what `state` gave; empty starts afresh."""
        expected = set(self.first_values())
        if state and set(state) != expected:
            raise InputError(f"the checkpoint holds the server optimiser state {sorted(state)}, not {sorted(expected)}")
        for name, vector in state.items():
            if vector.dtype != np.float32 or vector.ndim != 1:
                raise InputError(f"the server optimiser state {name!r} is not a flat float32 vector")
        self._state = {name: np.array(vector) for name, vector in state.items()}

    @abstractmethod
    def first_values(self) -> Mapping[str, float]:
        """Name and first value of each ``(P,)`` state vector."""

    def _server_step(self, current: Vector, mean: Vector) -> None:
        if not self._state:
            self._state = {
                name: np.full(current.size, value, dtype=np.float32) for name, value in self.first_values().items()
            }
        for name, vector in self._state.items():
            if vector.size != current.size:
                raise InputError(f"the server optimiser state {name!r} has {vector.size} values, not {current.size}")
        for part in self._parameters(current.size):
            self._step(current[part], mean[part], {name: vector[part] for name, vector in self._state.items()})

    def _parameters(self, size: int) -> Iterator[slice]:
        """The pieces of the vector that are no statistics."""
        position = 0
        for held_out in sorted(self.statistics, key=lambda held_out: held_out.start):
            yield from chunks(position, held_out.start)
            position = max(position, held_out.stop)
        yield from chunks(position, size)

    @abstractmethod
    def _step(self, current: Vector, mean: Vector, state: Mapping[str, Vector]) -> None:
        """Update one piece: ``state`` and ``mean`` in place, the latter becoming the next global model."""
