"""In which precision weights travel. The coordinator's own copy is float32 in either case.

With ``float16`` the global weights are rounded on their way out, and a site answers with the difference that it made,
rounded too. The coordinator adds that to its own, unrounded weights, so that what rounding took from the global weights
in one round is not lost for the next.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch
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
    rounded = halved(weights)
    if not np.isfinite(rounded).all():
        raise RunFailed("a weight is too large for federation.transfer = 'float16': use 'float32'")
    return rounded


def seen(weights: NDArray[np.float32], transfer: Transfer) -> NDArray[np.float32]:
    """The global weights ``(P,)`` as sites come to have them.

    Raises:
        RunFailed: a weight is too large for float16.
    """
    return widened(outgoing(weights, transfer))


def halved(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Floats rounded to the nearest float16, ties to even; what is too large becomes infinite.

    By torch: NumPy takes 50 times as long where float16 is subnormal, as most differences of a round are.
    """
    return torch.from_numpy(np.array(values)).half().numpy()


def widened(values: NDArray[np.float32] | NDArray[np.float16]) -> NDArray[np.float32]:
    """The same floats as float32; what is float32 already is given as it is."""
    if values.dtype == np.float32:
        return values.astype(np.float32, copy=False)
    return torch.from_numpy(np.array(values)).float().numpy()


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
    return halved(trained - received)


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
