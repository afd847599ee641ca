"""The figures of a probe, each with the number of cases behind it and never a NaN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClassScore(BaseModel):
    """How one class fared.

    Attributes:
        recall: share of its test images that were recognised, None where there are none.
        auc: area under the ROC curve of this class against the rest, None where it is undefined.
        n_test: its test images.
        n_train: its training images.
    """

    model_config = _FROZEN

    recall: float | None
    auc: float | None
    n_test: int
    n_train: int


class ProbeScore(BaseModel):
    """What a classifier on frozen features reached on the test split.

    Attributes:
        balanced_accuracy: mean recall over the classes that have test images.
        macro_auc: mean one-against-rest AUC over all classes, None as soon as one class has none.
        per_class: the figures per class, in the order of the labels.
        n_train: training images.
        n_test: test images.
        k: neighbours that voted, for a k-NN probe.
        note: what a reader must know about the figures, in a sentence.
    """

    model_config = _FROZEN

    balanced_accuracy: float
    macro_auc: float | None
    per_class: dict[str, ClassScore]
    n_train: int
    n_test: int
    k: int | None = None
    note: str | None = None


def one_against_rest_auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """Probability that a positive scores above a negative, ties counted as half (Mann-Whitney).

    Args:
        scores: ``(N,)``, higher means more likely positive.
        positive: ``(N,)`` bool.

    Returns:
        The AUC, or None where positives or negatives are missing.
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return None
    _, tie, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    mean_rank = (last_rank - (counts - 1) / 2.0)[tie]  # (N,)
    u = float(mean_rank[positive].sum()) - n_positive * (n_positive + 1) / 2.0
    return u / (n_positive * n_negative)


def score_predictions(
    train_y: Sequence[str],
    test_y: Sequence[str],
    predicted: Sequence[str],
    class_scores: NDArray[np.float64],
    class_names: Sequence[str],
    *,
    k: int | None = None,
    notes: Sequence[str] = (),
) -> ProbeScore:
    """The figures of predictions on a test split.

    Args:
        train_y: labels of the training images.
        test_y: labels of the ``N`` test images, at least one.
        predicted: ``N`` predicted labels.
        class_scores: ``(N, C)``, higher means more likely.
        class_names: the ``C`` labels that the columns stand for.
        k: neighbours that voted, if any.
        notes: sentences to keep beside the figures.
    """
    train = np.asarray(train_y, dtype=object)
    truth = np.asarray(test_y, dtype=object)
    guess = np.asarray(predicted, dtype=object)
    column = {name: index for index, name in enumerate(class_names)}
    per_class: dict[str, ClassScore] = {}
    for name in sorted({*train_y, *test_y}):
        is_class = truth == name  # (N,)
        n_test = int(is_class.sum())
        scores = class_scores[:, column[name]] if name in column else None
        per_class[name] = ClassScore(
            recall=float((guess[is_class] == name).mean()) if n_test else None,
            auc=one_against_rest_auc(scores, is_class) if scores is not None else None,
            n_test=n_test,
            n_train=int((train == name).sum()),
        )
    recalls = [score.recall for score in per_class.values() if score.recall is not None]
    aucs = [score.auc for score in per_class.values() if score.auc is not None]
    complete = len(aucs) == len(per_class)
    sentences = [*notes, *_gaps(per_class)]
    return ProbeScore(
        balanced_accuracy=float(np.mean(recalls)),
        macro_auc=float(np.mean(aucs)) if complete else None,
        per_class=per_class,
        n_train=len(train),
        n_test=len(truth),
        k=k,
        note=" ".join(sentences) or None,
    )


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
