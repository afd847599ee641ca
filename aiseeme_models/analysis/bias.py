"""A bias audit by association tests: what a network ties together, beside what untrained networks do.

The count of "significant" tests says nothing by itself: a third to a half of the tests of an untrained network are
below 0.1 (SB-SSL's own figures, arXiv 2203.01854). So an association counts as found only where a control shows that
the layer knows the attributes at all, and where neither shuffled images nor untrained networks explain it, both held
out against the number of tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.analysis.ieat import Association, association_test, holm
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
class LayerAudit:
    """One test at one layer.

    Attributes:
        test, layer: which.
        association: of the trained network.
        beyond: two-sided p-value of an effect so far from the untrained networks' (a t prediction interval).
        corrected: the larger of that and of the association's own two-sided p-value, corrected for all tests at all
            layers (Holm).
        control: p-value of the layer's control: whether one half of the images that show an attribute is nearer to the
            other half than to the other attribute.
        untrained: effects in untrained networks.
        verdict: ``"found"``; ``"not found"``; or ``"not testable"``, where the control fails.
    """

    test: str
    layer: str
    association: Association
    beyond: float
    corrected: float
    control: float
    untrained: tuple[float, ...]
    verdict: Verdict


def audit(tests: Sequence[ImageSets], trained: Layers, untrained: Sequence[Layers], *, seed: int) -> list[LayerAudit]:
    """Test every layer of a trained network.

    Args:
        tests: who is compared; larger groups are drawn down to the smaller one's size, by the seed.
        trained: its features.
        untrained: features of the same images from networks that were never trained, at least five.
        seed: of draws and shuffles.

    Raises:
        InputError: sets of fewer than two images, or fewer than five untrained networks.
    """
    if len(untrained) < FEWEST_UNTRAINED:
        raise InputError(
            f"bias audit: {len(untrained)} untrained networks; at least {FEWEST_UNTRAINED} say what chance does"
        )
    found: list[LayerAudit] = []
    for test in tests:
        sets = _drawn(test, seed)
        for layer, features in trained.items():
            association = _test(features, sets, seed)
            chance = tuple(_test(one[layer], sets, seed).effect for one in untrained)
            beyond = _beyond(association.effect, chance)
            p_value = max(beyond, _two_sided(association.p_value))
            control = _control(features, sets, seed)
            found.append(LayerAudit(test.name, layer, association, beyond, p_value, control, chance, "not found"))
    corrected = holm([one.corrected for one in found])
    return [
        replace(one, corrected=p_value, verdict=_verdict(one.control, p_value))
        for one, p_value in zip(found, corrected, strict=True)
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


def _two_sided(p_value: float) -> float:
    """Either group may be the one that is nearer: nobody says beforehand which."""
    return min(1.0, 2.0 * min(p_value, 1.0 - p_value + 1e-4))


def _drawn(test: ImageSets, seed: int) -> ImageSets:
    size = min(len(test.x), len(test.y))
    rng = np.random.default_rng(derive_seed(seed, "bias", test.name))
    x, y = (tuple(sorted(rng.permutation(group)[:size].tolist())) for group in (test.x, test.y))
    return ImageSets(test.name, x, y, test.a, test.b)


def _test(features: NDArray[np.float32], sets: ImageSets, seed: int) -> Association:
    x, y, a, b = (features[list(places)] for places in (sets.x, sets.y, sets.a, sets.b))
    return association_test(x, y, a, b, seed=seed)


def _control(features: NDArray[np.float32], sets: ImageSets, seed: int) -> float:
    """Half of the images of each attribute in place of the groups: they must be nearer to their own."""
    rng = np.random.default_rng(derive_seed(seed, "bias", "control", sets.name))
    size = min(len(sets.a), len(sets.b)) // 2
    first, second = (rng.permutation(attribute).tolist() for attribute in (sets.a, sets.b))
    halves = first[:size], second[:size], first[size:], second[size:]
    return association_test(*(features[places] for places in halves), seed=seed).p_value
