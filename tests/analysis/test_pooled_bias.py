"""Sites' figures are pooled as the formulas say, and a pool of one site is that site."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from aiseeme_models.analysis.bias import LEVEL, Measured, audit, judge, measure
from aiseeme_models.analysis.ieat import Association, association_test
from aiseeme_models.analysis.pooled_bias import pool, stouffer
from tests.analysis.test_bias import features, sets


def measured(effect: float, p_value: float, n: int, layer: str = "l", control: float = 0.01, seed: int = 0) -> Measured:
    untrained = tuple(np.random.default_rng(seed).normal(size=6).tolist())
    association = Association(effect, p_value, min(1.0, 1 - p_value + 1e-3), exact=False, sizes=(n, n, 20, 30))
    return Measured("t", layer, association, control, untrained)


def test_effects_are_weighted_by_size_and_p_values_by_its_root() -> None:
    one, two = measured(0.8, 0.004, 50, seed=1), measured(-0.2, 0.7, 10, control=0.2, seed=2)
    (found,) = pool([[one], [two]], [("t", "l")])
    assert found.association.effect == pytest.approx((0.8 * 50 - 0.2 * 10) / 60)
    np.testing.assert_allclose(
        found.untrained, (np.array(one.untrained) * 50 + np.array(two.untrained) * 10) / 60, rtol=1e-12
    )
    weights = np.sqrt([50, 10])

    def combined(p_values: list[float], weights: np.ndarray) -> float:
        return float(norm.sf((weights * norm.isf(p_values)).sum() / np.sqrt((weights**2).sum())))

    assert found.association.p_value == pytest.approx(combined([0.004, 0.7], weights))
    assert found.association.opposite == pytest.approx(combined([0.997, 0.301], weights))
    assert found.control == pytest.approx(combined([0.01, 0.2], np.sqrt([20, 20])))
    assert found.association.sizes == (60, 60, 40, 60)


def test_one_site_is_itself_and_layers_keep_their_order() -> None:
    order = [("t", "b"), ("t", "a"), ("t", "c")]
    found = pool([[measured(0.1, 0.3, 9, "a"), measured(0.2, 0.4, 9, "b")]], order)
    assert [one.layer for one in found] == ["b", "a"]
    assert found[1].association.effect == pytest.approx(0.1)
    assert found[1].association.p_value == pytest.approx(0.3)
    assert pool([], order) == []


def test_a_p_value_of_one_site_s_few_shuffles_cannot_decide_alone() -> None:
    assert stouffer([1.0, 1e-4], [1.0, 1.0]) == pytest.approx(0.5)
    assert 0 < stouffer([0.0, 0.0], [1.0, 1.0]) < 1e-6


def test_pooled_sites_that_are_too_small_alone_find_what_is_there() -> None:
    def at(site: int, bias: float) -> list[Measured]:
        chance = [features(0.0, 1.0, 1000 * (site + 1) + network, n=8) for network in range(8)]
        return measure([sets(8)], features(bias, 2.0, site, n=8), chance, seed=0)

    order = [("sex", "layer4")]
    tied = [at(site, 1.5) for site in range(6)]
    (together,) = judge(pool(tied, order))
    assert together.verdict == "found"
    assert sum(judge(one)[0].verdict == "found" for one in tied) < len(tied)
    free = [judge(pool([at(site, 0.0) for site in range(start, start + 6)], order))[0] for start in range(0, 60, 6)]
    assert sum(one.corrected < LEVEL for one in free) <= 2


def test_a_layer_that_gives_an_image_nothing_is_left_out_and_the_others_are_not() -> None:
    trained = features(1.5, 2.0, 0) | {"dead": np.zeros((120, 3), np.float32)}
    chance = [features(0.0, 1.0, seed) | {"dead": np.ones((120, 3), np.float32)} for seed in range(6)]
    assert [one.layer for one in audit([sets()], trained, chance, seed=0)] == ["layer4"]
    chance[3]["layer4"] = np.full_like(chance[3]["layer4"], np.nan)
    assert audit([sets()], trained, chance, seed=0) == []


def test_the_opposite_p_value_is_that_of_swapped_groups() -> None:
    rng = np.random.default_rng(0)
    for size in (5, 12):
        x, y, a, b = (rng.normal(size=(n, 6)).astype(np.float32) for n in (size, size, 8, 8))
        one, other = association_test(x, y, a, b, seed=0), association_test(y, x, a, b, seed=0)
        assert one.opposite == pytest.approx(other.p_value, abs=0 if one.exact else 0.02)
        assert one.two_sided == pytest.approx(min(1, 2 * min(one.p_value, one.opposite)))
