"""How well a classifier does among the test patients of each value of a column, over all simulated hospitals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.analysis.image_sets import Columns, Condition, as_number, number_text
from aiseeme_models.downstream.classification import ClassificationOptions, predicted
from aiseeme_models.downstream.subgroups import Answers, Gap, Subgroup, subgroup_figures
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.labels import OF_NO_CLASS
from server.assessment import tested_images
from server.global_model import load_classification

if TYPE_CHECKING:
    from server.model_reference import FoundModel
    from server.simulation import Hospitals

MOST_VALUES = 12
"""A column of numbers with more different ones is cut into bands."""
_MOST_SUBGROUPS = 40
_BANDS = 3


@dataclass(frozen=True)
class AskedSubgroups:
    """A column whose subgroups are asked for.

    Attributes:
        column: its name.
        parts: what makes each subgroup; none: its values, or bands of numbers.
    """

    column: str
    parts: tuple[Condition, ...] = ()


def parse_subgroups(texts: Sequence[str]) -> list[AskedSubgroups]:
    """What a person asks for: ``sex``, ``sex,localization``, or ``age=..39,40..59,60..``.

    Raises:
        InputError: a column that says whose an image is, one named twice, or parts that are none or overlap.
    """
    asked: list[AskedSubgroups] = []
    for text in texts:
        column, given, parts = text.partition("=")
        if given:
            conditions = tuple(Condition.parse(f"{column}={part}") for part in parts.split(","))
            for place, one in enumerate(conditions):
                if any(one.overlaps(other) for other in conditions[:place]):
                    raise InputError(f"--subgroups {text}: an image can be in two of them")
            asked.append(AskedSubgroups(column.strip(), conditions))
        else:
            asked += [AskedSubgroups(name.strip()) for name in text.split(",")]
    names = [one.column for one in asked]
    for name in names:
        if not name or name in OF_NO_CLASS or names.count(name) > 1:
            raise InputError(
                f"--subgroups: {name!r}: name columns of labels.csv, each once, and none that says whose an image is"
            )
    return asked


def audit_subgroups(
    found: FoundModel, hospitals: Hospitals, asked: Sequence[AskedSubgroups], *, device: str
) -> tuple[list[Subgroup], list[Gap]]:
    """Figures of a run's classifier by subgroup, over the test images of all hospitals.

    An image that is in training or validation at any of them tests nothing, and none tests twice.

    Args:
        found: the model.
        hospitals: with the images.
        asked: which columns.
        device: where to compute.

    Raises:
        InputError: the model is no classifier, or there is no test image, or a column has too many values.
    """
    if not asked:
        return [], []
    options = found.config.curriculum.stage[-1].options
    if found.manifest.head_sha256 is None or not isinstance(options, ClassificationOptions):
        raise InputError(
            f"--subgroups: {found.run} has no classifier to test: name a run of `aiseeme finetune` with a global head"
        )
    classifier = load_classification(found.folder, found.backbone, options).to(device).eval()
    plain = BatchAugmentation.of(found.config.images.resolved_preset).plain
    tests = [one for one in tested_images(found.config, hospitals.sites, hospitals.sites).values() if one.rows]
    if not tests:
        raise InputError(f"--subgroups: no test patient has a label of {found.run}'s classes")
    rows = [row for one in tests for row in one.rows]
    known: list[Columns] = [{one.column: row.told(one.column) for one in asked} for row in rows]
    answers = Answers(
        probabilities=np.concatenate([predicted(classifier, one.images, plain, device=device) for one in tests]),
        truth=np.concatenate([one.targets.numpy() for one in tests if one.targets is not None]),
        patients=[row.group for row in rows],
        classes=options.names,
    )
    subgroups: list[Subgroup] = []
    gaps: list[Gap] = []
    for one in asked:
        figures, gap = subgroup_figures(one.column, subsets(one, known), answers)
        subgroups += figures
        gaps += [] if gap is None else [gap]
    return subgroups, gaps


def subsets(asked: AskedSubgroups, images: Sequence[Columns]) -> dict[str, NDArray[np.bool_]]:
    """Which images ``(N,)`` are in each subgroup; those without a value are in none.

    A column of numbers with more than `MOST_VALUES` different ones is cut where a third and two thirds of the images
    lie, if nobody says where.

    Raises:
        InputError: no image has a value, or there are too many different ones.
    """
    if asked.parts:
        return {part.text.partition("=")[2]: np.array([part.holds(image) for image in images]) for part in asked.parts}
    texts = [image.get(asked.column) or "" for image in images]
    values = sorted({text for text in texts if text})
    if not values:
        raise InputError(f"--subgroups {asked.column}: no test image has a value there")
    numbers = [as_number(text) for text in texts]
    if len(values) > MOST_VALUES and all(as_number(value) is not None for value in values):
        return _bands(np.array([np.nan if number is None else number for number in numbers]))
    if len(values) > _MOST_SUBGROUPS:
        raise InputError(
            f"--subgroups {asked.column}: {len(values)} different values; name those that you mean, as"
            f" {asked.column}={values[0]},{values[1]}"
        )
    return {value: np.array([text == value for text in texts]) for value in values}


def _bands(numbers: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    cuts = np.unique(np.nanquantile(numbers, np.arange(1, _BANDS) / _BANDS, method="inverted_cdf")).tolist()
    edges = [-np.inf, *cuts, np.inf]
    found = {}
    for low, high in itertools.pairwise(edges):
        parts = [f"over {number_text(low)}"] if np.isfinite(low) else []
        parts += [f"up to {number_text(high)}"] if np.isfinite(high) else []
        inside = (numbers > low) & (numbers <= high)
        if inside.any():
            found[", ".join(parts)] = inside
    return found
