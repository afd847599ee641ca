"""What an aggregation is: updates come in one at a time, in any order, and one model goes out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.options import Options, parse_options
from aiseeme_models.registry import Registry
from server.aggregation.chunks import value_range

Vector = npt.NDArray[np.float32]
RefusalCode = Literal["dtype", "shape", "weight", "not-finite", "out-of-range", "negative-variance"]

MAX_TOTAL_WEIGHT = 1 << 40
MIN_BOUND_BITS = 12


class UpdateRefused(Exception):
    """A site's update cannot be part of the round; nothing of it was folded in.

    Attributes:
        code: why, for programs; the text says the same for people and holds nothing that the site sent as text.
    """

    def __init__(self, code: RefusalCode, text: str) -> None:
        super().__init__(text)
        self.code: RefusalCode = code


class Aggregation(ABC):
    """One way to aggregate, used round after round on flat vectors of ``P`` values.

    Attributes:
        options_type: the method's typed options.
        proximal_mu: weight of the proximal term that the sites add to their loss (FedProx); 0 for none.
        ema_tau: how much of their own model sites keep (FedEMA); None: nothing.
        layers: the places of the tensors in the vector, in order, without gaps; empty where nobody needs them.

    Args:
        options: an instance of ``options_type``.
        statistics: the positions of the vector that are statistics (batch-norm means and variances), as slices.
            Server optimisers leave them alone: they take the plain weighted mean.
        variances: the positions of the variances among them, as slices. One negative value there would make every
            feature NaN, so an update that holds one is refused.
    """

    options_type: ClassVar[type[Options]] = Options
    proximal_mu: float = 0.0
    ema_tau: float | None = None
    layers: tuple[slice, ...] = ()

    def __init__(self, options: Options, statistics: Sequence[slice] = (), variances: Sequence[slice] = ()) -> None:
        if not isinstance(options, self.options_type):
            raise TypeError(f"{type(self).__name__} takes {self.options_type.__name__}, not {type(options).__name__}")
        self.statistics = tuple(statistics)
        self.variances = tuple(variances)
        self._current: Vector | None = None
        self._max_weight = 0
        self._bound_bits = 0
        self.total_weight = 0
        self.updates = 0

    def start_round(self, current: Vector, max_weight: int, scratch: Path) -> None:
        """Open a round; what an unfinished one had folded in is dropped.

        Args:
            current: ``(P,)`` float32, the global model that the sites were sent; kept by reference until the round
                is finished, never written to.
            max_weight: the most that the weights of all replies may add up to, known before any reply: the sum of
                the image counts that the invited sites have declared.
            scratch: a folder for this round's temporary files; methods that stream do not touch it.

        Raises:
            RunFailed: the global model has values that are not finite.
            InputError: ``max_weight`` is not in ``1 .. 2**40``.
        """
        if current.dtype != np.float32 or current.ndim != 1 or current.size == 0:
            raise TypeError(f"a model is a flat, non-empty float32 vector, not {current.dtype} {current.shape}")
        if not 1 <= max_weight <= MAX_TOTAL_WEIGHT:
            raise InputError(f"the sites declared {max_weight} images together: expected 1 to {MAX_TOTAL_WEIGHT}")
        low, high = value_range(current)
        largest = max(abs(low), abs(high))
        if not math.isfinite(low + high):
            raise RunFailed("the global model holds values that are not finite, so no round can start from it")
        self._current, self._max_weight = current, max_weight
        # Values of 4096, and 16 times the largest that the model has now, are far beyond what a round of training does.
        self._bound_bits = max(MIN_BOUND_BITS, math.frexp(largest)[1] + 4)
        self.total_weight = self.updates = 0
        self._open(scratch)

    def fold(self, update: Vector, weight: int) -> None:
        """Take one site's model into the round. It is validated whole before the first value is used.

        Args:
            update: ``(P,)`` float32, the site's model (not a difference); not kept.
            weight: the images behind it, at least 1.

        Raises:
            UpdateRefused: wrong dtype, wrong shape (also one that would broadcast), a weight that is no positive
                integer or that exceeds what was declared, values that are not finite or far out of range, a negative
                variance.
            RunFailed: a temporary file could not be written.
        """
        current = self._opened()
        if not isinstance(update, np.ndarray) or update.dtype != np.float32:
            raise UpdateRefused("dtype", "the update is not an array of 32-bit floats")
        if update.shape != current.shape:
            raise UpdateRefused("shape", f"the update does not have the {current.size} values of this model")
        if type(weight) is not int or not 1 <= weight <= self._max_weight - self.total_weight:
            raise UpdateRefused("weight", "the number of images behind the update is not within what was declared")
        low, high = value_range(update)
        if not math.isfinite(low) or not math.isfinite(high):
            raise UpdateRefused("not-finite", "the update holds values that are not finite")
        if max(abs(low), abs(high)) >= math.ldexp(1.0, self._bound_bits):
            raise UpdateRefused("out-of-range", f"the update holds values of 2^{self._bound_bits} or more")
        if any((update[part] < 0).any() for part in self.variances):
            raise UpdateRefused("negative-variance", "the update holds a negative variance of batch norm")
        self._take(update, weight)
        self.total_weight += weight
        self.updates += 1

    def finish_round(self) -> Vector:
        """Close the round: the next global model, ``(P,)`` float32, a new array.

        Raises:
            RunFailed: no update was folded in, or a temporary file could not be read.
        """
        current = self._opened()
        if not self.updates:
            raise RunFailed("no site's update arrived, so there is nothing to aggregate")
        result = self._close(current)
        self._current = None
        return result

    def state(self) -> dict[str, Vector]:
        """What must be kept between rounds besides the model: named ``(P,)`` float32 vectors, not copies."""
        return {}

    def load_state(self, state: Mapping[str, Vector]) -> None:
        """Go on from what `state` gave.

        Raises:
            InputError: the state is another method's.
        """
        if state:
            raise InputError(f"the checkpoint holds the state of another aggregation: {', '.join(sorted(state))}")

    @abstractmethod
    def _open(self, scratch: Path) -> None:
        """Make room for the round."""

    @abstractmethod
    def _take(self, update: Vector, weight: int) -> None:
        """Take in a validated update."""

    @abstractmethod
    def _close(self, current: Vector) -> Vector:
        """The round's result."""

    def _opened(self) -> Vector:
        if self._current is None:
            raise RuntimeError("no round is open: call start_round first")
        return self._current


aggregations: Registry[type[Aggregation]] = Registry("aggregation")


def build_aggregation(
    name: str,
    settings: Mapping[str, object] | None = None,
    statistics: Sequence[slice] = (),
    variances: Sequence[slice] = (),
    layers: Sequence[slice] = (),
) -> Aggregation:
    """The aggregation called ``name`` with ``settings`` for its options; see `Aggregation` for the slices.

    Raises:
        InputError: no such aggregation, or options that it does not have or cannot take.
    """
    method = aggregations[name]
    options = parse_options(method.options_type, settings or {}, where="aggregation_options", owner=name)
    aggregation = method(options, statistics)
    aggregation.variances = tuple(variances)  # looked at by `Aggregation.fold` alone, so methods need not pass them on
    aggregation.layers = tuple(layers)
    return aggregation
