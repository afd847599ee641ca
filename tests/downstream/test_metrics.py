"""Probe figures equal scikit-learn's, and are None with a reason where they mean nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

from aiseeme_models.downstream.metrics import score_predictions
from aiseeme_models.downstream.ranking import one_against_rest_auc


def brute_force_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    pairs = [(p, n) for p in scores[positive] for n in scores[~positive]]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=25))
def test_auc_is_the_share_of_pairs_in_the_right_order(cases: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in cases], dtype=np.float64)
    positive = np.array([is_positive for _, is_positive in cases])
    found = one_against_rest_auc(scores, positive)
    if positive.all() or not positive.any():
        assert found is None
    else:
        assert found == pytest.approx(brute_force_auc(scores, positive))
        assert found == pytest.approx(roc_auc_score(positive, scores))


def test_figures_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    names = ["bcc", "mel", "nv"]
    truth = rng.choice(names, size=200, p=[0.1, 0.3, 0.6]).tolist()
    scores = rng.dirichlet(np.ones(3), size=200)
    predicted = [names[index] for index in scores.argmax(axis=1)]
    score = score_predictions(names * 5, truth, predicted, scores, names)
    assert score.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert score.macro_auc == pytest.approx(roc_auc_score(truth, scores, multi_class="ovr", labels=names))
    recalls = recall_score(truth, predicted, labels=names, average=None)
    assert [entry.recall for entry in score.per_class.values()] == pytest.approx(recalls.tolist())
    assert sum(entry.n_test for entry in score.per_class.values()) == score.n_test == 200
    assert score.note is None


def test_a_class_missing_in_test_has_no_recall_and_the_macro_auc_says_so() -> None:
    score = score_predictions(["a", "b", "c"], ["a", "b"], ["a", "b"], np.eye(3)[:2], ["a", "b", "c"])
    assert score.per_class["c"].recall is None and score.per_class["c"].auc is None
    assert score.balanced_accuracy == 1.0
    assert score.macro_auc is None
    assert score.note == "No test images of c: no recall, no AUC."


def test_a_class_missing_in_training_counts_as_never_recognised() -> None:
    score = score_predictions(["a", "b"], ["a", "b", "c"], ["a", "b", "a"], np.eye(2)[[0, 1, 0]], ["a", "b"])
    assert score.per_class["c"].recall == 0.0 and score.per_class["c"].n_train == 0
    assert score.balanced_accuracy == pytest.approx(2 / 3)
    assert score.macro_auc is None
    assert score.note is not None and "No training images of c" in score.note


def test_the_figures_are_valid_json_without_nan() -> None:
    score = score_predictions(["a"], ["b"], ["a"], np.zeros((1, 0)), [])
    assert json.loads(score.model_dump_json(), parse_constant=lambda name: pytest.fail(name))["macro_auc"] is None
