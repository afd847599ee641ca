"""Every image is tested once, by a probe that never saw its patient, and the figures are scikit-learn's."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aiseeme_models.downstream.folds import check_folds, patient_folds, score_in_folds
from aiseeme_models.downstream.probe import Votes, knn_votes, linear_votes
from aiseeme_models.errors import InputError


def clouds(count: int = 240, *, classes: int = 3) -> tuple[np.ndarray, list[str], list[str]]:
    """Overlapping clouds: features, labels, and patients with three images each, all of one label."""
    draw = np.random.default_rng(0)
    people = np.repeat(np.arange(count // 3), 3)
    truth = people % classes
    x = draw.normal(size=(count, 5)) + 1.2 * np.eye(5)[truth]
    return x.astype(np.float32), [f"class-{c}" for c in truth], [f"p{one}" for one in people]


def test_the_folds_are_whole_patients_and_test_every_image_once():
    _, labels, patients = clouds()
    tested: list[int] = []
    for fits, tests in patient_folds(labels, patients, 5):
        assert not {patients[i] for i in fits} & {patients[i] for i in tests}
        assert len(fits) + len(tests) == len(labels)
        assert {labels[i] for i in tests} == set(labels)
        tested += tests.tolist()
    assert sorted(tested) == list(range(len(labels)))


def test_the_figures_are_those_of_all_images_together():
    x, labels, patients = clouds()
    found = score_in_folds(linear_votes, x, labels, patient_folds(labels, patients, 4))
    y, chances = np.array(labels), np.zeros((len(labels), 3))
    for fits, tests in patient_folds(labels, patients, 4):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
        chances[tests] = model.fit(x[fits].astype(np.float64), y[fits]).predict_proba(x[tests].astype(np.float64))
    guess = np.array(sorted(set(labels)))[chances.argmax(axis=1)]
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, guess), abs=1e-12)
    assert 0.5 < found.balanced_accuracy < 0.9  # neither chance nor trivial
    assert found.macro_auc == pytest.approx(roc_auc_score(y, chances, multi_class="ovr"), abs=1e-9)
    assert found.n_test == len(labels) and found.n_train is None
    assert found.confusion == tuple(map(tuple, confusion_matrix(y, guess).tolist()))


def test_a_probe_in_folds_never_sees_the_patient_it_is_asked_about():
    """Labels drawn for each patient: who knows the patient knows the label, and nobody else can."""
    draw = np.random.default_rng(1)
    x = np.repeat(draw.normal(size=(100, 8)), 3, axis=0).astype(np.float32)
    labels = np.repeat(draw.permutation(["a", "b"] * 50), 3).tolist()
    patients = np.repeat([f"p{i}" for i in range(100)], 3).tolist()
    apart = score_in_folds(partial(knn_votes, k=1), x, labels, patient_folds(labels, patients, 5))
    known = score_in_folds(partial(knn_votes, k=1), x, labels, patient_folds(labels, [str(i) for i in range(300)], 5))
    assert known.balanced_accuracy > 0.95 and apart.balanced_accuracy < 0.65


def test_a_class_of_one_patient_cannot_be_known_and_counts():
    x, labels, patients = clouds()
    labels[:3] = ["rare"] * 3  # the images of the first patient
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score_in_folds(linear_votes, x, labels, patient_folds(labels, patients, 5))
    rare = found.per_class["rare"]
    assert rare.recall == 0.0 and rare.n_test == 3
    assert rare.auc is None and rare.auprc is None and rare.sensitivity is None
    assert found.macro_auc is None and found.macro_auprc is None
    assert "rare are in one fold" in (found.note or "")
    assert found.per_class["class-1"].auc is not None
    assert found.n_test == len(labels)


def test_a_fold_whose_other_images_are_of_one_class_answers_it():
    x = np.zeros((6, 2), dtype=np.float32)
    labels, patients = ["a"] * 4 + ["b"] * 2, ["p", "q", "r", "s", "t", "t"]

    def never(fits: np.ndarray, known: list[str], tests: np.ndarray) -> Votes:
        assert set(known) == {"a", "b"}
        return Votes(["a", "b"], np.tile([0.9, 0.1], (len(tests), 1)))

    found = score_in_folds(never, x, labels, patient_folds(labels, patients, 2))
    assert found.balanced_accuracy == 0.5 and found.n_test == 6


@pytest.mark.parametrize(
    ("labels", "patients", "what"),
    [
        (["a", "b"] * 10, [str(i % 3) for i in range(20)], "5 folds: 3 labelled patients"),
        (["a", "b"] * 4, [str(i) for i in range(8)], "at most 4 images of a class"),
        (["a"] * 9, [str(i) for i in range(9)], "fewer than two classes"),
    ],
)
def test_too_few_for_the_folds(labels, patients, what):
    with pytest.raises(InputError, match=what):
        check_folds(labels, patients, 5)


@pytest.mark.parametrize("folds", [1, 0, -1])
def test_one_fold_is_none(folds):
    with pytest.raises(InputError, match="two are the fewest"):
        check_folds(["a", "b"] * 4, [str(i) for i in range(8)], folds)
