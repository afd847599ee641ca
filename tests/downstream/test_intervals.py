"""Intervals resample patients, not images, and equal a bootstrap written out with repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score, roc_curve

from aiseeme_models.downstream import metrics
from aiseeme_models.downstream.calibration import expected_calibration_error
from aiseeme_models.downstream.intervals import Interval, bootstrap_intervals, resampled_weights
from aiseeme_models.downstream.metrics import SPECIFICITY, score_predictions
from aiseeme_models.downstream.ranking import RankedClass

NAMES = ["bcc", "mel", "nv"]


def cases(images: int, seed: int = 0) -> tuple[list[str], np.ndarray, list[str]]:
    """Labels, tied probabilities that know something, and patients with one to four images each."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(NAMES, size=images, p=[0.2, 0.3, 0.5])
    odds = rng.dirichlet(np.ones(3), size=images) + 0.4 * (truth[:, None] == np.array(NAMES))
    odds = np.round(odds, 1) + 0.01
    patients = [f"p{number}" for number in np.sort(rng.integers(0, images // 2, size=images))]
    return truth.tolist(), odds / odds.sum(axis=1, keepdims=True), patients


def sensitivity(truth: np.ndarray, scores: np.ndarray) -> float:
    false, found, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(found[false <= 1 - SPECIFICITY + 1e-9].max())


def test_the_figures_of_a_resample_are_scikit_learns_on_the_repeated_rows() -> None:
    truth, probabilities, patients = cases(80)
    answers = [NAMES[index] for index in probabilities.argmax(axis=1)]
    weights = next(iter(resampled_weights(patients, seed=3, resamples=20)))
    assert {tuple(np.unique(row[[p == one for p in patients]])) for row in weights for one in patients} <= {
        (float(count),) for count in range(20)
    }
    for row in weights:
        again = np.repeat(np.arange(80), row.astype(int))
        here = np.array(truth)[again]
        for index, name in enumerate(NAMES):
            masses = RankedClass.of(probabilities[:, index], np.array(truth) == name).masses(row[None])
            scores, positive = probabilities[again, index], here == name
            assert masses.auc()[0] == pytest.approx(roc_auc_score(positive, scores))
            assert masses.average_precision()[0] == pytest.approx(average_precision_score(positive, scores))
            assert masses.sensitivity_at(SPECIFICITY)[0] == pytest.approx(sensitivity(positive, scores))
        correct = np.array(answers) == np.array(truth)
        found = expected_calibration_error(probabilities.max(axis=1), correct, row[None])[0]
        repeated = expected_calibration_error(
            probabilities.max(axis=1)[again], correct[again], np.ones((1, len(again)))
        )[0]
        assert found == pytest.approx(repeated)


def test_the_interval_of_balanced_accuracy_equals_a_bootstrap_that_is_written_out() -> None:
    truth, probabilities, patients = cases(300)
    answers = [NAMES[index] for index in probabilities.argmax(axis=1)]
    found = score_predictions(truth, truth, answers, probabilities, NAMES, patients=patients).intervals
    rng = np.random.default_rng(11)
    rows = {name: [place for place, one in enumerate(patients) if one == name] for name in set(patients)}
    drawn = []
    for _ in range(4000):
        sample = [place for name in rng.choice(sorted(rows), size=len(rows)) for place in rows[name]]
        drawn.append(balanced_accuracy_score(np.array(truth)[sample], np.array(answers)[sample]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found["balanced_accuracy"].low == pytest.approx(low, abs=0.012)
    assert found["balanced_accuracy"].high == pytest.approx(high, abs=0.012)
    assert found.keys() == {"balanced_accuracy", "macro_auc", "macro_auprc", "ece"}


def test_ten_images_of_each_patient_leave_the_interval_as_wide_as_one_image_of_each() -> None:
    """Resampling images would make it narrower by the root of ten."""
    truth, probabilities, _ = cases(120)
    answers = [NAMES[index] for index in probabilities.argmax(axis=1)]
    people = [f"p{place}" for place in range(120)]

    def width(times: int) -> float:
        score = score_predictions(
            truth, truth * times, answers * times, np.tile(probabilities, (times, 1)), NAMES, patients=people * times
        )
        assert score.n_patients == 120 and score.n_test == 120 * times
        return score.intervals["macro_auc"].high - score.intervals["macro_auc"].low

    assert width(10) == pytest.approx(width(1), rel=1e-6)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """95 % of 200 intervals, within three standard errors."""
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        weights_of = rng.normal(0.3, 1.0, size=60)
        found = bootstrap_intervals(
            lambda weights, seen=weights_of: {"mean": weights @ seen / weights.sum(axis=1)},
            [f"p{place}" for place in range(60)],
            seed=seed,
        )["mean"]
        assert isinstance(found, Interval)
        hits += found.low <= 0.3 <= found.high
    assert 0.95 - 3 * 0.0154 <= hits / 200 <= 1.0


def test_a_class_of_one_patient_has_no_interval_and_no_one_invents_one() -> None:
    truth = ["nv"] * 30 + ["mel"]
    probabilities = np.stack([np.linspace(0, 0.9, 31), np.linspace(1, 0.1, 31)], axis=1)
    answers = ["nv" if row[1] > row[0] else "mel" for row in probabilities]
    score = score_predictions(truth, truth, answers, probabilities, ["mel", "nv"], patients=[str(n) for n in range(31)])
    assert score.per_class["mel"].recall == 1.0 and score.per_class["mel"].n_test == 1
    assert "recall" not in score.per_class["mel"].intervals and "auc" not in score.per_class["mel"].intervals
    assert "recall" in score.per_class["nv"].intervals
    assert "macro_auc" not in score.intervals and "balanced_accuracy" not in score.intervals


def test_the_same_patients_are_drawn_wherever_their_pseudonyms_come_from() -> None:
    _, _, patients = cases(40)
    other = [f"{hash(name) & 0xFFFF:x}-{name}" for name in patients]
    for one, two in zip(
        resampled_weights(patients, seed=1, resamples=5), resampled_weights(other, seed=1, resamples=5), strict=True
    ):
        np.testing.assert_array_equal(one, two)


def test_blocks_draw_what_one_go_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resampled_weights(["a", "b", "b", "c"], seed=5, resamples=50)))
    monkeypatch.setattr("aiseeme_models.downstream.intervals._LARGEST_BLOCK", 12)
    parts = list(resampled_weights(["a", "b", "b", "c"], seed=5, resamples=50))
    assert len(parts) > 10
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_precision_confusion_and_sensitivity_equal_scikit_learns() -> None:
    from sklearn.metrics import confusion_matrix, precision_score

    truth, probabilities, _ = cases(150)
    answers = [NAMES[index] for index in probabilities.argmax(axis=1)]
    score = score_predictions(truth, truth, answers, probabilities, NAMES)
    assert score.confusion == tuple(map(tuple, confusion_matrix(truth, answers, labels=NAMES).tolist()))
    precisions = precision_score(truth, answers, labels=NAMES, average=None).tolist()
    assert [one.precision for one in score.per_class.values()] == pytest.approx(precisions)
    for index, name in enumerate(NAMES):
        positive = np.array(truth) == name
        one = score.per_class[name]
        assert one.sensitivity == pytest.approx(sensitivity(positive, probabilities[:, index]))
        assert one.auprc == pytest.approx(average_precision_score(positive, probabilities[:, index]))
    assert score.macro_auprc == pytest.approx(
        np.mean([average_precision_score(np.array(truth) == n, probabilities[:, i]) for i, n in enumerate(NAMES)])
    )
    assert score.intervals == {} and score.n_patients is None
    assert metrics.ProbeScore.model_validate_json(score.model_dump_json()) == score
