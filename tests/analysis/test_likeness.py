"""CKA, SVCCA and effective ranks are those of the papers: equal to scikit-learn and to the formulas written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA

from aiseeme_models.analysis.cka import MinibatchCKA, linear_cka, unbiased_hsic
from aiseeme_models.analysis.rank import effective_rank, rankme, spread
from aiseeme_models.analysis.svcca import svcca


def features(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, dim), generator=torch.Generator().manual_seed(seed))


def related(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two networks' features that share three directions of the images, with unequal variances."""
    common = features(count, 3, seed) * torch.tensor([3.0, 2.0, 1.0])
    first = common @ features(3, 12, seed + 1) + features(count, 12, seed + 2) * torch.linspace(0.01, 2, 12)
    second = common @ features(3, 7, seed + 3) + features(count, 7, seed + 4) * torch.linspace(0.01, 2, 7)
    return first, second


def orthogonal(dim: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(features(dim, dim, seed))[0]


def minibatch_cka(first: torch.Tensor, second: torch.Tensor, batch: int) -> float | None:
    cka = MinibatchCKA()
    for start in range(0, len(first), batch):
        cka.add(first[start : start + batch], second[start : start + batch])
    return cka.value


def test_linear_cka_is_the_normalised_hsic_of_centred_gram_matrices() -> None:
    """Eq. 3 of Kornblith et al. with linear kernels, written out."""
    first, second = related(20)
    centring = np.eye(20) - 1 / 20
    grams = [centring @ (x.double().numpy() @ x.double().numpy().T) @ centring for x in (first, second)]
    hsic = lambda k, l: np.trace(k @ l)  # noqa: E731, E741
    expected = hsic(*grams) / math.sqrt(hsic(grams[0], grams[0]) * hsic(grams[1], grams[1]))
    assert linear_cka(first, second) == pytest.approx(expected, abs=1e-10)
    assert 0.1 < expected < 0.99


def test_hsic_1_is_the_formula_of_the_paper() -> None:
    """Eq. 3 of Nguyen et al., written out."""
    first, second = related(9)
    n, ones = 9, np.ones(9)
    k, l = (x.double().numpy() @ x.double().numpy().T for x in (first, second))  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    sums = (ones @ k @ ones) * (ones @ l @ ones)
    expected = np.trace(k @ l) + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * (ones @ k @ l @ ones)
    assert unbiased_hsic(first, second) == pytest.approx(expected / (n * (n - 3)), rel=1e-10)


def test_hsic_1_is_the_u_statistic() -> None:
    """Song et al. 2012, eq. 7: the mean over all ordered quadruples of different images."""
    first, second = related(7)
    k, l = (x.double().numpy() @ x.double().numpy().T for x in (first, second))  # noqa: E741
    terms = [k[s, t] * (l[s, t] + l[u, v] - 2 * l[s, u]) for s, t, u, v in itertools.permutations(range(7), 4)]
    assert unbiased_hsic(first, second) == pytest.approx(np.mean(terms), rel=1e-10)


def test_hsic_1_of_independent_features_is_0_on_average() -> None:
    values = [unbiased_hsic(features(8, 5, seed), features(8, 5, seed + 1000)) for seed in range(400)]
    biased = unbiased_hsic(features(8, 5), features(8, 5))
    assert abs(np.mean(values)) < 3 * np.std(values) / 20 < 0.1 * biased


def test_hsic_1_needs_four_images() -> None:
    with pytest.raises(ValueError, match="at least 4 images"):
        unbiased_hsic(features(3, 2), features(3, 2))


@pytest.mark.parametrize("cka", [linear_cka, lambda x, y: minibatch_cka(x, y, 16)])
def test_cka_does_not_change_with_rotation_scale_and_offset(cka) -> None:
    first, second = related(48)
    value = cka(first, second)
    moved = 0.01 * first @ orthogonal(12, 1) + 5.0, 30.0 * second @ orthogonal(7, 2) - 3.0
    assert cka(*moved) == pytest.approx(value, abs=1e-5)
    assert cka(second, first) == pytest.approx(value, abs=1e-12)
    assert cka(first, moved[0]) == pytest.approx(1, abs=1e-5)
    stretched = first * torch.linspace(0.1, 3, 12)
    assert abs(cka(stretched, second) - value) > 1e-3, "CKA is not blind to what CCA is blind to"


def test_the_minibatch_estimate_is_close_to_the_whole_one() -> None:
    first, second = related(2048)
    whole = linear_cka(first, second)
    assert whole is not None
    for batch in (32, 128):
        assert minibatch_cka(first, second, batch) == pytest.approx(whole, abs=0.02)


def test_the_minibatch_estimate_of_few_images_is_not_biased() -> None:
    """Kornblith's estimate makes any two wide networks look alike on few images; the unbiased one does not."""
    pairs = [(features(64, 500, seed), features(64, 500, seed + 1000)) for seed in range(10)]
    assert min(linear_cka(*pair) for pair in pairs) > 0.8
    assert abs(np.mean([minibatch_cka(*pair, 64) for pair in pairs])) < 0.02


def test_what_one_image_alone_shows_changes_no_cka() -> None:
    first, second = related(64)
    marked = torch.cat([first, torch.zeros(64, 1)], dim=1)
    marked[17, -1] = 1000.0
    assert minibatch_cka(marked, second, 64) == pytest.approx(minibatch_cka(first, second, 64), abs=1e-9)
    assert abs(linear_cka(marked, second) - linear_cka(first, second)) > 0.1, "the biased one gives it away"


@pytest.mark.parametrize("still", [torch.ones(64, 5), torch.zeros(64, 5), torch.full((64, 5), 0.1)])
def test_features_that_do_not_vary_have_no_likeness(still: torch.Tensor) -> None:
    noise = 1 + 1e-7 * features(64, 5)
    for constant in (still, still * noise):
        assert minibatch_cka(constant, features(64, 3), 16) is None
        assert linear_cka(features(64, 3), constant) is None
        assert svcca(constant, features(64, 3)) is None


def test_svcca_is_scikit_learn_s_cca_of_the_directions_that_hold_99_percent() -> None:
    first, second = related(200)
    cut = []
    for x in (first, second):
        centred = (x - x.mean(0)).double().numpy()
        left, values, _ = np.linalg.svd(centred, full_matrices=False)
        kept = np.searchsorted(np.cumsum(values**2) / np.sum(values**2), 0.99) + 1
        assert kept < x.shape[1]
        cut.append(left[:, :kept] * values[:kept])
    count = min(part.shape[1] for part in cut)
    x, y = CCA(n_components=count, scale=False, max_iter=20_000, tol=1e-12).fit_transform(*cut)
    expected = np.mean([np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(count)])
    assert svcca(first, second) == pytest.approx(expected, abs=1e-5)


def test_svcca_of_all_directions_is_blind_to_invertible_maps() -> None:
    first, second = related(100)
    (q1, _), (q2, _) = (np.linalg.qr((x - x.mean(0)).double().numpy()) for x in (first, second))
    expected = np.linalg.svd(q1.T @ q2, compute_uv=False).mean()
    assert svcca(first, second, kept=1.0) == pytest.approx(expected, abs=1e-8)
    assert svcca(first @ features(12, 12, 8), second, kept=1.0) == pytest.approx(expected, abs=1e-4)
    assert svcca(first, first, kept=0.9) == pytest.approx(1, abs=1e-12)


def naive_rank(x: torch.Tensor, epsilon: float) -> float:
    values = np.sqrt(np.linalg.eigvalsh((x.T @ x).double().numpy()).clip(0))
    shares = values / values.sum() + epsilon
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0))


@pytest.mark.parametrize("shape", [(40, 6), (200, 30)])
def test_effective_ranks_are_those_of_the_papers(shape: tuple[int, int]) -> None:
    x = features(*shape) * torch.linspace(0.01, 3, shape[1])
    assert effective_rank(x) == pytest.approx(naive_rank(x, 0.0), rel=1e-5)
    assert rankme(x) == pytest.approx(naive_rank(x, 1e-7), rel=1e-5)
    assert rankme(x) > effective_rank(x)


def test_an_effective_rank_counts_equal_directions() -> None:
    for count in (1, 3, 8):
        assert effective_rank(torch.eye(8)[:count].repeat(5, 1)) == pytest.approx(count, rel=1e-6)
    for rank in (effective_rank, rankme):
        assert rank(torch.zeros(5, 3)) == pytest.approx(1, abs=1e-4)


def test_the_spread_is_1_on_the_whole_sphere_and_0_in_one_point() -> None:
    x = features(4000, 64)
    assert spread(x) == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(9, 64) * torch.arange(1, 10)[:, None]) == pytest.approx(0, abs=1e-7)
    assert spread(x + 100) == pytest.approx(0.01, abs=0.001)
    directions = (x / x.norm(dim=1, keepdim=True)).numpy()
    assert spread(x) == pytest.approx(np.std(directions, axis=0).mean() * 8, rel=1e-5)
