"""The question what a backbone ties together in a site's images, and its answer: a part of `federation_configs.wire`.

Which images are compared is said by columns of the site's labels. What comes back are figures of sets of at least five
patients each; no feature and no label is among them, and sizes are rounded.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from aiseeme_models.analysis.bias import FEWEST_UNTRAINED
from aiseeme_models.analysis.ieat import SHUFFLES
from aiseeme_models.analysis.image_sets import AssociationTest
from aiseeme_models.options import Options
from federation_configs.schema import NAME
from federation_configs.wire import (
    MOST_BLOCKS,
    SMALLEST_COMPARISON,
    SMALLEST_COUNT,
    ComparedModel,
    Reply,
    Seconds,
    WeightedRequest,
)

LARGEST_AUDIT = 1024
MOST_TESTS = 64
MOST_UNTRAINED = 32
MOST_FIGURES = 32_768
"""Bounds an answer's length: its numbers, where the names of a test at a layer count as nine."""
LEAST_P = 1 / (1 + SHUFFLES)
_P_DIGITS, _EFFECT_DIGITS = 4, 3
_OTHERS = 13

Layer = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,40}/(map|pooled)$")]
# Of two sets of one size an effect cannot be larger: all of one group on one side, all of the other on the other.
Effect = Annotated[float, Field(ge=-2, le=2)]
PValue = Annotated[float, Field(ge=LEAST_P, le=1)]
Size = Annotated[int, Field(ge=SMALLEST_COUNT, le=LARGEST_AUDIT, multiple_of=SMALLEST_COUNT)]


class AuditRequest(WeightedRequest):
    """Test what a backbone ties together in the images of the site's test patients; its weights travel beside this.

    The configuration says how images are prepared and who is a test patient; its stages ask for nothing here.

    Attributes:
        model: the backbone.
        tests: which images are compared with which.
        layers: where, see `aiseeme_models.analysis.layer_features`.
        untrained: how many networks of the same architecture, never trained, are tested beside it.
        images: most images to look at, one of a patient.
        seed: of the untrained networks and of all draws, so that the networks are the same at every site.
    """

    model: ComparedModel
    tests: tuple[AssociationTest, ...] = Field(min_length=1, max_length=MOST_TESTS)
    layers: tuple[Layer, ...] = Field(min_length=1, max_length=2 * MOST_BLOCKS)
    untrained: int = Field(default=8, ge=FEWEST_UNTRAINED, le=MOST_UNTRAINED)
    images: int = Field(default=512, ge=SMALLEST_COMPARISON, le=LARGEST_AUDIT, multiple_of=SMALLEST_COMPARISON)
    seed: int = Field(default=0, ge=0, lt=2**53)

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        for what, many in (("tests", [test.name for test in self.tests]), ("layers", self.layers)):
            if len(set(many)) < len(many):
                raise ValueError(f"{what} names one twice")
        if len(self.tests) * len(self.layers) * (self.untrained + _OTHERS) > MOST_FIGURES:
            raise ValueError("tests, layers and untrained networks make more figures than an answer may hold")
        return self


class LayerFigures(Options):
    """One test at one layer, see `aiseeme_models.analysis.bias.Measured`.

    Attributes:
        effect: as `told_effect` rounds it.
        p_value, opposite: as `told_p` rounds them.
        control: likewise.
        untrained: the effect in each untrained network, in their order.
    """

    effect: Effect
    p_value: PValue
    opposite: PValue
    control: PValue
    untrained: tuple[Effect, ...] = Field(min_length=FEWEST_UNTRAINED, max_length=MOST_UNTRAINED)


class AssociationFigures(Options):
    """One test.

    Attributes:
        sizes: patients in the two groups and showing the two attributes, as `told_size` rounds them.
        layers: figures by layer, in the order of the request; None where a network gives some image nothing there.
    """

    sizes: tuple[Size, Size, Size, Size]
    layers: tuple[LayerFigures | None, ...] = Field(min_length=1, max_length=2 * MOST_BLOCKS)


class AuditReply(Reply):
    """What the tests gave, in the order of the request; None for one of whose sets the site has fewer than 5 patients.

    Attributes:
        images: how many were looked at, as `told_size` rounds it.
    """

    site: str = Field(pattern=NAME)
    images: Size
    seconds: Seconds
    tests: tuple[AssociationFigures | None, ...] = Field(min_length=1, max_length=MOST_TESTS)


def told_effect(effect: float) -> float:
    """An effect as it may leave a site: three decimals."""
    return round(min(max(effect, -2.0), 2.0), _EFFECT_DIGITS)


def told_p(p_value: float) -> float:
    """A p-value as it may leave a site: four decimals, which is as well as shuffles know it."""
    return max(round(min(p_value, 1.0), _P_DIGITS), LEAST_P)


def told_size(count: int) -> int:
    """A number of patients, at least 5, as it may leave a site: rounded down to fives.

    That hides the exact size in one test, and not from a scan of thresholds: where the rounded size steps, the asker
    learns nearly the histogram of the column. What bounds a scan is how many tests the site's policy lets in a day
    (``max_comparisons_per_day``), and what shows it is the site's ledger.
    """
    return count - count % SMALLEST_COUNT
