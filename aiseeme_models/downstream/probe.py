"""Linear and k-nearest-neighbour probes: what frozen features know about the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.downstream.logistic import MAX_ITERATIONS, fit_logistic
from aiseeme_models.downstream.metrics import ProbeScore, score_predictions
from aiseeme_models.errors import InputError


@dataclass(frozen=True)
class Votes:
    """What a probe says of ``M`` images.

    Attributes:
        names: the ``C`` classes that it was fitted on.
        scores: ``(M, C)``, each row summing to 1.
        notes: what a reader must know about the fit, in sentences.
        k: neighbours that voted, if any.
    """

    names: list[str]
    scores: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    k: int | None = None


def linear_probe(
    train_x: NDArray[np.float32],
    train_y: Sequence[str],
    test_x: NDArray[np.float32],
    test_y: Sequence[str],
    *,
    seed: int,
    test_patients: Sequence[str] | None = None,
) -> ProbeScore:
    """Multinomial logistic regression on standardised features, classes weighted by their inverse frequency.

    Args:
        train_x: ``(N, D)`` features.
        train_y: ``N`` labels.
        test_x: ``(M, D)`` features.
        test_y: ``M`` labels.
        seed: handed to scikit-learn; its L-BFGS solver draws no random number, so every seed gives the same score.
        test_patients: ``M`` patients (or lesions), whom the figures' intervals resample; None: no intervals.

    Raises:
        InputError: no training or no test images, lengths that differ, features that are not finite.
    """
    _check(train_x, train_y, test_x, test_y)
    if len(set(train_y)) == 1:
        return _only_class(train_y, test_y, k=None, patients=test_patients)
    return _score(train_y, test_y, linear_votes(train_x, train_y, test_x, seed=seed), patients=test_patients)


def linear_votes(
    train_x: NDArray[np.float32], train_y: Sequence[str], test_x: NDArray[np.float32], *, seed: int = 0
) -> Votes:
    """What `linear_probe` says of ``test_x``; the training labels are of two classes or more."""
    fitted = fit_logistic(train_x, train_y, seed=seed)
    notes = () if fitted.converged else (f"Not converged after {MAX_ITERATIONS} iterations.",)
    return Votes(fitted.names, fitted.probabilities(test_x), notes)


def knn_probe(
    train_x: NDArray[np.float32],
    train_y: Sequence[str],
    test_x: NDArray[np.float32],
    test_y: Sequence[str],
    *,
    k: int = 20,
    test_patients: Sequence[str] | None = None,
) -> ProbeScore:
    """Plain vote of the ``k`` training images of highest cosine similarity; ``k`` never exceeds the images there are.

    A tied vote goes to the label that sorts first. The share of the votes is the score behind the AUC.

    Args:
        train_x: ``(N, D)`` features.
        train_y: ``N`` labels.
        test_x: ``(M, D)`` features.
        test_y: ``M`` labels.
        k: neighbours that vote, at least 1; the number that really voted is in the result.
        test_patients: see `linear_probe`.

    Raises:
        InputError: as `linear_probe`, or ``k`` below 1.
    """
    _check(train_x, train_y, test_x, test_y)
    if k < 1:
        raise InputError(f"k-NN probe: k is {k}, it must be at least 1")
    if len(set(train_y)) == 1:
        return _only_class(train_y, test_y, k=min(k, len(train_x)), patients=test_patients)
    return _score(train_y, test_y, knn_votes(train_x, train_y, test_x, k=k), patients=test_patients)


def knn_votes(
    train_x: NDArray[np.float32], train_y: Sequence[str], test_x: NDArray[np.float32], *, k: int = 20
) -> Votes:
    """What `knn_probe` says of ``test_x``; the training labels are of two classes or more."""
    from sklearn.neighbors import KNeighborsClassifier

    voters = min(k, len(train_x))
    notes = (f"Only {voters} training images: k is {voters}, not {k}.",) if voters < k else ()
    model = KNeighborsClassifier(n_neighbors=voters, metric="cosine", algorithm="brute")
    model.fit(train_x, np.asarray(train_y, dtype=str))
    votes = _two_dimensional(model.predict_proba(test_x))
    return Votes([str(name) for name in model.classes_], votes, notes, voters)


def _check(
    train_x: NDArray[np.float32], train_y: Sequence[str], test_x: NDArray[np.float32], test_y: Sequence[str]
) -> None:
    for name, features, labels in (("training", train_x, train_y), ("test", test_x, test_y)):
        if len(features) == 0:
            raise InputError(f"probe: there are no labelled {name} images; more patients or lesions are needed")
        if len(features) != len(labels):
            raise InputError(f"probe: {len(features)} {name} features but {len(labels)} labels")
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        if bad:
            raise InputError(f"probe: the features of {bad} of {len(features)} {name} images are not finite")


def _two_dimensional(scores: object) -> NDArray[np.float64]:
    return np.asarray(scores, dtype=np.float64).reshape(len(scores), -1)  # type: ignore[arg-type]  # (M, C)


def _score(
    train_y: Sequence[str], test_y: Sequence[str], votes: Votes, *, patients: Sequence[str] | None
) -> ProbeScore:
    predicted = [votes.names[index] for index in votes.scores.argmax(axis=1)]
    return score_predictions(
        train_y, test_y, predicted, votes.scores, votes.names, k=votes.k, notes=votes.notes, patients=patients
    )


def _only_class(
    train_y: Sequence[str], test_y: Sequence[str], *, k: int | None, patients: Sequence[str] | None
) -> ProbeScore:
    """The score of the constant answer that one training class allows; a constant score has no AUC worth a figure."""
    answers, nothing = [train_y[0]] * len(test_y), np.zeros((len(test_y), 0))
    return score_predictions(train_y, test_y, answers, nothing, [], k=k, patients=patients)
