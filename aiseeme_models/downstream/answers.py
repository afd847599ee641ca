"""A classifier's answers as a site may tell them: counts, and scores in groups: none points at a person.

The coordinator pools them (`pooled`) without ever seeing a prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from aiseeme_models.downstream.told import SMALLEST, hidden_cells
from aiseeme_models.options import Options

MOST_GROUPS = 50
_DIGITS = 3
ROUNDING = 0.5 * 10**-_DIGITS
"""How far a told mean may be from the real one."""

Told = Annotated[int, Field(ge=SMALLEST, le=2**31)]
Group = Annotated[tuple[Told, Annotated[float, Field(ge=0, le=1)]], Field(strict=False)]
Groups = Annotated[tuple[Group, ...], Field(strict=False, min_length=1, max_length=MOST_GROUPS)]
"""Scores in rising order, at least 5 to a group: how many, and their mean with three decimals (microaggregation)."""


class ClassAnswers(Options):
    """What became of a site's test images of one class, and which scores the class got.

    Attributes:
        images: how many there are; None: fewer than 5, or it would give such a number away. Then nothing else is told
            of the class.
        recognised: how many of them were recognised.
        taken: how many of them were taken for each class (its own left out: None there); None: fewer than 5, or it
            would give such a number away.
        positive: the class's scores of its own images; None: there are fewer than 5.
        negative: its scores of all other images; None: there are fewer than 5.
    """

    images: Told | None = None
    recognised: Told | Literal["<5", "all but <5"] | None = None
    taken: Annotated[tuple[Told | None, ...], Field(strict=False)] | None = None
    positive: Groups | None = None
    negative: Groups | None = None


def told_answers(probabilities: NDArray[np.float64], truth: NDArray[np.int64]) -> tuple[ClassAnswers, ...]:
    """What may be told of a classifier's answers to a site's test images.

    Args:
        probabilities: ``(N, C)``.
        truth: ``(N,)`` true columns.
    """
    classes = probabilities.shape[1]
    guess = probabilities.argmax(axis=1)
    counts = np.bincount(truth, minlength=classes).tolist()
    hidden = hidden_cells(counts, SMALLEST)
    found = []
    for place in range(classes):
        if place in hidden:
            found.append(ClassAnswers())  # the number of the others' scores would tell how many images it has
            continue
        own = truth == place
        row = np.bincount(guess[own], minlength=classes).tolist()
        scores = {"positive": grouped(probabilities[own, place]), "negative": grouped(probabilities[~own, place])}
        found.append(_row(row, place).model_copy(update=scores))
    return tuple(found)


def wrong_answers(told: Sequence[ClassAnswers], images: int, classes: int) -> str | None:
    """What cannot be in what a site told of ``images`` test images of ``classes`` classes; None: it may all be so."""
    if len(told) != classes:
        return f"it tells of {len(told)} classes; there are {classes}"
    if sum(one.images or 0 for one in told) > images:
        return "its classes have more images than it has"
    for one in told:
        scores = [sum(count for count, _ in groups) if groups else 0 for groups in (one.positive, one.negative)]
        if scores[0] != (one.images or 0) or sum(scores) > images:
            return "its scores are not as many as its images"
        if one.images is None:
            if (one.recognised, one.taken, one.negative) != (None, None, None):
                return "it tells of images that it does not count"
            continue
        right = one.recognised if isinstance(one.recognised, int) else 0
        if one.recognised is None or one.taken is None or len(one.taken) != classes:
            return "it does not tell what became of the images of a class"
        if right + sum(count or 0 for count in one.taken) > one.images:
            return "it tells of more images of a class than there are"
    return None


def grouped(scores: NDArray[np.float64]) -> tuple[tuple[int, float], ...] | None:
    """`Groups` of scores ``(N,)`` in [0, 1], as equal in size as can be; None of fewer than 5.

    Microaggregation: Domingo-Ferrer and Mateo-Sanz 2002, doi 10.1109/69.979982.
    """
    number = min(MOST_GROUPS, len(scores) // SMALLEST)
    if not number:
        return None
    parts = np.array_split(np.sort(scores), number)
    return tuple((len(part), round(float(part.mean()), _DIGITS)) for part in parts)


def _row(row: Sequence[int], own: int) -> ClassAnswers:
    """What is told of a row of the confusion, of at least 5 images."""
    total, right = sum(row), row[own]
    others = [count for place, count in enumerate(row) if place != own]
    if total - right < SMALLEST:  # whatever was told of the others would be a small number
        return ClassAnswers(images=total, recognised="all but <5", taken=(None,) * len(row))
    if right < SMALLEST:
        # The sum of what is not told can be had: the recognised are among it.
        hidden = {place - 1 for place in hidden_cells([right, *others], SMALLEST)}
    else:
        hidden = hidden_cells(others, SMALLEST)
    told = [None if place in hidden else count for place, count in enumerate(others)]
    return ClassAnswers(
        images=total, recognised="<5" if right < SMALLEST else right, taken=(*told[:own], None, *told[own:])
    )
