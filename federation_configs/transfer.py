"""In which precision weights travel. The coordinator's own copy is float32 in either case.

With ``float16`` the global weights are rounded on their way out, and a site answers with the difference that it made,
rounded too. The coordinator adds that to its own, unrounded weights, so that what rounding took from the global weights
in one round is not lost for the next.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.errors import RunFailed

Transfer = Literal["float32", "float16"]


def outgoing(weights: NDArray[np.float32], transfer: Transfer) -> NDArray[np.float32] | NDArray[np.float16]:
    """The global weights ``(P,)`` as they are sent to sites.

    Raises:
        RunFailed: a weight is too large for float16.
    """
    if transfer == "float32":
        return weights
    with np.errstate(over="ignore"):
        lowered = weights.astype(np.float16)
    if not np.isfinite(lowered).all():
        raise RunFailed("a weight is too large for federation.transfer = 'float16': use 'float32'")
    return lowered


def seen(weights: NDArray[np.float32], transfer: Transfer) -> NDArray[np.float32]:
    """The global weights ``(P,)`` as sites come to have them.

    Raises:
        RunFailed: a weight is too large for float16.
    """
    return outgoing(weights, transfer).astype(np.float32, copy=False)


def sha256_of(weights: NDArray[np.float32]) -> str:
    """SHA-256, in hex, of weights ``(P,)`` as little-endian floats."""
    return hashlib.sha256(np.ascontiguousarray(weights, dtype="<f4").data).hexdigest()


def answer(
    trained: NDArray[np.float32], received: NDArray[np.float32], transfer: Transfer
) -> NDArray[np.float32] | NDArray[np.float16]:
    """What a site sends back for ``trained`` weights ``(P,)``, having ``received`` the global ones.

    A difference beyond float16's range becomes infinite, and the coordinator refuses it.
    """
    if transfer == "float32":
        return trained
    with np.errstate(over="ignore"):
        return (trained - received).astype(np.float16)


def restored(
    answered: NDArray[np.float32], weights: NDArray[np.float32], transfer: Transfer, variances: tuple[slice, ...]
) -> NDArray[np.float32]:
    """The weights ``(P,)`` of a site, from its answer and the coordinator's own weights.

    Args:
        answered: as float32.
        weights: the global ones, unrounded.
        transfer: how both travelled.
        variances: places of running variances, which rounding must not make negative.
    """
    if transfer == "float32":
        return answered
    whole = weights + answered
    for place in variances:
        np.maximum(whole[place], 0, out=whole[place])
    return whole
