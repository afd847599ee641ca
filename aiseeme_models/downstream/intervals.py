"""Bootstrap intervals whose unit is the patient: two images of one patient are not two observations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from aiseeme_models.seeding import derive_seed

RESAMPLES = 1000
_LEVEL = 0.95
_MOST_UNDEFINED = 0.05
_FEWEST = 10
_LARGEST_BLOCK = 4_000_000  # weights at a time: 32 MB

Figures = Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]
"""From the images' weights ``(R, N)`` to figures by name, ``(R,)`` each, NaN where a resample has none."""


class Interval(BaseModel):
    """A 95 % percentile interval over resampled patients.

    Attributes:
        low, high: its ends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float
    high: float


def resampled_weights(
    patients: Sequence[str], *, seed: int, resamples: int = RESAMPLES
) -> Iterator[NDArray[np.float64]]:
    """How often each image is there when as many patients are drawn, with replacement, as there are.

    Args:
        patients: ``(N,)`` whose each image is.
        seed: of the draws.
        resamples: how many times patients are drawn.

    Yields:
        ``(r, N)`` float64, whose rows are ``resamples`` in all: a patient's images are there together, or not at all.
    """
    # Numbered as they first appear: pseudonyms differ between machines, and the draws must not.
    number = {name: place for place, name in enumerate(dict.fromkeys(patients))}
    of_image = np.array([number[name] for name in patients], dtype=np.int64)
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    block = max(1, _LARGEST_BLOCK // max(len(of_image), 1))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.multinomial(len(number), np.full(len(number), 1.0 / len(number)), size=rows)  # (r, patients)
        yield drawn[:, of_image].astype(np.float64)


def bootstrap_intervals(
    figures: Figures, patients: Sequence[str], *, seed: int, resamples: int = RESAMPLES
) -> dict[str, Interval | None]:
    """The interval of each figure, all on the same resamples.

    Args:
        figures: see `Figures`.
        patients: ``(N,)`` whose each image is, of at least one image.
        seed: of the draws.
        resamples: how many.

    Returns:
        By name; None where fewer than 10 patients stand behind it, or more than 5 % of the resamples have no value.
    """
    parts = [figures(weights) for weights in resampled_weights(patients, seed=seed, resamples=resamples)]
    enough = len(set(patients)) >= _FEWEST
    return {name: _interval(np.concatenate([part[name] for part in parts])) if enough else None for name in parts[0]}


def _interval(values: NDArray[np.float64]) -> Interval | None:
    there = values[~np.isnan(values)]
    if len(there) < (1.0 - _MOST_UNDEFINED) * len(values):
        return None
    low, high = np.quantile(there, [(1.0 - _LEVEL) / 2.0, (1.0 + _LEVEL) / 2.0])
    return Interval(low=float(low), high=float(high))
