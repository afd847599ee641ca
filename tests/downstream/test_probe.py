"""Probes equal their textbook definitions, say how many cases voted, and never answer with a NaN."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import balanced_accuracy_score

from aiseeme_models.downstream.probe import knn_probe, linear_probe
from aiseeme_models.errors import InputError


def blobs(n: int, dimensions: int, classes: int, seed: int, spread: float = 1.5) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dimensions))
    labels = rng.choice(classes, size=n, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    features = centres[labels] + spread * rng.normal(size=(n, dimensions))
    return (5.0 + 3.0 * features).astype(np.float32), [f"class-{label}" for label in labels]


def reference_probabilities(x: np.ndarray, y: list[str], test: np.ndarray) -> np.ndarray:
    """Minimise sum_i w_i CE_i + |W|^2 / 2 directly, w_i = N / (C n_{y_i}), on standardised features."""
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    z = (x - mean) / std
    names = sorted(set(y))
    target = np.array([names.index(label) for label in y])
    weight = len(y) / (len(names) * np.bincount(target))[target]
    onehot = np.eye(len(names))[target]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        matrix = flat.reshape(len(names), -1)
        logits = z @ matrix[:, :-1].T + matrix[:, -1]
        logits -= logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        slope = (np.exp(log_p) - onehot) * weight[:, None]
        gradient = np.concatenate([slope.T @ z + matrix[:, :-1], slope.sum(0)[:, None]], axis=1)
        return float(-(weight * (log_p * onehot).sum(1)).sum() + 0.5 * (matrix[:, :-1] ** 2).sum()), gradient.ravel()

    best = minimize(loss, np.zeros(len(names) * (x.shape[1] + 1)), jac=True, options={"maxiter": 5000, "gtol": 1e-6})
    matrix = best.x.reshape(len(names), -1)
    logits = ((test - mean) / std) @ matrix[:, :-1].T + matrix[:, -1]
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    return probabilities / probabilities.sum(1, keepdims=True)


def test_linear_probe_is_balanced_multinomial_regression_at_its_optimum() -> None:
    x, y = blobs(300, 5, 3, seed=1)
    test_x, test_y = blobs(200, 5, 3, seed=2)
    probabilities = reference_probabilities(x, y, test_x)
    names = sorted(set(y))
    predicted = [names[index] for index in probabilities.argmax(1)]
    score = linear_probe(x, y, test_x, test_y, seed=0)
    assert score.balanced_accuracy == pytest.approx(balanced_accuracy_score(test_y, predicted), abs=1e-9)
    assert score.note is None


def test_knn_probe_is_a_plain_cosine_vote() -> None:
    x, y = blobs(150, 6, 3, seed=3)
    test_x, test_y = blobs(80, 6, 3, seed=4)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    predicted = []
    for row in test_x:
        nearest = np.argsort(-(unit @ (row / np.linalg.norm(row))))[:7]
        votes = sorted({y[index] for index in nearest}, key=lambda name: (-sum(y[i] == name for i in nearest), name))
        predicted.append(votes[0])
    score = knn_probe(x, y, test_x, test_y, k=7)
    assert score.balanced_accuracy == pytest.approx(balanced_accuracy_score(test_y, predicted))
    assert score.k == 7


def test_k_never_exceeds_the_cases_and_says_so() -> None:
    x, y = blobs(9, 4, 2, seed=5)
    score = knn_probe(x, y, x, y, k=20)
    assert score.k == 9
    assert score.note == "Only 9 training images: k is 9, not 20."


def test_separable_classes_are_recognised_and_noise_is_not() -> None:
    x, y = blobs(400, 8, 4, seed=6, spread=0.01)
    for score in (linear_probe(x, y, x, y, seed=0), knn_probe(x, y, x, y)):
        assert score.balanced_accuracy == 1.0 and score.macro_auc == 1.0
    rng = np.random.default_rng(7)
    noise, other = rng.normal(size=(2, 600, 8)).astype(np.float32)
    labels = rng.choice(["a", "b", "c", "d"], size=600).tolist()
    assert linear_probe(noise, labels, other, labels, seed=0).balanced_accuracy == pytest.approx(0.25, abs=0.08)


def test_every_seed_and_repetition_gives_the_same_score() -> None:
    x, y = blobs(200, 16, 3, seed=8)
    scores = {linear_probe(x, y, x[::2], y[::2], seed=seed).model_dump_json() for seed in (0, 0, 1)}
    assert len(scores) == 1


def test_two_classes_work() -> None:
    x, y = blobs(120, 4, 2, seed=9)
    score = linear_probe(x, y, x, y, seed=0)
    first, second = score.per_class.values()
    assert first.auc == pytest.approx(second.auc) and score.macro_auc is not None and score.macro_auc > 0.5


def test_one_class_gives_a_note_instead_of_an_auc() -> None:
    x = np.ones((5, 3), dtype=np.float32)
    for score in (linear_probe(x, ["a"] * 5, x, ["a"] * 5, seed=0), knn_probe(x, ["a"] * 5, x, ["a"] * 5)):
        assert score.balanced_accuracy == 1.0 and score.macro_auc is None
        assert score.note is not None and "One class only" in score.note


def test_classes_that_training_lacks_are_scored_as_missed() -> None:
    x, y = blobs(60, 4, 2, seed=10)
    for score in (linear_probe(x, y, x, ["new"] * 60, seed=0), knn_probe(x, y, x, ["new"] * 60)):
        assert score.balanced_accuracy == 0.0 and score.macro_auc is None and score.note is not None


@pytest.mark.parametrize("probe", [lambda *a: linear_probe(*a, seed=0), knn_probe])
def test_what_cannot_be_probed_is_refused_with_a_reason(probe) -> None:  # type: ignore[no-untyped-def]
    x, none = np.ones((2, 3), dtype=np.float32), np.zeros((0, 3), dtype=np.float32)
    with pytest.raises(InputError, match="no labelled training images"):
        probe(none, [], x, ["a", "b"])
    with pytest.raises(InputError, match="no labelled test images"):
        probe(x, ["a", "b"], none, [])
    with pytest.raises(InputError, match="2 training features but 1 labels"):
        probe(x, ["a"], x, ["a", "b"])
    broken = x.copy()
    broken[1, 2] = np.nan
    with pytest.raises(InputError, match="1 of 2 test images are not finite"):
        probe(x, ["a", "b"], broken, ["a", "b"])


def test_a_probe_of_4000_images_takes_seconds() -> None:
    x, y = blobs(4000, 256, 7, seed=11, spread=6.0)
    start = time.process_time()
    score = linear_probe(x, y, x[:1000], y[:1000], seed=0)
    assert score.note is None  # converged
    assert time.process_time() - start < 60  # 15 s of wall time on a quiet machine; this one is shared
