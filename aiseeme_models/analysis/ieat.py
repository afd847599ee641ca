"""The image embedding association test (iEAT): are two groups of images tied to two attributes by their features?

Steed and Caliskan 2021 (arXiv 2010.15052), as SB-SSL (Sirotkin et al., CVPR 2022, arXiv 2203.01854) applied it to the
layers of self-supervised networks. An untrained network "shows" associations too, as features tell colours and edges
apart: what a test says is worth something beside untrained networks, a control, and a correction for many tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.errors import InputError
from aiseeme_models.seeding import derive_seed

MOST_EXACT = 10_000
SHUFFLES = 9_999
SMALLEST_SET = 2
_BLOCK = 1_000

Features = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class Association:
    """The outcome of one test.

    Attributes:
        effect: Cohen's ``d`` of the two groups' associations; above 0 the first group is nearer to the first attribute.
        p_value: share of the equal-size divisions of the groups' images whose statistic is no smaller (one-sided).
        opposite: share of those whose statistic is no larger: the p-value of the second group being nearer.
        exact: whether all divisions were tried; else so many random ones, and this one.
        sizes: images of the first and second group, and of the first and second attribute.
    """

    effect: float
    p_value: float
    opposite: float
    exact: bool
    sizes: tuple[int, int, int, int]

    @property
    def two_sided(self) -> float:
        """P-value where nobody says beforehand which group would be the nearer one: twice the smaller, at most 1."""
        return min(1.0, 2.0 * min(self.p_value, self.opposite))


def associations(targets: Features, first: Features, second: Features) -> NDArray[np.float64]:
    """``s(w, A, B)``: mean cosine similarity to the first attribute less that to the second.

    Args:
        targets: ``(N, D)``.
        first: ``(n_A, D)``.
        second: ``(n_B, D)``.

    Returns:
        ``(N,)``.
    """
    towards = _unit(first).mean(axis=0) - _unit(second).mean(axis=0)  # the mean of cosines is a product with this
    found: NDArray[np.float64] = _unit(targets) @ towards
    return found


def association_test(x: Features, y: Features, a: Features, b: Features, *, seed: int) -> Association:
    """Whether the images of ``x`` are nearer to ``a`` than to ``b`` by more than those of ``y`` are.

    Args:
        x: ``(n, D)`` features of the first group.
        y: ``(n, D)`` of the second, as many.
        a: ``(n_A, D)`` of the first attribute.
        b: ``(n_B, D)`` of the second attribute.
        seed: of the shuffles, where there are more than 10,000 divisions (``n`` above 7).

    Raises:
        InputError: sets of fewer than two images, groups of different sizes, features that are not finite or zero.
    """
    own, half = _own(x, y, a, b), len(x)
    exact = comb(2 * half, half) <= MOST_EXACT
    above, below = _exact(own, half) if exact else _shuffled(own, half, seed)
    return Association(_effect(own, half), above, below, exact, (len(x), len(y), len(a), len(b)))


def effect_size(x: Features, y: Features, a: Features, b: Features) -> float:
    """The effect alone, without the divisions that a p-value takes; see `association_test` for the rest."""
    return _effect(_own(x, y, a, b), len(x))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, so that any false finding among them stays as rare as each should be.

    Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure"; holds however the tests depend on each other.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def _own(x: Features, y: Features, a: Features, b: Features) -> NDArray[np.float64]:
    _check(x, y, a, b)
    return associations(np.concatenate([x, y]), a, b)  # (2n,)


def _effect(own: NDArray[np.float64], half: int) -> float:
    spread = float(own.std(ddof=1))
    return 0.0 if spread == 0.0 else float(own[:half].mean() - own[half:].mean()) / spread


def _exact(own: NDArray[np.float64], half: int) -> tuple[float, float]:
    """Shares of all divisions whose sum is no smaller, and no larger; the sum of all images is the same in each."""
    sums = np.array([own[list(chosen)].sum() for chosen in combinations(range(2 * half), half)])
    reached, tolerance = _reached(own, half)
    return float((sums >= reached - tolerance).mean()), float((sums <= reached + tolerance).mean())


def _shuffled(own: NDArray[np.float64], half: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(derive_seed(seed, "ieat"))
    above, below = 1, 1  # the division that there is, is one of them
    reached, tolerance = _reached(own, half)
    for start in range(0, SHUFFLES, _BLOCK):
        rows = min(_BLOCK, SHUFFLES - start)
        shuffled = rng.permuted(np.broadcast_to(own, (rows, len(own))), axis=1)
        sums = shuffled[:, :half].sum(axis=1)
        above += int((sums >= reached - tolerance).sum())
        below += int((sums <= reached + tolerance).sum())
    return above / (1 + SHUFFLES), below / (1 + SHUFFLES)


def _reached(own: NDArray[np.float64], half: int) -> tuple[float, float]:
    """The division's own sum, and by how much sums of the same numbers in another order may differ from it."""
    return float(own[:half].sum()), 1e-12 * float(np.abs(own).sum())


def _unit(features: Features) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


def _check(x: Features, y: Features, a: Features, b: Features) -> None:
    for name, one in (("first group", x), ("second group", y), ("first attribute", a), ("second attribute", b)):
        if len(one) < SMALLEST_SET:
            raise InputError(f"association test: the {name} has {len(one)} images, at least {SMALLEST_SET} are needed")
        if not np.isfinite(one).all() or not (np.abs(one).max(axis=1) > 0).all():
            raise InputError(f"association test: the {name} has features that are not finite, or all zero")
    if len(x) != len(y):
        raise InputError(f"association test: the groups have {len(x)} and {len(y)} images; they must be as large")
