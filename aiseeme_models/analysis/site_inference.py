"""Can an attacker name the hospital that an image comes from, from what a model makes of it alone?

Hospitals may differ in their patients or in their devices. So the attack is also made where the classes tell nothing:
every class counts the same at every hospital, and somebody who knows the class alone is at chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.downstream.intervals import bootstrap_intervals
from aiseeme_models.downstream.logistic import fit_logistic
from aiseeme_models.errors import InputError
from aiseeme_models.seeding import derive_seed

FEWEST_PATIENTS = 10
"""At a hospital, and of a class at each hospital."""
REPEATS = 5
PERMUTATIONS = 999

_ROUNDING = 1e-12
_BLOCK = 100  # exchanges at a time


@dataclass(frozen=True)
class SiteInference:
    """How well hospitals are told.

    Attributes:
        balanced_accuracy: mean over the hospitals of the share of their images that are told.
        low, high: its 95 % interval over patients; None where there are too few.
        p: that hospitals who look alike are told so well.
        images: how many there are.
        patients: whose they are.
    """

    balanced_accuracy: float
    low: float | None
    high: float | None
    p: float
    images: int
    patients: int


def infer_sites(
    features: NDArray[np.float32],
    sites: Sequence[str],
    patients: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    repeats: int = REPEATS,
    permutations: int = PERMUTATIONS,
) -> SiteInference:
    """Attack with logistic regression on standardised features: learn on half of the patients, name those of the other.

    Each of ``repeats`` times patients are dealt anew to two halves, alike by hospital (and class), and each half is
    learnt from once: ``2 * repeats`` attackers, none of whom is tested on a patient that he has seen. Images weigh so
    that all hospitals count the same, and at each hospital all classes. The figure is the attackers' mean.

    For each attacker alone the interval over the patients he is tested on, and the p-value (hospitals are exchanged
    between these patients, within a class), are those of a single split into training and test. Attackers depend on
    each other, so more of them make neither tighter: the interval's ends are the means of theirs, and the p-value is
    twice their median (Meinshausen et al. 2009, "p-Values for High-Dimensional Regression", JASA 104:1671).

    Args:
        features: ``(N, D)`` what the attacker sees of each image.
        sites: ``(N,)`` where it comes from.
        patients: ``(N,)`` whose it is.
        classes: ``(N,)`` what it shows; None: classes are let alone.
        seed: of the halves and the exchanges.
        repeats: how many times the patients are halved.
        permutations: how many exchanges; the smallest p-value is ``2 / (1 + permutations)``.

    Raises:
        InputError: fewer than two hospitals; a hospital (or class there) of fewer than two patients; lengths that
            differ; features that are not finite.
    """
    shown = _shown(sites, classes)
    _check(features, sites, patients, shown)
    images = _Images.of(sites, patients, shown)
    attackers, intervals = [], []
    for repeat in range(repeats):
        second = second_half(sites, patients, classes, seed=seed, repeat=repeat)
        for tested in (second, ~second):
            fitted = fit_logistic(features[~tested], _some(sites, ~tested), weights=images.weights(~tested))
            best = fitted.probabilities(features[tested]).argmax(axis=1)
            named = [fitted.names[place] for place in best.tolist()]
            true, whose = _some(sites, tested), _some(patients, tested)
            hits = np.array([one == other for one, other in zip(named, true, strict=True)], np.float64)
            resampled = partial(_figures, images.only(tested), hits)
            intervals.append(bootstrap_intervals(resampled, whose, seed=seed)["told"])
            told = float(resampled(np.ones((1, len(hits))))["told"][0])
            exchange = derive_seed(seed, repeat, len(intervals))
            attackers.append((told, exchange_p_value(named, true, whose, _some(shown, tested), exchange, permutations)))
    ends = [(one.low, one.high) for one in intervals if one is not None]
    low, high = np.mean(ends, axis=0).tolist() if len(ends) == len(intervals) else (None, None)
    return SiteInference(
        balanced_accuracy=float(np.mean([told for told, _ in attackers])),
        low=low,
        high=high,
        p=min(1.0, 2.0 * float(np.median([p for _, p in attackers]))),
        images=len(sites),
        patients=len(set(patients)),
    )


def second_half(
    sites: Sequence[str], patients: Sequence[str], classes: Sequence[str] | None = None, *, seed: int, repeat: int = 0
) -> NDArray[np.bool_]:
    """Who is in the second of two halves of the patients, ``(N,)``.

    Of each hospital (and class) every other patient in random order; a patient of several goes by the first image.

    Args:
        sites, patients, classes: see `infer_sites`.
        seed: of the order.
        repeat: which halving of the seed.
    """
    images = _Images.of(sites, patients, _shown(sites, classes))
    random = np.random.default_rng(derive_seed(seed, "site halves", repeat))
    _, first = np.unique(images.patient, return_index=True)
    cell = images.cell[first]
    chosen = np.zeros(len(first), bool)
    for number in np.unique(cell):
        members = random.permutation(np.flatnonzero(cell == number))
        chosen[members[random.integers(2) :: 2]] = True
    return chosen[images.patient]


def exchange_p_value(
    named: Sequence[str],
    sites: Sequence[str],
    patients: Sequence[str],
    classes: Sequence[str],
    seed: int,
    permutations: int = PERMUTATIONS,
) -> float:
    """How often hospitals that are exchanged between patients (of one class) are told as well as the true ones.

    Args:
        named: ``(N,)`` the hospital that an attacker names for each image.
        sites, patients, classes: see `infer_sites`; none of the patients taught the attacker.
        seed: of the exchanges.
        permutations: how many.

    Returns:
        ``(1 + as good) / (1 + permutations)``.
    """
    images, random = _Images.of(sites, patients, classes), np.random.default_rng(seed)
    keys = np.stack([images.shown, images.site, images.patient])
    units, unit = np.unique(keys, axis=1, return_inverse=True)  # whoever is exchanged as a whole, sorted by class
    shown, site = units[0], units[1]
    names, count = images.site_names, len(images.site_names)
    tally, sizes = np.zeros((len(shown), count)), np.bincount(unit.reshape(-1))
    for place, name in zip(unit.reshape(-1), named, strict=True):
        if name in names:  # a hospital that is not among the true ones is never right
            tally[place, names.index(name)] += 1
    groups = np.split(np.arange(len(shown)), np.flatnonzero(np.diff(shown)) + 1)
    present = np.unique(shown * count + site)  # exchanges leave each as many units as it has
    of_cell = present % count  # the hospital of each
    cells, units_there = count * (int(shown.max()) + 1), np.arange(len(shown))
    of_site = np.eye(count)[of_cell] / np.bincount(of_cell)[of_cell][:, None]  # (present, S): means over its classes

    def told(of_unit: NDArray[np.int64]) -> NDArray[np.float64]:
        """From hospitals of the units ``(P, U)`` to figures ``(P,)``."""
        rows = np.arange(len(of_unit))[:, None] * cells
        cell = (rows + shown * count + of_unit).ravel()
        total = np.bincount(cell, np.broadcast_to(sizes, of_unit.shape).ravel(), len(of_unit) * cells)
        right = np.bincount(cell, tally[units_there, of_unit].ravel(), len(of_unit) * cells)
        recall = right.reshape(-1, cells)[:, present] / total.reshape(-1, cells)[:, present]
        figures: NDArray[np.float64] = (recall @ of_site).mean(axis=1)
        return figures

    true, as_good = told(site[None])[0], 0
    for start in range(0, permutations, _BLOCK):
        exchanged = np.tile(site, (min(_BLOCK, permutations - start), 1))
        for group in groups:
            exchanged[:, group] = random.permuted(exchanged[:, group], axis=1)
        as_good += int((told(exchanged) >= true - _ROUNDING).sum())
    return (1 + as_good) / (1 + permutations)


def _some(values: Sequence[str], chosen: NDArray[np.bool_]) -> list[str]:
    return [values[place] for place in np.flatnonzero(chosen).tolist()]


def _shown(sites: Sequence[str], classes: Sequence[str] | None) -> Sequence[str]:
    return [""] * len(sites) if classes is None else classes


def _figures(
    images: _Images, hits: NDArray[np.float64], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    return {"told": images.balanced(hits, weights)}


def shared_classes(
    sites: Sequence[str], patients: Sequence[str], classes: Sequence[str | None], fewest: int = FEWEST_PATIENTS
) -> list[str]:
    """The classes of which every hospital has ``fewest`` patients or more, sorted; None is no class."""
    cells = {cell for cell in zip(sites, patients, classes, strict=True) if cell[2] is not None}
    counts = Counter((site, shown) for site, _, shown in cells)
    names = {str(shown) for _, _, shown in cells}
    return sorted(name for name in names if all(counts[site, name] >= fewest for site in set(sites)))


@dataclass(frozen=True)
class _Images:
    """``N`` images by numbers.

    Attributes:
        site_names: of ``S`` hospitals.
        site: ``(N,)``.
        patient: ``(N,)``.
        shown: ``(N,)`` class.
    """

    site_names: list[str]
    site: NDArray[np.int64]
    patient: NDArray[np.int64]
    shown: NDArray[np.int64]

    @classmethod
    def of(cls, sites: Sequence[str], patients: Sequence[str], classes: Sequence[str]) -> _Images:
        """Number them. Patients go by their first image: pseudonyms differ between machines, and halves must not."""
        names, of_class = sorted(set(sites)), sorted(set(classes))
        numbers = {name: number for number, name in enumerate(dict.fromkeys(patients))}
        return cls(
            names,
            np.array([names.index(name) for name in sites]),
            np.array([numbers[name] for name in patients]),
            np.array([of_class.index(name) for name in classes]),
        )

    def only(self, chosen: NDArray[np.bool_]) -> _Images:
        """Some of the images."""
        return _Images(self.site_names, self.site[chosen], self.patient[chosen], self.shown[chosen])

    @property
    def cell(self) -> NDArray[np.int64]:
        """``(N,)`` the pair of hospital and class, numbered."""
        return np.unique(np.stack([self.site, self.shown]), axis=1, return_inverse=True)[1].reshape(-1)

    def weights(self, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """What some of the images count in learning: every cell the same, 1 on average."""
        cell = self.only(chosen).cell
        counts = np.bincount(cell)
        found: NDArray[np.float64] = len(cell) / (len(counts) * counts[cell])
        return found

    def balanced(self, hits: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over hospitals of the mean over their classes of the share of hits.

        Args:
            hits: ``(N,)`` in [0, 1].
            weights: ``(R, N)`` how often each image is there.

        Returns:
            ``(R,)``, NaN where a cell is empty.
        """
        cell = self.cell
        of_site = np.zeros((cell.max() + 1,), np.int64)
        of_site[cell] = self.site
        shares = []
        for number in range(len(of_site)):
            here = cell == number
            total = weights[:, here].sum(axis=1)
            none = np.full(len(weights), np.nan)
            shares.append(np.divide(weights[:, here] @ hits[here], total, out=none, where=total > 0))
        told = [np.mean([one for one, its in zip(shares, of_site, strict=True) if its == site], axis=0)
                for site in np.unique(of_site)]  # fmt: skip
        found: NDArray[np.float64] = np.mean(told, axis=0)
        return found


def _check(
    features: NDArray[np.float32], sites: Sequence[str], patients: Sequence[str], classes: Sequence[str]
) -> None:
    if not len(features) == len(sites) == len(patients) == len(classes):
        raise InputError(
            f"site inference: {len(features)} features, {len(sites)} sites, {len(patients)} patients and"
            f" {len(classes)} classes"
        )
    if len(set(sites)) < 2:
        raise InputError("site inference: there must be images of two hospitals or more to tell apart")
    if not np.isfinite(features).all():
        raise InputError("site inference: some of the features are not finite")
    counts = Counter((site, shown) for site, shown, _ in set(zip(sites, classes, patients, strict=True)))
    few = next((cell for cell, count in counts.items() if count < 2), None)
    if few is not None:
        what = few[0] if not few[1] else f"{few[0]}, class {few[1]}"
        raise InputError(f"site inference: {what}: one patient, who cannot be in both halves")
