"""The figures of a classifier, each with the number of cases behind it and never a NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from aiseeme_models.downstream.calibration import Calibration, at_temperature, calibration, expected_calibration_error
from aiseeme_models.downstream.intervals import Interval, bootstrap_intervals
from aiseeme_models.downstream.ranking import RankedClass, defined

SPECIFICITY = 0.9
"""The specificity at which sensitivities are given."""

_SEED = 0  # the same patients are drawn for every classifier, so that luck is the same for all

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClassScore(BaseModel):
    """How one class fared.

    Attributes:
        recall: share of its test images that were recognised (sensitivity), None where there are none.
        auc: area under the ROC curve of this class against the rest, None where it is undefined.
        n_test: its test images.
        n_train: its training images; None where nobody here knows.
        precision: share of the images that were taken for it which are of it, None where no image was.
        auprc: average precision of this class against the rest, None where it is undefined; of a classifier that knows
            nothing it is the share of the class.
        sensitivity: recall at the threshold whose specificity is at least `SPECIFICITY`, None where it is undefined.
        intervals: of ``recall``, ``auc``, ``auprc`` and ``sensitivity``, where there are enough patients for one.
    """

    model_config = _FROZEN

    recall: float | None
    auc: float | None
    n_test: int
    n_train: int | None
    precision: float | None = None
    auprc: float | None = None
    sensitivity: float | None = None
    intervals: dict[str, Interval] = {}


class ProbeScore(BaseModel):
    """What a classifier reached on the test split.

    Attributes:
        balanced_accuracy: mean recall over the classes that have test images.
        macro_auc: mean one-against-rest AUC over all classes, None as soon as one class has none.
        per_class: the figures per class, in the order of the labels.
        n_train: training images; None where nobody here knows.
        n_test: test images.
        k: neighbours that voted, for a k-NN probe.
        note: what a reader must know about the figures, in a sentence.
        macro_auprc: mean average precision over all classes, None as soon as one class has none.
        confusion: test images by true class (rows) and answer (columns), both in the order of ``per_class``.
        calibration: how far the probabilities can be believed, where the classifier gives some.
        n_patients: test patients (or lesions), whom the intervals resample.
        intervals: of ``balanced_accuracy``, ``macro_auc``, ``macro_auprc`` and ``ece``, where there are enough patients
            for one; see `aiseeme_models.downstream.intervals`.
    """

    model_config = _FROZEN

    balanced_accuracy: float
    macro_auc: float | None
    per_class: dict[str, ClassScore]
    n_train: int | None
    n_test: int
    k: int | None = None
    note: str | None = None
    macro_auprc: float | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    calibration: Calibration | None = None
    n_patients: int | None = None
    intervals: dict[str, Interval] = {}


def score_predictions(
    train_y: Sequence[str] | None,
    test_y: Sequence[str],
    predicted: Sequence[str],
    class_scores: NDArray[np.float64],
    class_names: Sequence[str],
    *,
    k: int | None = None,
    notes: Sequence[str] = (),
    patients: Sequence[str] | None = None,
    temperature: float | None = None,
) -> ProbeScore:
    """The figures of predictions on a test split.

    Args:
        train_y: labels of the training images; None where they are not known here.
        test_y: labels of the ``N`` test images, at least one.
        predicted: ``N`` predicted labels, each in ``class_names`` or ``train_y``.
        class_scores: ``(N, C)`` probabilities, each row summing to 1.
        class_names: the ``C`` labels that the columns stand for; none where the classifier gives no probabilities.
        k: neighbours that voted, if any.
        notes: sentences to keep beside the figures.
        patients: ``N`` patients (or lesions) of the test images; without them there are no intervals.
        temperature: what the logits are divided by for the calibration, as `calibration.fit_temperature` found it on
            other images.
    """
    names = sorted({*(train_y or ()), *test_y, *class_names})
    place = {name: index for index, name in enumerate(names)}
    answers = _Answers(
        truth=np.array([place[name] for name in test_y], dtype=np.int64),
        guess=np.array([place[name] for name in predicted], dtype=np.int64),
        scores=_columns(class_scores, class_names, names),
        probabilities=class_scores if temperature is None else at_temperature(class_scores, temperature),
        column=_true_columns(class_names, test_y),
    )
    values = {name: defined(found[0]) for name, found in answers.figures(np.ones((1, len(test_y)))).items()}
    found = {} if patients is None else bootstrap_intervals(answers.figures, patients, seed=_SEED)
    # An interval around a figure that is none of this sample would be one around nothing.
    intervals = {name: one for name, one in found.items() if one is not None and values[name] is not None}
    per_class = {
        name: ClassScore(
            **{figure: values[f"{figure} {index}"] for figure in _OF_A_CLASS},
            precision=answers.precision(index),
            n_test=int((answers.truth == index).sum()),
            n_train=None if train_y is None else sum(label == name for label in train_y),
            intervals={
                figure: intervals[f"{figure} {index}"] for figure in _OF_A_CLASS if f"{figure} {index}" in intervals
            },
        )
        for index, name in enumerate(names)
    }
    balanced = values["balanced_accuracy"]
    assert balanced is not None  # there is a test image, so there is a class with one
    return ProbeScore(
        balanced_accuracy=balanced,
        macro_auc=values["macro_auc"],
        per_class=per_class,
        n_train=None if train_y is None else len(train_y),
        n_test=len(test_y),
        k=k,
        note=" ".join([*notes, *_gaps(per_class)]) or None,
        macro_auprc=values["macro_auprc"],
        confusion=answers.confusion(),
        calibration=calibration(class_scores, answers.column, temperature=temperature) if len(class_names) else None,
        n_patients=None if patients is None else len(set(patients)),
        intervals={name: one for name, one in intervals.items() if " " not in name},
    )


_OF_A_CLASS = ("recall", "auc", "auprc", "sensitivity")


@dataclass(frozen=True)
class _Answers:
    """What a classifier said of ``N`` images, by the places of the ``C`` classes.

    Attributes:
        truth: ``(N,)`` the true class.
        guess: ``(N,)`` the answer.
        scores: ``(N, C)``; a column of NaN where the classifier has no score of the class.
        probabilities: ``(N, K)`` as the classifier orders them, scaled by its temperature.
        column: ``(N,)`` the true class's column in them; -1 where it has none.
    """

    truth: NDArray[np.int64]
    guess: NDArray[np.int64]
    scores: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    column: NDArray[np.int64]

    @cached_property
    def _ranked(self) -> list[RankedClass | None]:
        columns = enumerate(self.scores.T)
        return [None if np.isnan(one).any() else RankedClass.of(one, self.truth == index) for index, one in columns]

    def figures(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Every figure that a resample has too, see `intervals.Figures`; those of a class end in its place."""
        none = np.full(len(weights), np.nan)
        found: dict[str, NDArray[np.float64]] = {}
        for index, ranked in enumerate(self._ranked):
            of_class = self.truth == index
            cases, hits = weights[:, of_class].sum(axis=1), weights[:, of_class & (self.guess == index)].sum(axis=1)
            found[f"recall {index}"] = np.divide(hits, cases, out=none.copy(), where=cases > 0)
            masses = None if ranked is None else ranked.masses(weights)
            found[f"auc {index}"] = none if masses is None else masses.auc()
            found[f"auprc {index}"] = none if masses is None else masses.average_precision()
            found[f"sensitivity {index}"] = none if masses is None else masses.sensitivity_at(SPECIFICITY)
        classes = range(len(self._ranked))
        tested = [found[f"recall {index}"] for index in classes if (self.truth == index).any()]
        # A mean over classes is undefined as soon as one of them is.
        means = {
            "balanced_accuracy": np.mean(tested, axis=0),
            "macro_auc": np.mean([found[f"auc {index}"] for index in classes], axis=0),
            "macro_auprc": np.mean([found[f"auprc {index}"] for index in classes], axis=0),
        }
        if self.probabilities.shape[1]:
            confidence, correct = self.probabilities.max(axis=1), self.probabilities.argmax(axis=1) == self.column
            means["ece"] = expected_calibration_error(confidence, correct, weights)
        return means | found

    def precision(self, index: int) -> float | None:
        """Share of the images taken for a class that are of it."""
        taken = self.guess == index
        return float((self.truth[taken] == index).mean()) if taken.any() else None

    def confusion(self) -> tuple[tuple[int, ...], ...]:
        """Images by true class and answer."""
        table = np.zeros((self.scores.shape[1],) * 2, dtype=int)
        np.add.at(table, (self.truth, self.guess), 1)
        return tuple(tuple(row) for row in table.tolist())


def _columns(scores: NDArray[np.float64], given: Sequence[str], wanted: Sequence[str]) -> NDArray[np.float64]:
    column = {name: index for index, name in enumerate(given)}
    none = np.full(len(scores), np.nan)
    return np.stack([scores[:, column[name]] if name in column else none for name in wanted], axis=1)


def _true_columns(class_names: Sequence[str], test_y: Sequence[str]) -> NDArray[np.int64]:
    column = {name: index for index, name in enumerate(class_names)}
    return np.array([column.get(name, -1) for name in test_y], dtype=np.int64)


def _gaps(per_class: dict[str, ClassScore]) -> list[str]:
    """What is missing for complete figures, one sentence each."""
    untrained = [name for name, score in per_class.items() if score.n_train == 0]
    untested = [name for name, score in per_class.items() if score.n_test == 0]
    found = []
    if untrained:
        found.append(f"No training images of {', '.join(untrained)}: never recognised, no AUC.")
    if untested:
        found.append(f"No test images of {', '.join(untested)}: no recall, no AUC.")
    if len(per_class) == 1:
        found.append("One class only: the figures say nothing.")
    return found
