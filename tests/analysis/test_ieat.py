"""The association test equals a version written out pair by pair, exactly where all divisions can be tried."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from aiseeme_models.analysis.ieat import association_test, associations, holm
from aiseeme_models.errors import InputError


def sets(n: int, shift: float = 0.0, seed: int = 0, dim: int = 12) -> list[np.ndarray]:
    """Two groups and two attributes; ``shift`` pulls the first group to the first attribute."""
    rng = np.random.default_rng(seed)
    x, y, a, b = (rng.normal(size=(size, dim)) for size in (n, n, 9, 11))
    direction = rng.normal(size=dim)
    return [one.astype(np.float32) for one in (x + shift * direction, y, a + direction, b - direction)]


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    return float(u @ v / np.sqrt((u @ u) * (v @ v)))


def by_hand(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Effect size and exact p-value, as the paper writes them."""
    x, y, a, b = (one.astype(np.float64) for one in (x, y, a, b))

    def s(w: np.ndarray) -> float:
        return float(np.mean([cosine(w, one) for one in a]) - np.mean([cosine(w, one) for one in b]))

    own = [s(w) for w in [*x, *y]]
    n = len(x)
    effect = (np.mean(own[:n]) - np.mean(own[n:])) / np.std(own, ddof=1)
    statistic = sum(own[:n]) - sum(own[n:])
    found = []
    for chosen in combinations(range(2 * n), n):
        others = [place for place in range(2 * n) if place not in chosen]
        found.append(sum(own[place] for place in chosen) - sum(own[place] for place in others))
    return float(effect), float(np.mean([one >= statistic - 1e-12 for one in found]))


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.4, -0.4])
def test_effect_and_exact_p_value_are_those_written_out(n: int, shift: float) -> None:
    given = sets(n, shift, seed=n)
    found = association_test(*given, seed=0)
    effect, p_value = by_hand(*given)
    assert found.exact and found.sizes == (n, n, 9, 11)
    assert found.effect == pytest.approx(effect, rel=1e-6)
    assert found.p_value == pytest.approx(p_value, abs=1e-12)


def test_seven_images_are_exact_and_eight_are_shuffled_to_nearly_the_same() -> None:
    assert association_test(*sets(7), seed=0).exact
    given = sets(8, 0.15)
    found = association_test(*given, seed=0)
    effect, p_value = by_hand(*given)
    assert not found.exact
    assert found.effect == pytest.approx(effect, rel=1e-6)
    assert found.p_value == pytest.approx(p_value, abs=3 * np.sqrt(p_value * (1 - p_value) / 9999) + 1e-4)


def test_the_same_seed_gives_the_same_p_value_and_it_is_never_zero() -> None:
    given = sets(30, 2.0)
    assert association_test(*given, seed=3) == association_test(*given, seed=3)
    assert association_test(*given, seed=3).p_value == pytest.approx(1e-4)


def test_swapping_groups_turns_the_effect_round() -> None:
    x, y, a, b = sets(6, 0.5)
    one, other, third = (association_test(*given, seed=0) for given in ((x, y, a, b), (y, x, a, b), (x, y, b, a)))
    assert one.effect == pytest.approx(-other.effect) and one.effect == pytest.approx(-third.effect)
    assert one.p_value < 0.5 < other.p_value


def test_lengths_of_features_do_not_matter_and_pooled_means_equal_pairs() -> None:
    x, y, a, b = sets(6, 0.3)
    scale = np.random.default_rng(1).uniform(0.1, 10, size=(6, 1)).astype(np.float32)
    assert association_test(x * scale, y, a, b, seed=0).effect == pytest.approx(
        association_test(x, y, a, b, seed=0).effect, rel=1e-4
    )
    pairs = [np.mean([cosine(w, one) for one in a]) - np.mean([cosine(w, one) for one in b]) for w in x]
    np.testing.assert_allclose(associations(x, a, b), pairs, atol=1e-6)


def test_without_association_p_values_are_uniform() -> None:
    """One in ten below 0.1, within three standard errors: the test itself invents nothing."""
    found = [association_test(*sets(6, 0.0, seed=seed), seed=0).p_value for seed in range(400)]
    assert np.mean(np.array(found) <= 0.1) == pytest.approx(0.1, abs=3 * np.sqrt(0.09 / 400))


def test_the_effect_is_that_of_a_t_statistic() -> None:
    x, y, a, b = sets(20, 0.2)
    own = associations(np.concatenate([x, y]), a, b)
    one, two = own[:20], own[20:]
    pooled = np.sqrt((one.var(ddof=1) + two.var(ddof=1)) / 2)
    t = ttest_ind(one, two).statistic
    found = association_test(x, y, a, b, seed=0).effect
    assert found * own.std(ddof=1) / pooled * np.sqrt(20 / 2) == pytest.approx(t)


def test_groups_that_are_all_alike_have_no_effect() -> None:
    same = np.ones((4, 3), dtype=np.float32)
    a, b = np.eye(3, dtype=np.float32)[:2], np.eye(3, dtype=np.float32)[1:]
    found = association_test(same, same, a, b, seed=0)
    assert found.effect == 0.0 and found.p_value == 1.0


def test_holm_is_that_of_the_paper() -> None:
    """The example of Holm's procedure with four tests: 0.01 * 4, then max with 0.02 * 3, 0.03 * 2, 0.5."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y, a, b: (x[:1], y[:1], a, b), "first group has 1"),
        (lambda x, y, a, b: (x, y[:3], a, b), "5 and 3"),
        (lambda x, y, a, b: (x, y, a[:0], b), "first attribute has 0"),
        (lambda x, y, a, b: (x * np.nan, y, a, b), "not finite"),
        (lambda x, y, a, b: (x, y, a, b * 0), "second attribute has features"),
    ],
)
def test_what_cannot_be_tested_is_said(change, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=says):
        association_test(*change(*sets(5)), seed=0)
