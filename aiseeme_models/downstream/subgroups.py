"""A classifier's figures among the patients of each value of a column, and how far apart they are.

Subgroups are compared on the classes that all of them have: else one with only the easy classes would seem the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from aiseeme_models.downstream.intervals import Interval, bootstrap_intervals
from aiseeme_models.downstream.ranking import RankedClass, defined

FEWEST_PATIENTS = 10
"""Of a subgroup that is compared: with fewer there is no interval."""
FEWEST_IMAGES = 5
"""Of a class in every subgroup that is compared: with fewer, too many resamples would have none of it."""

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
_SEED = 0


@dataclass(frozen=True)
class Answers:
    """What a classifier said of ``N`` test images.

    Attributes:
        probabilities: ``(N, C)`` float64.
        truth: ``(N,)`` int64 true columns.
        patients: ``N`` whose each image is.
        classes: ``C`` names.
    """

    probabilities: NDArray[np.float64]
    truth: NDArray[np.int64]
    patients: Sequence[str]
    classes: Sequence[str]


class SubgroupClass(BaseModel):
    """One class in one subgroup.

    Attributes:
        n_test: its images.
        recall: how many of them were recognised, as a share; None without images.
        auc: one class against the subgroup's others; None where either is missing.
        intervals: of ``recall`` and ``auc``, where there are enough patients for one.
    """

    model_config = _FROZEN

    n_test: int
    recall: float | None
    auc: float | None
    intervals: dict[str, Interval] = {}


class Subgroup(BaseModel):
    """The test images of one value of a column.

    Attributes:
        column, value: which.
        n_images, n_patients: how many.
        classes: those that the balanced accuracy is over, the same for all subgroups of the column.
        balanced_accuracy: mean recall over them; None where the subgroup is left out of the comparison.
        low, high: its 95 % interval over patients, where there is one.
        per_class: of every class.
        omitted: why it is left out, in a sentence.
    """

    model_config = _FROZEN

    column: str
    value: str
    n_images: int
    n_patients: int
    classes: tuple[str, ...]
    balanced_accuracy: float | None
    low: float | None = None
    high: float | None = None
    per_class: dict[str, SubgroupClass]
    omitted: str | None = None


class Gap(BaseModel):
    """The largest difference in balanced accuracy between two subgroups of a column.

    Attributes:
        column: which.
        best, worst: the two values.
        difference: best less worst.
        low, high: its 95 % interval over patients. The two are those that are furthest apart among ``compared``: the
            more there are, the further by chance.
        compared: how many subgroups were.
    """

    model_config = _FROZEN

    column: str
    best: str
    worst: str
    difference: float
    low: float | None
    high: float | None
    compared: int


def subgroup_figures(
    column: str, subsets: Mapping[str, NDArray[np.bool_]], answers: Answers
) -> tuple[list[Subgroup], Gap | None]:
    """Figures of each subgroup, all on the same resamples of the patients, and the largest gap between two.

    Args:
        column: its name.
        subsets: ``(N,)`` which images have each value.
        answers: of the classifier, to at least one image.

    Returns:
        The subgroups in the given order; no gap where fewer than two can be compared.
    """
    truth, number = answers.truth, range(len(answers.classes))
    images = {value: [int((inside & (truth == place)).sum()) for place in number] for value, inside in subsets.items()}
    patients = {
        value: len({answers.patients[place] for place in np.flatnonzero(inside).tolist()})
        for value, inside in subsets.items()
    }
    omitted = {value: _omitted(patients[value], images[value]) for value in subsets}
    compared = [value for value in subsets if omitted[value] is None]
    common = [place for place in number if all(images[value][place] >= FEWEST_IMAGES for value in compared)]
    if len(common) < 2:
        omitted |= dict.fromkeys(compared, f"no two classes have {FEWEST_IMAGES} images in every subgroup")
        compared = []
    figures = _Figures(answers, subsets, compared, common)
    values = {name: defined(found[0]) for name, found in figures(np.ones((1, len(truth)))).items()}
    balanced = {value: values["balanced", value, 0] for value in compared}
    ranked = sorted(compared, key=lambda value: (-(balanced[value] or 0.0), value))
    figures = _Figures(answers, subsets, compared, common, (ranked[0], ranked[-1]) if len(ranked) > 1 else None)
    intervals = figures.intervals()

    def of(value: str) -> Subgroup:
        bounds = intervals.get(("balanced", value, 0))
        return Subgroup(
            column=column,
            value=value,
            n_images=int(subsets[value].sum()),
            n_patients=patients[value],
            classes=tuple(answers.classes[place] for place in common) if compared else (),
            balanced_accuracy=balanced.get(value),
            low=None if bounds is None else bounds.low,
            high=None if bounds is None else bounds.high,
            per_class={
                name: SubgroupClass(
                    n_test=images[value][place],
                    recall=values["recall", value, place],
                    auc=values["auc", value, place],
                    intervals={
                        figure: interval
                        for figure in ("recall", "auc")
                        if patients[value] >= FEWEST_PATIENTS
                        and values[figure, value, place] is not None
                        and (interval := intervals[figure, value, place]) is not None
                    },
                )
                for place, name in enumerate(answers.classes)
            },
            omitted=omitted[value],
        )

    found = [of(value) for value in subsets]
    if figures.pair is None:
        return found, None
    best, worst = figures.pair
    first, last, bounds = balanced[best], balanced[worst], intervals["gap", "", 0]
    assert first is not None and last is not None  # every common class has images in both
    return found, Gap(
        column=column,
        best=best,
        worst=worst,
        difference=first - last,
        low=None if bounds is None else bounds.low,
        high=None if bounds is None else bounds.high,
        compared=len(compared),
    )


_Name = tuple[str, str, int]


@dataclass(frozen=True)
class _Figures:
    """Every figure of every subgroup for resampled patients, by figure, subgroup and class."""

    answers: Answers
    subsets: Mapping[str, NDArray[np.bool_]]
    compared: Sequence[str]
    common: Sequence[int]
    pair: tuple[str, str] | None = None

    def __call__(self, weights: NDArray[np.float64]) -> dict[_Name, NDArray[np.float64]]:
        """From weights ``(R, N)`` to figures ``(R,)``, NaN where a resample has none."""
        answers, found = self.answers, {}
        guess = answers.probabilities.argmax(axis=1)
        for value, inside in self.subsets.items():
            here = weights[:, inside]
            for place in range(len(answers.classes)):
                own = answers.truth[inside] == place
                cases, hits = here[:, own].sum(axis=1), here[:, own & (guess[inside] == place)].sum(axis=1)
                none = np.full(len(weights), np.nan)
                found["recall", value, place] = np.divide(hits, cases, out=none.copy(), where=cases > 0)
                scores = answers.probabilities[inside, place]
                found["auc", value, place] = RankedClass.of(scores, own).masses(here).auc() if len(scores) else none
        for value in self.compared:
            recalls = [found["recall", value, place] for place in self.common]
            found["balanced", value, 0] = np.mean(recalls, axis=0)
        if self.pair is not None:
            best, worst = self.pair
            found["gap", "", 0] = found["balanced", best, 0] - found["balanced", worst, 0]
        return found

    def intervals(self) -> dict[_Name, Interval | None]:
        """The 95 % interval of each."""
        names = list(self(np.ones((1, len(self.answers.truth)))))
        keys = {f"{number}": name for number, name in enumerate(names)}

        def by_key(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
            return dict(zip(keys, self(weights).values(), strict=True))

        found = bootstrap_intervals(by_key, self.answers.patients, seed=_SEED)
        return {keys[key]: interval for key, interval in found.items()}


def _omitted(patients: int, images: Sequence[int]) -> str | None:
    """Why a subgroup cannot be compared; None: it can."""
    if patients == 0:
        return "no test image has this value"
    if patients < FEWEST_PATIENTS:
        return f"fewer than {FEWEST_PATIENTS} patients"
    there = sum(count >= FEWEST_IMAGES for count in images)
    if there == 0:
        return f"no class has {FEWEST_IMAGES} test images"
    return f"only one class has {FEWEST_IMAGES} test images" if there == 1 else None
