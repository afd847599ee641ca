"""Figures of a classifier over many sites, from what each told of its answers; with bounds, where that was not all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from aiseeme_models.downstream.answers import ROUNDING, ClassAnswers, Group
from aiseeme_models.downstream.told import SMALLEST

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Bounded(BaseModel):
    """A figure that the counts determine up to a rest.

    Attributes:
        value: the middle of what it can be.
        low, high: the least and the most that it can be.
    """

    model_config = _FROZEN

    value: float
    low: float
    high: float


class PooledClass(BaseModel):
    """One class over all sites.

    Attributes:
        images: test images at the sites that told how many they have.
        sites: how many of the sites did.
        recall: share of those images that was recognised, None where no site told.
        auc: one-against-rest AUC over those sites' scores, None where there are none of the class or of the rest.
    """

    model_config = _FROZEN

    images: int
    sites: int
    recall: Bounded | None
    auc: Bounded | None


class PooledScore(BaseModel):
    """A classifier over all sites that told.

    Attributes:
        balanced_accuracy: mean recall over the classes, None as soon as no site told of one.
        macro_auc: mean AUC over the classes, None as soon as one has none.
        per_class: by class.
    """

    model_config = _FROZEN

    balanced_accuracy: Bounded | None
    macro_auc: Bounded | None
    per_class: dict[str, PooledClass]


def pool(sites: Sequence[Sequence[ClassAnswers]], names: Sequence[str]) -> PooledScore:
    """The figures over the test images of several sites.

    Args:
        sites: what each told, class by class.
        names: the classes, in the same order.
    """
    per_class = {name: _pooled_class([answers[place] for answers in sites]) for place, name in enumerate(names)}
    return PooledScore(
        balanced_accuracy=_mean([one.recall for one in per_class.values()]),
        macro_auc=_mean([one.auc for one in per_class.values()]),
        per_class=per_class,
    )


def _pooled_class(told: Sequence[ClassAnswers]) -> PooledClass:
    images, low, high = 0, 0, 0
    for one in told:
        if one.images is None:
            continue
        images += one.images
        bounds = {"<5": (0, SMALLEST - 1), "all but <5": (one.images - SMALLEST + 1, one.images), None: (0, one.images)}
        least, most = (one.recognised,) * 2 if isinstance(one.recognised, int) else bounds[one.recognised]
        low, high = low + least, high + most
    recall = Bounded(value=(low + high) / 2 / images, low=low / images, high=high / images) if images else None
    positive = [one.positive for one in told if one.positive]
    negative = [one.negative for one in told if one.negative]
    return PooledClass(
        images=images,
        sites=sum(one.images is not None for one in told),
        recall=recall,
        auc=_auc(positive, negative) if positive and negative else None,
    )


def _auc(positive: Sequence[Sequence[Group]], negative: Sequence[Sequence[Group]]) -> Bounded:
    """Mann-Whitney over the sites' groups of scores.

    For the value each score is taken for its group's mean, ties counted as half. A group's scores lie between the means
    of its neighbours, so that groups which cannot overlap bound what the exact scores would give.
    """
    ours = np.array([group for groups in positive for group in _ranges(groups)])  # (P, 4): count, mean, low, high
    theirs = np.array([group for groups in negative for group in _ranges(groups)])  # (N, 4)
    pairs = ours[:, None, 0] * theirs[None, :, 0]  # (P, N)
    means = ours[:, None, 1] - theirs[None, :, 1]
    wins = (pairs * ((means > 0) + (means == 0) / 2)).sum()
    sure = (pairs * (ours[:, None, 2] > theirs[None, :, 3])).sum()
    lost = (pairs * (ours[:, None, 3] < theirs[None, :, 2])).sum()
    total = pairs.sum()
    return Bounded(value=float(wins / total), low=float(sure / total), high=float(1.0 - lost / total))


def _ranges(groups: Sequence[Group]) -> list[tuple[int, float, float, float]]:
    """Count and mean of each group, and between what its scores lie, rounding allowed for."""
    means = [0.0, *(mean for _, mean in groups), 1.0]
    return [
        (count, mean, means[place] - ROUNDING, means[place + 2] + ROUNDING)
        for place, (count, mean) in enumerate(groups)
    ]


def _mean(figures: Sequence[Bounded | None]) -> Bounded | None:
    known = [one for one in figures if one is not None]
    if not known or len(known) < len(figures):
        return None
    return Bounded(
        value=float(np.mean([one.value for one in known])),
        low=float(np.mean([one.low for one in known])),
        high=float(np.mean([one.high for one in known])),
    )
