"""What a site keeps of itself under FedEMA (Zhuang et al. 2022, arXiv 2204.04385): how a round begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class OwnModel:
    """A site's weights at the end of its last round.

    Attributes:
        weights: ``(P,)`` float32.
        scale: lambda of the paper, as the autoscaler sets it once a stage; None before the first blend.
    """

    weights: NDArray[np.float32]
    scale: float | None

    def blended(
        self, received: NDArray[np.float32], backbone_size: int, tau: float
    ) -> tuple[NDArray[np.float32], float | None]:
        """Where the round begins, ``mu * own + (1 - mu) * received`` with ``mu = min(lambda * d, 1)``, and lambda.

        ``d`` is the distance of the backbones. The first lambda is ``tau / d`` (the paper's autoscaler), so that the
        first ``mu`` is ``tau``.

        Args:
            received: the global weights ``(P,)``.
            backbone_size: how many of the first weights are the backbone's.
            tau: in [0, 1].
        """
        apart = self.weights[:backbone_size].astype(np.float64) - received[:backbone_size]
        distance = float(np.linalg.norm(apart))
        if distance == 0:
            return received, self.scale
        scale = tau / distance if self.scale is None else self.scale
        mu = min(scale * distance, 1.0)
        whole: NDArray[np.float32] = (received + mu * (self.weights.astype(np.float64) - received)).astype(np.float32)
        return whole, scale
