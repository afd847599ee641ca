"""The audit finds what is broken, and does not cry wolf."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from aiseeme_models.privacy.accounting import noise_for
from aiseeme_models.privacy.audit import audit, lower_bound
from aiseeme_models.privacy.noise import SeededDraws
from aiseeme_models.privacy.options import PrivacyOptions
from aiseeme_models.privacy.steps import PrivateSteps

STEPS, CLAIM = 2, 1.0


class WithoutNoise(PrivateSteps):
    def _add_noise(self, parameters):
        self._noise = 0.0
        super()._add_noise(parameters)


class ClippedPerView(PrivateSteps):
    """Every view counts as a patient of its own."""

    def fill(self, task, indices, views_of, loss_of):
        views, self._options = self._options.views, self._options.model_copy(update={"views": 1})
        try:
            return super().fill(task, indices.repeat_interleave(views), views_of, loss_of)
        finally:
            self._options = self._options.model_copy(update={"views": views})


class DrawnByImage(PrivateSteps):
    """Every image is drawn by itself: a patient with many counts many times."""

    def batches(self, steps):
        for _ in range(steps):
            yield torch.cat(self._images)


def audited(tiny_task, make_steps, seed=0, views=1):
    options = PrivacyOptions(noise_multiplier=noise_for(CLAIM, 1e-5, [(1.0, STEPS)]), max_grad_norm=0.5, views=views)
    return audit(
        tiny_task("rotation"),
        options,
        channels=3,
        size=32,
        steps=STEPS,
        canaries=96,
        seed=seed,
        draws=SeededDraws(seed),
        make_steps=make_steps,
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sound_mechanism_is_not_refuted(seed, tiny_task):
    report = audited(tiny_task, PrivateSteps, seed)
    assert report.claimed == pytest.approx(CLAIM, abs=0.02)
    assert 0 <= report.lower_bound <= report.claimed and not report.refutes
    assert 0.3 < report.loss_auc < 0.7


@pytest.mark.parametrize("broken", [WithoutNoise, ClippedPerView, DrawnByImage])
def test_a_broken_mechanism_is_caught(broken, tiny_task):
    report = audited(tiny_task, broken, views=6 if broken is ClippedPerView else 1)
    assert report.refutes, report
    assert report.lower_bound > report.claimed


@pytest.mark.parametrize(("guesses", "right"), [(100, 95), (50, 50), (1000, 650), (10, 9)])
def test_without_delta_the_bound_is_that_of_randomised_response(guesses, right):
    """Under pure ε each guess is right with at most e^ε / (1 + e^ε): Clopper and Pearson's bound of that."""
    rate = stats.beta.ppf(0.05, right, guesses - right + 1)
    assert lower_bound(guesses, guesses, right, 0.05, 0.0) == pytest.approx(math.log(rate / (1 - rate)), abs=2e-3)


def test_the_bound_is_careful():
    assert lower_bound(100, 100, 50, 0.05, 1e-5) == 0.0
    with_delta = [lower_bound(1000, 200, 190, 0.05, delta) for delta in (0.0, 1e-5, 1e-3, 1e-2)]
    assert with_delta == sorted(with_delta, reverse=True) and with_delta[0] > with_delta[-1]
    generator = torch.Generator().manual_seed(0)
    q = math.exp(1.0) / (1 + math.exp(1.0))
    wrong = 0
    for _ in range(400):  # randomised response with ε = 1 itself
        right = int((torch.rand(200, generator=generator) < q).sum())
        wrong += lower_bound(200, 200, right, 0.05, 0.0) > 1.0
    assert wrong <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)
