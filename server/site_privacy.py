"""Differential privacy of a whole site against the other sites and whoever gets the model: noise at the coordinator.

McMahan et al., "Learning Differentially Private Recurrent Language Models", 2018 (arXiv 1710.06963), with every invited
site in every round. The coordinator itself sees each update as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.privacy.accounting import epsilon
from aiseeme_models.privacy.noise import Draws, SecretDraws, SeededDraws
from aiseeme_models.privacy.spending import Spend
from aiseeme_models.privacy.updates import clipped_update, noisy
from aiseeme_models.seeding import derive_seed
from federation_configs.schema import FederationConfig


class SitePrivacy:
    """Clips what each site changes, and adds noise to the mean of those who answered.

    Args:
        config: a federation with ``[site_privacy]``.
        secret: whether the noise is one that nobody can make again; without, it follows from the seed, for simulations.
    """

    def __init__(self, config: FederationConfig, *, secret: bool) -> None:
        assert config.site_privacy is not None
        self._options = config.site_privacy
        seed = config.seed
        self._draws: Callable[[int], Draws] = (
            (lambda _: SecretDraws())
            if secret
            else (lambda number: SeededDraws(derive_seed(seed, "site-privacy", number)))
        )

    def clipped(self, weights: NDArray[np.float32], current: NDArray[np.float32]) -> NDArray[np.float32]:
        """A site's weights ``(P,)``, no further than ``clip_norm`` from the ``current`` ones."""
        return clipped_update(weights, current, self._options.clip_norm)

    def noised(self, mean: NDArray[np.float32], sites: int, round_number: int) -> NDArray[np.float32]:
        """The ``mean`` ``(P,)`` of ``sites`` clipped ones, with the noise that hides one of so many."""
        deviation = self._options.noise_multiplier * self._options.clip_norm / sites
        return noisy(mean, deviation, self._draws(round_number))

    def spent(self, rounds: int) -> float:
        """ε of one site after so many rounds."""
        if not rounds:
            return 0.0
        return epsilon([Spend(self._options.noise_multiplier, 1.0, rounds)], self._options.delta).value
