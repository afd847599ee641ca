"""What sites tell of a classifier's answers points at nobody, and its pooled figures hold the exact ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from aiseeme_models.downstream.answers import MOST_GROUPS, ClassAnswers, grouped, told_answers, wrong_answers
from aiseeme_models.downstream.pooled import pool
from aiseeme_models.downstream.told import SMALLEST, hidden_cells
from federation_configs.wire import SMALLEST_COUNT

NAMES = ["bcc", "mel", "nv"]


def site(images: int, seed: int, shares: tuple[float, ...] = (0.2, 0.3, 0.5)) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that know something, and true columns."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, size=images, p=shares)
    odds = rng.dirichlet(np.ones(3), size=images) + 0.6 * np.eye(3)[truth]
    return odds / odds.sum(axis=1, keepdims=True), truth


def test_the_smallest_count_is_the_wires() -> None:
    assert SMALLEST == SMALLEST_COUNT


@pytest.mark.parametrize("sizes", [(400,), (300, 80, 150), (70, 70, 70, 70)])
@pytest.mark.parametrize("seed", [0, 1])
def test_pooled_figures_hold_the_exact_ones_and_lie_near_them(sizes: tuple[int, ...], seed: int) -> None:
    sites = [site(size, 10 * seed + number) for number, size in enumerate(sizes)]
    pooled = pool([told_answers(*one) for one in sites], NAMES)
    probabilities, truth = np.concatenate([one for one, _ in sites]), np.concatenate([one for _, one in sites])
    exact = balanced_accuracy_score(truth, probabilities.argmax(axis=1))
    assert pooled.balanced_accuracy is not None and pooled.macro_auc is not None
    assert pooled.balanced_accuracy.low <= exact <= pooled.balanced_accuracy.high
    assert pooled.balanced_accuracy.value == pytest.approx(exact, abs=0.03)
    aucs = [roc_auc_score(truth == place, probabilities[:, place]) for place in range(3)]
    for auc, one in zip(aucs, pooled.per_class.values(), strict=True):
        assert one.auc is not None and one.auc.low <= auc <= one.auc.high
        assert one.auc.value == pytest.approx(auc, abs=0.02)
        assert one.images == sum((truth == NAMES.index(name)).sum() for name in NAMES if pooled.per_class[name] is one)
    assert pooled.macro_auc.value == pytest.approx(np.mean(aucs), abs=0.02)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=8))
def test_what_is_hidden_cannot_be_had_by_subtraction(counts: list[int]) -> None:
    hidden = hidden_cells(counts, 5)
    assert {place for place, count in enumerate(counts) if count < 5} <= hidden
    if hidden and sum(counts) >= 5:
        assert len(hidden) >= 2 and sum(counts[place] for place in hidden) >= 5


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 60), st.integers(2, 5))
def test_no_small_number_is_told_and_none_follows_from_what_is(seed: int, images: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, size=images, p=rng.dirichlet(np.ones(classes)))
    odds = rng.dirichlet(np.ones(classes) / 2, size=images) + rng.uniform(0, 2) * np.eye(classes)[truth]
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    guess = probabilities.argmax(axis=1)
    told = told_answers(probabilities, truth)
    assert wrong_answers(told, images, classes) is None
    kept_back = [int((truth == place).sum()) for place, one in enumerate(told) if one.images is None]
    assert not kept_back or len(kept_back) == classes or (len(kept_back) >= 2 and sum(kept_back) >= 5)
    for place, one in enumerate(told):
        own = truth == place
        row = np.bincount(guess[own], minlength=classes)
        for groups, scores in ((one.positive, probabilities[own, place]), (one.negative, probabilities[~own, place])):
            assert groups is None or sum(count for count, _ in groups) == len(scores)
            assert groups is None or min(count for count, _ in groups) >= 5
        if one.images is None:
            assert one == ClassAnswers()  # not even the scores of the others, whose number would tell
            continue
        assert one.images == own.sum() >= 5
        missed = one.images - row[place]
        if isinstance(one.recognised, int):
            assert one.recognised == row[place] and missed >= 5
        else:
            assert {"<5": row[place] < 5, "all but <5": missed < 5}[one.recognised]
        rest = one.images - sum(count for count in one.taken if count is not None)
        rest -= one.recognised if isinstance(one.recognised, int) else 0
        silent = [row[other] for other in range(classes) if other != place and one.taken[other] is None]
        silent += [] if isinstance(one.recognised, int) else [row[place]]
        assert rest == sum(silent) and (not silent or (len(silent) >= 2 and rest >= 5))
        assert all(count is None or count == row[other] for other, count in enumerate(one.taken))


def test_scores_are_told_in_groups_of_at_least_five() -> None:
    scores = np.array([0.9, 0.1, 0.2, 0.3, 0.8, 0.7, 0.6, 0.0, 0.5, 0.4, 1.0])
    assert grouped(scores) == ((6, 0.25), (5, 0.8))
    assert grouped(scores[:4]) is None and grouped(scores[:0]) is None
    many = grouped(np.linspace(0, 1, 10_007))
    assert len(many) == MOST_GROUPS and sum(count for count, _ in many) == 10_007


def test_a_site_without_a_class_says_nothing_of_it_and_the_others_still_count() -> None:
    here, there = site(200, 1), site(200, 2, (0.0, 0.4, 0.6))
    told = [told_answers(*here), told_answers(*there)]
    assert told[1][0].images is None and told[1][0].positive is None and told[1][0].negative is None
    pooled = pool(told, NAMES)
    assert pooled.per_class["bcc"].sites == 1 and pooled.per_class["bcc"].images == (here[1] == 0).sum()
    assert pooled.per_class["bcc"].recall is not None


def test_a_class_that_nobody_has_is_none_and_so_are_the_means() -> None:
    pooled = pool([told_answers(*site(100, 3, (0.0, 0.5, 0.5)))], NAMES)
    assert pooled.per_class["bcc"].recall is None and pooled.per_class["bcc"].auc is None
    assert pooled.balanced_accuracy is None and pooled.macro_auc is None
    assert pooled.per_class["nv"].auc is not None


def test_answers_go_through_json_as_they_are() -> None:
    for one in told_answers(*site(150, 4)):
        assert ClassAnswers.model_validate_json(one.model_dump_json()) == one
