"""What a federation's rounds cost a site's patients, told from its configuration and their number alone."""

from __future__ import annotations

from aiseeme_models.errors import InputError
from aiseeme_models.privacy.spending import Spend
from federation_configs.schema import FederationConfig

_TOLD_TO = 10


def told_patients(patients: int) -> int:
    """The number of training patients as it leaves a site under ``[privacy]``: rounded down to ten.

    It is the site's weight, and what its number of steps follows from. That number is taken as public, as DP-SGD does;
    rounding makes a single patient show in it only where one crosses a ten.
    """
    return patients - patients % _TOLD_TO


def round_spend(config: FederationConfig, stage: int, patients: int) -> Spend:
    """The noisy steps of one round of a stage at a site with so many training patients; only for ``[privacy]``.

    Counted with the patients as they are told, so that ε, which leaves, does not tell the exact number. There are no
    fewer of them than that, and each is drawn no more often than is counted.

    Raises:
        InputError: they are too few: fewer than 10, or than a batch.
    """
    options = config.curriculum.stage[stage]
    assert config.privacy is not None
    least = max(_TOLD_TO, options.batch_size)
    if patients < least:
        raise InputError(f"{patients} training patients are too few for stage {stage + 1}: there must be {least}")
    told = told_patients(patients)
    return Spend(config.privacy.noise_multiplier, min(1.0, options.batch_size / told), options.steps(told))


def local_spend(noise: float, rounds: int) -> Spend:
    """Rounds of a site that adds noise of its own, ``noise`` times the largest norm of an update, to what leaves.

    Everybody is in an update. Without one patient it may be any other one of that norm: twice the norm away.
    """
    return Spend(noise / 2, 1.0, rounds)


def local_plan(noise: float, config: FederationConfig) -> list[tuple[int, Spend]]:
    """The stage and spend of all rounds of a run at such a site."""
    return [(index, local_spend(noise, stage.rounds)) for index, stage in enumerate(config.curriculum.stage)]


def planned(config: FederationConfig, patients: int, *, rounds: int | None = None) -> list[tuple[int, Spend]]:
    """The stage and spend of a run's first ``rounds`` rounds, each played once; by default of all of them.

    Raises:
        InputError: as `round_spend`.
    """
    left = config.rounds if rounds is None else rounds
    spends = []
    for index, stage in enumerate(config.curriculum.stage):
        played = min(stage.rounds, left)
        if played:
            one = round_spend(config, index, patients)
            spends.append((index, Spend(one.noise_multiplier, one.sample_rate, one.steps * played)))
        left -= played
    return spends
