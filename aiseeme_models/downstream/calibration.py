"""Whether a probability means what it says: calibration error, reliability diagram, temperature scaling.

Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from aiseeme_models.errors import InputError

BINS = 15
_TEMPERATURES = (0.05, 20.0)


class ReliabilityBin(BaseModel):
    """Images whose highest probability lies in one bin of the reliability diagram.

    Attributes:
        images: how many.
        confidence: mean of their highest probability.
        accuracy: share of them that were recognised.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    images: int
    confidence: float
    accuracy: float


class Calibration(BaseModel):
    """How probabilities and outcomes agree on the test images.

    Attributes:
        ece: expected calibration error, see `expected_calibration_error`.
        reliability: the bins that hold images, from the lowest confidence to the highest.
        temperature: by which the logits were divided before; None: they are as the classifier gave them.
        ece_unscaled: what ``ece`` was without that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ece: float
    reliability: tuple[ReliabilityBin, ...]
    temperature: float | None = None
    ece_unscaled: float | None = None


def bins_of(confidence: NDArray[np.float64], bins: int = BINS) -> NDArray[np.int64]:
    """The bin, from 0, of each confidence: bin ``m`` holds ``(m / bins, (m + 1) / bins]``, as in the paper."""
    place: NDArray[np.int64] = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return place


def expected_calibration_error(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], weights: NDArray[np.float64], bins: int = BINS
) -> NDArray[np.float64]:
    """Mean distance between confidence and accuracy over equal-width bins, by their images (eq. 3 of the paper).

    Args:
        confidence: ``(N,)`` highest probability of each image.
        correct: ``(N,)`` whether it was right.
        weights: ``(R, N)`` how often an image is there, one row for each resample.
        bins: their number.

    Returns:
        ``(R,)``.
    """
    # Only sums matter: |sum of confidence - sum of hits| of a bin is its images times the distance of the means.
    excess = confidence - correct  # (N,)
    gaps = np.stack(
        [np.abs(weights[:, here] @ excess[here]) for here in (bins_of(confidence, bins) == m for m in range(bins))]
    )  # (bins, R)
    error: NDArray[np.float64] = gaps.sum(axis=0) / weights.sum(axis=1)
    return error


def calibration(
    probabilities: NDArray[np.float64], truth: NDArray[np.int64], *, temperature: float | None = None
) -> Calibration:
    """The calibration of ``probabilities`` ``(N, C)``, whose rows sum to 1, for the true columns ``truth`` ``(N,)``.

    Args:
        probabilities: as the classifier gave them.
        truth: column of each image's class, or -1 where it has none: then every answer is wrong.
        temperature: what to divide the logits by first, as `fit_temperature` found it on other images.
    """
    scaled = probabilities if temperature is None else at_temperature(probabilities, temperature)
    ones = np.ones((1, len(truth)))
    confidence, correct = scaled.max(axis=1), scaled.argmax(axis=1) == truth
    before = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    place = bins_of(confidence)
    return Calibration(
        ece=float(expected_calibration_error(confidence, correct, ones)[0]),
        reliability=tuple(
            ReliabilityBin(
                images=int(here.sum()),
                confidence=float(confidence[here].mean()),
                accuracy=float(correct[here].mean()),
            )
            for here in (place == m for m in range(BINS))
            if here.any()
        ),
        temperature=temperature,
        ece_unscaled=None if temperature is None else float(expected_calibration_error(*before, ones)[0]),
    )


def at_temperature(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """``softmax(z / T)`` of the ``(N, C)`` probabilities ``softmax(z)``: their order stays as it is."""
    from scipy.special import softmax

    scaled: NDArray[np.float64] = softmax(_log(probabilities) / temperature, axis=1)
    return scaled


def fit_temperature(probabilities: NDArray[np.float64], truth: Sequence[int] | NDArray[np.int64]) -> float:
    """The temperature of the smallest negative log-likelihood on held-out images, between 0.05 and 20.

    Args:
        probabilities: ``(N, C)`` of images that were not trained on, and are not tested on.
        truth: ``(N,)`` their true columns.

    Raises:
        InputError: no images.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if len(truth) == 0:
        raise InputError("temperature scaling needs labelled validation images, and there are none")
    logits, rows, columns = _log(probabilities), np.arange(len(truth)), np.asarray(truth)

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, columns].mean())

    bounds = tuple(np.log(_TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x))


def _log(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    logs: NDArray[np.float64] = np.log(np.clip(probabilities, np.finfo(np.float64).tiny, None))
    return logs
