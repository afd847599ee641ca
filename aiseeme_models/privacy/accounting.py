"""What a history of noisy steps has cost: ε by Opacus' accountants, over rounds, runs and coordinators.

The steps of one setting count together whatever came between them, since their order makes no difference to ε. So a
history stays short, and the whole of it is accounted at once: an accountant that begins anew every round claims less
than was spent.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.errors import InputError
from aiseeme_models.privacy.spending import History, Spend, merged

_MOST_SETTINGS = 12
"""PRV accounting takes some seconds for so many settings, and much longer for more."""
_HIGHER_ORDERS = (72, 84, 96, 128, 192, 256, 384, 512)
_MOST_STEPS = 10_000_000
"""The grid of PRV accounting grows with the number of steps, up to all of the memory."""
_MOST_PRECISE = 50.0
"""Beyond such an ε no bound is worth seconds of computing (and PRV accounting overflows)."""


@dataclass(frozen=True)
class Epsilon:
    """Upper bounds of ε at one δ.

    Attributes:
        rdp: by Rényi differential privacy (Mironov et al. 2019, arXiv 1908.10530).
        prv: by privacy random variables (Gopi et al. 2021, arXiv 2106.02848); None where there are too many settings or
            steps, where every patient is in every step, and where ``rdp`` is beyond 50.
    """

    rdp: float
    prv: float | None

    @property
    def value(self) -> float:
        """The smaller bound: each of them holds."""
        return self.rdp if self.prv is None else min(self.rdp, self.prv)


_LEAST_NOISE, _MOST_NOISE = 0.2, 1000.0
"""Between which a noise multiplier is looked for."""


def epsilon(spends: Iterable[Spend], delta: float) -> Epsilon:
    """What ``spends`` have cost together at ``delta``; nothing costs 0.

    Neighbours differ by one patient, who is in one data set and not in the other.
    """
    history = merged(spends)
    if not history:
        return Epsilon(0.0, 0.0)
    rdp = _rdp(history, delta)
    settings, steps = len(history), sum(spend.steps for spend in history)
    too_much = rdp > _MOST_PRECISE or settings > _MOST_SETTINGS or steps > _MOST_STEPS
    if too_much or any(spend.sample_rate == 1 for spend in history):
        return Epsilon(rdp, None)
    return Epsilon(rdp, _prv(history, delta))


def _rdp(history: History, delta: float) -> float:
    from opacus.accountants.analysis.rdp import get_privacy_spent

    orders = _orders()
    spent = np.sum(
        [spend.steps * _rdp_of_a_step(spend.noise_multiplier, spend.sample_rate) for spend in history], axis=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the best order is the largest: the bound holds all the same
        return float(get_privacy_spent(orders=orders, rdp=spent, delta=delta)[0])


@lru_cache(maxsize=512)
def _rdp_of_a_step(noise_multiplier: float, sample_rate: float) -> NDArray[np.float64]:
    """Rényi divergence at each of `_orders`, ``(K,)``."""
    from opacus.accountants.analysis.rdp import compute_rdp

    found = compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=_orders())
    return np.asarray(found, dtype=np.float64)


def _orders() -> list[float]:
    from opacus.accountants import RDPAccountant

    return [*RDPAccountant.DEFAULT_ALPHAS, *_HIGHER_ORDERS]


@lru_cache(maxsize=512)
def _prv(history: History, delta: float) -> float | None:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(spend.noise_multiplier, spend.sample_rate, spend.steps) for spend in history]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the RDP accountant, which it asks for the size of its grid
        found = float(accountant.get_epsilon(delta=delta))
    return found if math.isfinite(found) else None


def noise_for(target: float, delta: float, plan: Iterable[tuple[float, int]], before: Iterable[Spend] = ()) -> float:
    """The smallest noise multiplier, to three digits, with which a plan stays within ``target``.

    Args:
        target: ε.
        delta: δ.
        plan: sample rate and steps of each part.
        before: what has been spent already.

    Raises:
        InputError: no noise up to 1000 is enough, or too much was spent before.
    """
    parts, spent = list(plan), merged(before)

    def history(noise: float) -> list[Spend]:
        return [*spent, *(Spend(noise, rate, steps) for rate, steps in parts)]

    def least(fits: Callable[[float], bool], low: float, high: float, apart: float) -> float:
        while high / low > apart:
            middle = math.sqrt(low * high)
            if fits(middle):
                high = middle
            else:
                low = middle
        return high

    if epsilon(history(_MOST_NOISE), delta).value > target:
        raise InputError(f"no noise keeps the plan within epsilon {target:g} at delta {delta:g}")
    # The quick bound says where to look; the exact one needs a little less noise.
    by_rdp = least(lambda noise: _rdp(merged(history(noise)), delta) <= target, _LEAST_NOISE, _MOST_NOISE, 1.05)
    near = max(_LEAST_NOISE, by_rdp / 2)
    high = least(lambda noise: epsilon(history(noise), delta).value <= target, near, by_rdp, 1.005)
    unit: float = 10.0 ** (math.floor(math.log10(high)) - 2)
    return round(math.ceil(high / unit) * unit, 12)
