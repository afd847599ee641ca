"""How well scores tell one class from the rest: ROC and precision-recall figures, for one sample or many resamples.

Every function takes the images' weights as a matrix, one row for each resample, so that a bootstrap of a thousand
resamples sorts the scores once. A weight of 2 means that the image is there twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class RankedMasses:
    """Weight in each of ``T`` groups of equal score, from the highest score to the lowest, in ``R`` resamples.

    Attributes:
        positive: ``(R, T)`` of the class.
        negative: ``(R, T)`` of the rest.
    """

    positive: Weights
    negative: Weights

    def auc(self) -> NDArray[np.float64]:
        """Probability that a positive scores above a negative, ties counted as half (Mann-Whitney).

        Returns:
            ``(R,)``, NaN where positives or negatives are missing.
        """
        below = self.negative.sum(axis=1, keepdims=True) - self.negative.cumsum(axis=1)  # (R, T)
        pairs = self.positive.sum(axis=1) * self.negative.sum(axis=1)
        return _divide((self.positive * (below + self.negative / 2.0)).sum(axis=1), pairs)

    def average_precision(self) -> NDArray[np.float64]:
        """Area under the precision-recall curve as average precision: the precision at each gain of recall, summed.

        Returns:
            ``(R,)``, NaN where positives are missing.
        """
        found = self.positive.cumsum(axis=1)
        precision = _divide(found, found + self.negative.cumsum(axis=1), empty=0.0)  # (R, T)
        return _divide((self.positive * precision).sum(axis=1), self.positive.sum(axis=1))

    def sensitivity_at(self, specificity: float) -> NDArray[np.float64]:
        """The highest recall of any threshold that leaves at least ``specificity`` (in [0, 1]) of the negatives below.

        Returns:
            ``(R,)``, NaN where positives or negatives are missing.
        """
        negatives = self.negative.sum(axis=1, keepdims=True)
        # Sums round: a threshold that meets the specificity exactly must be allowed.
        allowed = self.negative.cumsum(axis=1) <= (1.0 - specificity) * negatives + 1e-9
        best = np.where(allowed, self.positive.cumsum(axis=1), 0.0).max(axis=1)
        return np.where(negatives[:, 0] > 0, _divide(best, self.positive.sum(axis=1)), np.nan)


@dataclass(frozen=True)
class RankedClass:
    """One class against the rest, its images in groups of equal score, from the highest to the lowest.

    Attributes:
        order: ``(N,)`` positions of the images by falling score.
        first: ``(T,)`` where in ``order`` each group of equal scores begins.
        positive: ``(N,)`` bool, by ``order``.
    """

    order: NDArray[np.int64]
    first: NDArray[np.int64]
    positive: NDArray[np.bool_]

    @classmethod
    def of(cls, scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> RankedClass:
        """Rank ``scores`` ``(N,)`` of at least one image, higher meaning more likely ``positive`` ``(N,)``."""
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        first = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
        return cls(order, first, np.asarray(positive, dtype=bool)[order])

    def masses(self, weights: Weights) -> RankedMasses:
        """Where the images' weights ``(R, N)``, none of them negative, lie."""
        ordered = weights[:, self.order]
        positive = np.where(self.positive, ordered, 0.0)
        return RankedMasses(
            np.add.reduceat(positive, self.first, axis=1), np.add.reduceat(ordered - positive, self.first, axis=1)
        )


def one_against_rest_auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """`RankedMasses.auc` of one sample.

    Args:
        scores: ``(N,)``, higher means more likely positive.
        positive: ``(N,)`` bool.

    Returns:
        The AUC, or None where positives or negatives are missing.
    """
    if len(scores) == 0:
        return None
    return defined(RankedClass.of(scores, positive).masses(np.ones((1, len(scores)))).auc()[0])


def defined(value: float | np.float64) -> float | None:
    """``value``, or None for NaN: an undefined figure is said to be so."""
    return None if np.isnan(value) else float(value)


def _divide(above: NDArray[np.float64], below: NDArray[np.float64], empty: float = float("nan")) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full_like(above, empty), where=below > 0)
