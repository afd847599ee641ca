"""How much networks look at masks, over all images: means, intervals over patients, what sets two networks apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.downstream.intervals import Interval, bootstrap_intervals

_SEED = 0  # the same patients are drawn for all networks

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Looked:
    """Where one network looked in each of ``N`` images.

    Attributes:
        energy: ``(N,)`` float64, see `attention.energy_inside`; NaN where its map is 0 everywhere.
        iou: ``(N,)`` float64, see `attention.overlap`; NaN likewise.
    """

    energy: Values
    iou: Values


@dataclass(frozen=True)
class Mean:
    """A mean over images, with its interval where there are enough patients for one."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class LookedSummary:
    """One network over all images.

    Attributes:
        images: whose map is not 0 everywhere; the means are over them.
        zero_maps: the others.
        means: of ``energy``, ``iou``, ``share`` (the mask's share of the image, the energy of a map that knows
            nothing) and ``gain`` (energy less share); none where every map is 0.
        to_first: ``energy`` and ``iou`` less those of the first network, over the images where both have a map; none
            for the first itself.
    """

    images: int
    zero_maps: int
    means: Mapping[str, Mean]
    to_first: Mapping[str, Mean]


def summarise(networks: Sequence[Looked], shares: Values, patients: Sequence[str]) -> list[LookedSummary]:
    """Means over the images of each network, 95 % intervals over patients, and paired differences to the first.

    Args:
        networks: which looked at the same images.
        shares: ``(N,)`` each mask's share of its image.
        patients: ``(N,)`` whose each image is.
    """
    found = []
    for place, one in enumerate(networks):
        there = np.isfinite(one.energy)
        to_first = {}
        if place:
            first = networks[0]
            to_first = {"energy": one.energy - first.energy, "iou": one.iou - first.iou}
        found.append(
            LookedSummary(
                images=int(there.sum()),
                zero_maps=int((~there).sum()),
                means=_means(
                    {
                        "energy": one.energy,
                        "iou": one.iou,
                        "share": np.where(there, shares, np.nan),
                        "gain": one.energy - shares,
                    },
                    patients,
                ),
                to_first=_means(to_first, patients),
            )
        )
    return found


def _means(values: Mapping[str, Values], patients: Sequence[str]) -> dict[str, Mean]:
    """The means of what is there of each, all of which are NaN for the same images."""
    if not values:
        return {}
    there = np.isfinite(next(iter(values.values())))
    if not there.any():
        return {}
    seen = [patient for patient, is_there in zip(patients, there, strict=True) if is_there]

    def figures(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        total = weights.sum(axis=1)
        return {name: weights @ one[there] / total for name, one in values.items()}

    points = figures(np.ones((1, len(seen))))
    intervals = bootstrap_intervals(figures, seen, seed=_SEED)
    return {name: Mean(float(points[name][0]), intervals[name]) for name in values}
