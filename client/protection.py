"""How this site protects its patients in a request: by private training, by noise of its own, or not at all."""

from __future__ import annotations

import secrets
from functools import cached_property
from typing import TYPE_CHECKING

from aiseeme_models.backbones.norm import PER_IMAGE_NORMS
from aiseeme_models.errors import InputError
from aiseeme_models.privacy.accounting import epsilon
from aiseeme_models.seeding import derive_seed
from client.refusals import Refusal
from federation_configs.privacy_plan import local_plan, local_spend, planned, round_spend, told_patients
from federation_configs.site_errors import SiteError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aiseeme_models.privacy.spending import Spend
    from aiseeme_models.privacy.steps import PrivateSteps
    from client.site import Site
    from federation_configs.schema import FederationConfig
    from federation_configs.wire import TrainRequest


class Protection:
    """What holds for one site and configuration.

    ``[privacy]`` in the configuration asks for private training. ``local_noise`` in site.toml adds noise to every
    update that leaves, whoever asks, which hides everybody in it at once: for a site that trusts nobody.

    Args:
        site: the site.
        config: of the federation that asks.

    Raises:
        Refusal: LOCAL_NOISE where the site adds noise of its own, and batch statistics are to leave.
    """

    def __init__(self, site: Site, config: FederationConfig) -> None:
        self._site, self._config = site, config
        options = None if site.budget is None else site.budget.options
        self._noise = None if options is None else options.local_noise
        self._clip = None if options is None else options.local_clip
        if self._noise is not None and config.model.norm not in PER_IMAGE_NORMS:
            raise Refusal(SiteError.LOCAL_NOISE)

    @cached_property
    def patients(self) -> int:
        """How many patients the site has for training."""
        return self._site.training_patients(self._config.holdout)

    @property
    def is_any(self) -> bool:
        """Whether patients are protected at all."""
        return self._config.privacy is not None or self._noise is not None

    @property
    def adds_noise(self) -> bool:
        """Whether the site adds noise of its own, so that also a training that fails is answered: with noise alone."""
        return self._noise is not None

    def check_affordable(self, run: str) -> None:
        """Refuse a run that would exceed the budget before it begins, and one that has too few patients here.

        Raises:
            Refusal: BUDGET_EXCEEDED, TOO_FEW_PATIENTS.
            BudgetBroken: budget file and ledger do not agree.
        """
        if not self.is_any:
            return
        plan = self._plan()
        if self._site.budget is not None and self._site.budget.would_exceed(plan, run=run):
            raise Refusal(SiteError.BUDGET_EXCEEDED)

    def charge(self, request: TrainRequest) -> float | None:
        """Charge the round that begins. Gives ε of the run so far; None where nobody is protected.

        A simulation spends nobody's privacy: there each round of the run counts once.

        Raises:
            Refusal: BUDGET_EXCEEDED, TOO_FEW_PATIENTS.
            BudgetBroken, LedgerBroken, OSError: as `PrivacyBudget.charge`.
        """
        if not self.is_any:
            return None
        asked, budget = self._config.privacy, self._site.budget
        if budget is None:
            assert asked is not None  # a simulated site adds no noise of its own
            return epsilon([one for _, one in self._plan(request.round)], asked.delta).value
        charged = budget.charge(self._round(request.stage), run=request.run, round=request.round, stage=request.stage)
        return epsilon(charged, budget.options.delta if asked is None else asked.delta).value

    def steps(self, request: TrainRequest, bound: float | None) -> PrivateSteps | None:
        """The steps of private training; None without ``[privacy]``.

        Args:
            request: the round.
            bound: the norm that an adaptive clipping ended the round before with.
        """
        site, config = self._site, self._config
        if config.privacy is None:
            return None
        from aiseeme_models.privacy.noise import SecretDraws, SeededDraws
        from aiseeme_models.privacy.steps import PrivateSteps

        # At a real site nobody can make the draws again, not even the site. A simulation's are those of its seed.
        seed = derive_seed(config.seed, "private", site.name, request.round)
        return PrivateSteps(
            site.patients_of_images(config.images, "train", config.holdout),
            self.patients,
            config.curriculum.stage[request.stage].batch_size,
            config.privacy,
            SeededDraws(seed) if site.gate is None else SecretDraws(),
            count=told_patients(self.patients),
            bound=bound,
        )

    def view_seed(self, request: TrainRequest) -> int:
        """The seed of a round's views.

        A coordinator knows the federation's seed. With private training at a real site it must not know the views: they
        are drawn batch by batch, so that one patient's absence gives others other views, which would tell of it.
        """
        if self._config.privacy is not None and self._site.gate is not None:
            return secrets.randbits(62)
        return derive_seed(self._config.seed, "train", self._site.name, request.round)

    def outgoing(self, trained: NDArray[np.float32], received: NDArray[np.float32]) -> NDArray[np.float32]:
        """The ``trained`` weights ``(P,)`` as they may leave, having ``received`` the global ones."""
        if self._noise is None or self._clip is None:
            return trained
        from aiseeme_models.privacy.noise import SecretDraws
        from aiseeme_models.privacy.updates import clipped_change, noisy

        change = clipped_change(trained, received, self._clip)  # not rounded before the noise is in it
        return noisy(received + change, self._noise * self._clip, SecretDraws())

    def _round(self, stage: int) -> Spend:
        if self._config.privacy is None:
            assert self._noise is not None
            return local_spend(self._noise, 1)
        try:
            return round_spend(self._config, stage, self.patients)
        except InputError:
            raise Refusal(SiteError.TOO_FEW_PATIENTS) from None

    def _plan(self, rounds: int | None = None) -> list[tuple[int, Spend]]:
        if self._config.privacy is None:
            assert self._noise is not None
            return local_plan(self._noise, self._config)
        try:
            return planned(self._config, self.patients, rounds=rounds)
        except InputError:
            raise Refusal(SiteError.TOO_FEW_PATIENTS) from None
