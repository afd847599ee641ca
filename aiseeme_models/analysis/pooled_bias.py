"""One outcome of the tests that several sites made on their own images, of which only their figures are known.

Effects: a fixed-effect mean, weighted by the size of the sites' groups (Hedges and Olkin 1985, "Statistical Methods for
Meta-Analysis"). P-values: Stouffer's z, weighted by the square root of that size (Whitlock 2005, J. Evol. Biol. 18, p.
1368). The untrained networks are the same at all sites, so that their effects can be pooled one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aiseeme_models.analysis.bias import Measured
from aiseeme_models.analysis.ieat import SHUFFLES, Association

_LEAST = 1 / (1 + SHUFFLES)  # no p-value is known more exactly than this, neither near 0 nor near 1


def pool(sites: Sequence[Sequence[Measured]], order: Sequence[tuple[str, str]]) -> list[Measured]:
    """Each test at each layer that any site measured.

    Args:
        sites: what each measured, with the same untrained networks in the same order.
        order: the tests and layers that were asked for; those that no site measured are left out.
    """
    of_test: dict[tuple[str, str], list[Measured]] = {key: [] for key in order}
    for measured in sites:
        for one in measured:
            of_test[one.test, one.layer].append(one)
    return [_together(parts) for parts in of_test.values() if parts]


def stouffer(p_values: Sequence[float], weights: Sequence[float]) -> float:
    """The one-sided p-value of several independent one-sided ones, each held within what can be known of it."""
    from scipy.stats import combine_pvalues

    within = [min(max(p_value, _LEAST), 1 - _LEAST) for p_value in p_values]
    return float(combine_pvalues(within, method="stouffer", weights=list(weights)).pvalue)


def _together(parts: Sequence[Measured]) -> Measured:
    sizes = [one.association.sizes for one in parts]
    groups = [size[0] for size in sizes]
    roots = [math.sqrt(size) for size in groups]
    knowing = [math.sqrt(min(size[2:])) for size in sizes]
    first, second, a, b = (sum(size[place] for size in sizes) for place in range(4))
    return Measured(
        parts[0].test,
        parts[0].layer,
        Association(
            _mean([one.association.effect for one in parts], groups),
            stouffer([one.association.p_value for one in parts], roots),
            stouffer([one.association.opposite for one in parts], roots),
            exact=False,
            sizes=(first, second, a, b),
        ),
        stouffer([one.control for one in parts], knowing),
        tuple(_mean(effects, groups) for effects in zip(*(one.untrained for one in parts), strict=True)),
    )


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
