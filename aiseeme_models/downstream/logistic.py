"""Logistic regression on standardised features: what probes, and whoever wants to tell sites apart, fit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from torch import nn

MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class Logistic:
    """A fitted multinomial logistic regression.

    Attributes:
        scaler: standardises features.
        model: of scikit-learn.
    """

    scaler: StandardScaler
    model: LogisticRegression

    @property
    def names(self) -> list[str]:
        """The ``C`` classes, in the order of the columns."""
        return [str(name) for name in self.model.classes_]

    @property
    def converged(self) -> bool:
        """Whether the solver came to an end by itself."""
        return int(self.model.n_iter_[0]) < MAX_ITERATIONS

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """``(M, D)`` features to ``(M, C)``."""
        scaled = self.scaler.transform(features.astype(np.float64))
        return np.asarray(self.model.predict_proba(scaled), dtype=np.float64).reshape(len(features), -1)

    def layer(self) -> nn.Linear:
        """The same as a layer on features as they are: ``(B, D)`` to logits ``(B, C)``, of two classes also two."""
        import torch
        from torch import nn

        slopes = self.model.coef_ / self.scaler.scale_  # (C, D), or (1, D) of two classes
        offsets = self.model.intercept_ - slopes @ self.scaler.mean_
        if len(slopes) == 1:
            slopes, offsets = np.stack([-slopes[0], slopes[0]]) / 2, np.stack([-offsets[0], offsets[0]]) / 2
        layer = nn.Linear(slopes.shape[1], len(slopes))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(slopes))
            layer.bias.copy_(torch.from_numpy(offsets))
        return layer.requires_grad_(False)


def fit_logistic(
    features: NDArray[np.float32],
    labels: Sequence[str],
    *,
    seed: int = 0,
    weights: NDArray[np.float64] | None = None,
) -> Logistic:
    """Fit it.

    Args:
        features: ``(N, D)``.
        labels: ``N``, of two classes or more.
        seed: handed to scikit-learn; its L-BFGS solver draws no random number, so every seed gives the same.
        weights: ``(N,)`` what each image counts; None: classes weigh by their inverse frequency.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    scaler = StandardScaler().fit(features.astype(np.float64))
    balanced = None if weights is not None else "balanced"
    model = LogisticRegression(class_weight=balanced, max_iter=MAX_ITERATIONS, random_state=seed)
    # One thread: the products are small, and with two on a busy machine the fit was measured ten times slower.
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` tells instead
        model.fit(scaler.transform(features.astype(np.float64)), np.asarray(labels, dtype=str), weights)
    return Logistic(scaler, model)
