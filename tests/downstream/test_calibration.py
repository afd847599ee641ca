"""Calibration error, reliability bins and temperature against a loop that is written out, and against known truths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from aiseeme_models.downstream.calibration import BINS, at_temperature, calibration, fit_temperature
from aiseeme_models.errors import InputError


def drawn(images: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities ``softmax(z)`` and classes that are drawn from ``softmax(z / temperature)``."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 2.0, size=(images, 4))
    odds = np.exp(logits)
    true = np.exp(logits / temperature)
    true /= true.sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(4, p=row) for row in true])
    return odds / odds.sum(axis=1, keepdims=True), truth


def by_hand(probabilities: np.ndarray, truth: np.ndarray) -> float:
    error = 0.0
    for low in range(BINS):
        here = [place for place, row in enumerate(probabilities) if low / BINS < row.max() <= (low + 1) / BINS]
        if here:
            confidence = np.mean([probabilities[place].max() for place in here])
            accuracy = np.mean([probabilities[place].argmax() == truth[place] for place in here])
            error += len(here) / len(truth) * abs(confidence - accuracy)
    return error


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ece_equals_a_loop_and_torchmetrics(seed: int) -> None:
    probabilities, truth = drawn(500, 1.7, seed)
    found = calibration(probabilities, truth)
    assert found.ece == pytest.approx(by_hand(probabilities, truth), abs=1e-12)
    other = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(truth), 4, n_bins=BINS, norm="l1")
    assert found.ece == pytest.approx(float(other), abs=1e-6)
    assert sum(one.images for one in found.reliability) == 500
    total = sum(one.images * abs(one.confidence - one.accuracy) for one in found.reliability) / 500
    assert total == pytest.approx(found.ece)


def test_the_temperature_that_made_the_classes_is_found() -> None:
    probabilities, truth = drawn(20_000, 2.0)
    assert fit_temperature(probabilities, truth) == pytest.approx(2.0, rel=0.05)
    held_out, outcome = drawn(5000, 2.0, seed=1)
    found = calibration(held_out, outcome, temperature=2.0)
    assert found.ece_unscaled is not None and found.ece < 0.03 < found.ece_unscaled
    assert found.temperature == 2.0


def test_temperature_changes_no_answer_and_one_is_no_change() -> None:
    probabilities, _ = drawn(300, 1.0)
    np.testing.assert_allclose(at_temperature(probabilities, 1.0), probabilities, atol=1e-12)
    for temperature in (0.3, 4.0):
        scaled = at_temperature(probabilities, temperature)
        np.testing.assert_array_equal(scaled.argmax(axis=1), probabilities.argmax(axis=1))
        np.testing.assert_allclose(scaled.sum(axis=1), 1.0)


def test_a_probability_of_zero_is_no_infinity() -> None:
    certain = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert np.isfinite(fit_temperature(certain, np.array([0, 1, 1])))
    assert calibration(certain, np.array([0, 1, 1]), temperature=3.0).ece == pytest.approx(1 / 3, abs=1e-9)


def test_a_class_that_the_classifier_does_not_know_is_always_wrong() -> None:
    assert calibration(np.array([[0.9, 0.1]]), np.array([-1])).ece == pytest.approx(0.9)


def test_no_validation_images_is_an_error() -> None:
    with pytest.raises(InputError, match="validation"):
        fit_temperature(np.zeros((0, 3)), [])
