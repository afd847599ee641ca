"""A bias audit by association tests: what a network ties together, beside what untrained networks do.

The count of "significant" tests says nothing by itself: a third to a half of the tests of an untrained network are
below 0.1 (SB-SSL's own figures, arXiv 2203.01854). So an association counts as found only where a control shows that
the layer knows the attributes at all, and where neither shuffled images nor untrained networks explain it, both held
out against the number of tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.analysis.ieat import Association, association_test, effect_size, holm
from aiseeme_models.errors import InputError
from aiseeme_models.seeding import derive_seed

Layers = Mapping[str, NDArray[np.float32]]
"""Features of all images by layer, ``(N, D_layer)`` each."""
Verdict = Literal["found", "not found", "not testable"]
LEVEL = 0.05
FEWEST_UNTRAINED = 5


@dataclass(frozen=True)
class ImageSets:
    """Who is compared in one test, by the images' positions.

    Attributes:
        name: of the test.
        x, y: the two groups.
        a, b: the images that show the two attributes; no image is in a group and shows an attribute of the same test.
    """

    name: str
    x: tuple[int, ...]
    y: tuple[int, ...]
    a: tuple[int, ...]
    b: tuple[int, ...]

    def __post_init__(self) -> None:
        if set(self.x) & set(self.y) or set(self.a) & set(self.b):
            raise InputError(f"{self.name}: an image is in both groups, or shows both attributes")
        if (set(self.x) | set(self.y)) & (set(self.a) | set(self.b)):
            raise InputError(f"{self.name}: an image is in a group and shows an attribute; it would be tied to itself")


@dataclass(frozen=True)
class Measured:
    """What one test at one layer gave, before anything is made of it.

    Attributes:
        test, layer: which.
        association: of the trained network.
        control: p-value of the layer's control: whether one half of the images that show an attribute is nearer to the
            other half than to the other attribute.
        untrained: effects in untrained networks.
    """

    test: str
    layer: str
    association: Association
    control: float
    untrained: tuple[float, ...]


@dataclass(frozen=True)
class LayerAudit(Measured):
    """One test at one layer, judged beside all others.

    Attributes:
        beyond: two-sided p-value of an effect so far from the untrained networks' (a t prediction interval).
        corrected: the larger of that and of the association's own two-sided p-value, corrected for all tests at all
            layers (Holm).
        verdict: ``"found"``; ``"not found"``; or ``"not testable"``, where the control fails.
    """

    beyond: float
    corrected: float
    verdict: Verdict


def audit(tests: Sequence[ImageSets], trained: Layers, untrained: Iterable[Layers], *, seed: int) -> list[LayerAudit]:
    """Test every layer of a trained network: `measure` and `judge`."""
    return judge(measure(tests, trained, untrained, seed=seed))


def measure(tests: Sequence[ImageSets], trained: Layers, untrained: Iterable[Layers], *, seed: int) -> list[Measured]:
    """Every test at every layer, in this order. A layer that gives an image nothing, or no number, is left out.

    Args:
        tests: who is compared; larger groups are drawn down to the smaller one's size, by the seed.
        trained: the network's features.
        untrained: features of the same images from networks that were never trained, at least five; one at a time.
        seed: of draws and shuffles.

    Raises:
        InputError: sets of fewer than two images, or fewer than five untrained networks.
    """
    drawn = [_drawn(test, seed) for test in tests]
    layers = [layer for layer, features in trained.items() if _usable(features)]
    chance: dict[tuple[str, str], list[float]] = {(sets.name, layer): [] for sets in drawn for layer in layers}
    networks = 0
    for network in untrained:
        networks += 1
        layers = [layer for layer in layers if _usable(network[layer])]
        for sets in drawn:
            for layer in layers:
                chance[sets.name, layer].append(effect_size(*_sets_of(network[layer], sets)))
    if networks < FEWEST_UNTRAINED:
        raise InputError(f"bias audit: {networks} untrained networks; at least {FEWEST_UNTRAINED} say what chance does")
    return [
        Measured(
            sets.name,
            layer,
            association_test(*_sets_of(trained[layer], sets), seed=seed),
            control_p_value(trained[layer], sets, seed),
            tuple(chance[sets.name, layer]),
        )
        for sets in drawn
        for layer in layers
    ]


def judge(measured: Sequence[Measured]) -> list[LayerAudit]:
    """What to make of all tests that were done together, in their order."""
    beyond = [_beyond(one.association.effect, one.untrained) for one in measured]
    corrected = holm([max(far, one.association.two_sided) for far, one in zip(beyond, measured, strict=True)])
    return [
        LayerAudit(**vars(one), beyond=far, corrected=p_value, verdict=_verdict(one.control, p_value))
        for one, far, p_value in zip(measured, beyond, corrected, strict=True)
    ]


def _verdict(control: float, corrected: float) -> Verdict:
    if control >= LEVEL:
        return "not testable"
    return "found" if corrected < LEVEL else "not found"


def _beyond(effect: float, untrained: Sequence[float]) -> float:
    """P-value of one more draw from where ``untrained`` come from being so far off: Student's t, normal effects."""
    from scipy.stats import t

    spread = float(np.std(untrained, ddof=1)) * np.sqrt(1 + 1 / len(untrained))
    distance = abs(effect - float(np.mean(untrained)))
    return (
        1.0 if spread == 0.0 and distance == 0.0 else float(2 * t.sf(distance / max(spread, 1e-12), len(untrained) - 1))
    )


def _drawn(test: ImageSets, seed: int) -> ImageSets:
    size = min(len(test.x), len(test.y))
    rng = np.random.default_rng(derive_seed(seed, "bias", test.name))
    x, y = (tuple(sorted(rng.permutation(group)[:size].tolist())) for group in (test.x, test.y))
    return ImageSets(test.name, x, y, test.a, test.b)


def _sets_of(features: NDArray[np.float32], sets: ImageSets) -> tuple[NDArray[np.float32], ...]:
    return tuple(features[list(places)] for places in (sets.x, sets.y, sets.a, sets.b))


def _usable(features: NDArray[np.float32]) -> bool:
    return bool(np.isfinite(features).all() and features.any(axis=1).all())


def control_p_value(features: NDArray[np.float32], sets: ImageSets, seed: int) -> float:
    """Half of the images of each attribute in place of the groups: they must be nearer to their own."""
    rng = np.random.default_rng(derive_seed(seed, "bias", "control", sets.name))
    size = min(len(sets.a), len(sets.b)) // 2
    first, second = (rng.permutation(attribute).tolist() for attribute in (sets.a, sets.b))
    halves = first[:size], second[:size], first[size:], second[size:]
    return association_test(*(features[places] for places in halves), seed=seed).p_value
