"""What was spent of patients' privacy, as it is written down. Nothing heavy: a ledger is read without PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LEAST_NOISE = 0.01
"""With less noise there is no epsilon worth the name, and no accountant that computes it in reasonable time."""
LEAST_DELTA = 1e-12
"""Below it accountants leave the range of double precision."""


@dataclass(frozen=True, order=True)
class Spend:
    """Steps of the Poisson-subsampled Gaussian mechanism.

    Attributes:
        noise_multiplier: standard deviation of the noise over the largest norm of a patient.
        sample_rate: probability with which each patient is drawn in a step, in (0, 1].
        steps: how many.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and 0 < self.sample_rate <= 1 and self.steps >= 1):
            raise ValueError(f"no such steps: {self}")


History = tuple[Spend, ...]


def merged(spends: Iterable[Spend]) -> History:
    """The shortest history with the same steps, in order of their settings."""
    steps: dict[tuple[float, float], int] = {}
    for spend in spends:
        setting = (spend.noise_multiplier, spend.sample_rate)
        steps[setting] = steps.get(setting, 0) + spend.steps
    return tuple(Spend(noise, rate, count) for (noise, rate), count in sorted(steps.items()))
