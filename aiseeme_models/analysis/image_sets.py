"""Which images an association test is on: sets that columns of labels.csv describe, drawn so that they can be compared.

Two groups that differ in what they show, as older patients have more melanomas, would be nearer to different attributes
in any network that knows what it sees. So both groups are drawn with the same mix of the attributes, both attributes
with the same mix of the groups, and no image is in a group and shows an attribute of the same test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, ValidationError, model_validator

from aiseeme_models.analysis.bias import ImageSets
from aiseeme_models.errors import InputError
from aiseeme_models.images.labels import OF_NO_CLASS
from aiseeme_models.options import Options
from aiseeme_models.seeding import derive_seed

_NUMBER = r"-?\d+(?:\.\d+)?"
_RANGE = re.compile(rf"({_NUMBER})?\.\.({_NUMBER})?")
_FORM = "write it as COLUMN=VALUE, COLUMN=VALUE,VALUE or COLUMN=LOW..HIGH, for instance sex=female or age=60.."

Value = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Columns = Mapping[str, str | None]
"""What is known of an image, by column; ``label`` is one of them."""


class Condition(Options):
    """What the images of a set have in common: one of some values, or a number within bounds.

    Attributes:
        column: of labels.csv; none that says whose an image is.
        values: any of them; none where numbers are meant.
        low, high: the least and the largest number, both included; None: no bound.
    """

    column: Value
    values: tuple[Value, ...] = Field(default=(), max_length=64)
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _clear(self) -> Self:
        if self.column in OF_NO_CLASS:
            raise InputError(f"{self.column!r} says whose an image is, which nobody tests")
        if bool(self.values) == (self.low is not None or self.high is not None):
            raise InputError(f"{self.column}: give values, or bounds of a number")
        if self._bounds[0] > self._bounds[1]:
            raise InputError(f"{self.text}: no number is within")
        return self

    @classmethod
    def parse(cls, text: str) -> Condition:
        """What a person writes: ``sex=female``, ``label=mel,bcc``, ``age=0..39``, ``age=60..``.

        Raises:
            InputError: with what would be right.
        """
        column, given, what = (part.strip() for part in text.partition("="))
        if not column or not given or not what:
            raise InputError(f"{text!r}: {_FORM}")
        try:
            if (bounds := _RANGE.fullmatch(what)) is not None and any(bounds.groups()):
                low, high = (None if one is None else float(one) for one in bounds.groups())
                return cls(column=column, low=low, high=high)
            return cls(column=column, values=tuple(value.strip() for value in what.split(",")))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
            ours = fault["type"] == "value_error"
            raise InputError(fault["msg"].removeprefix("Value error, ") if ours else f"{text!r}: {_FORM}") from None

    @property
    def text(self) -> str:
        """As `parse` reads it."""
        if self.values:
            return f"{self.column}={','.join(self.values)}"
        low, high = ("" if bound is None else number_text(bound) for bound in (self.low, self.high))
        return f"{self.column}={low}..{high}"

    def holds(self, image: Columns) -> bool:
        """Whether it is true of an image; of one without the column, or without a number in it, it is not."""
        value = image.get(self.column)
        if value is None:
            return False
        if self.values:
            return value in self.values
        number = as_number(value)
        return number is not None and self._bounds[0] <= number <= self._bounds[1]

    def overlaps(self, other: Condition) -> bool:
        """Whether an image may fulfil both, as far as the conditions tell."""
        if self.column != other.column:
            return False
        if not self.values and not other.values:
            return max(self._bounds[0], other._bounds[0]) <= min(self._bounds[1], other._bounds[1])
        one, two = (self, other) if self.values else (other, self)
        return any(two.holds({two.column: value}) for value in one.values)

    @property
    def _bounds(self) -> tuple[float, float]:
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high


class AssociationTest(Options):
    """Who is compared in one test, by what the images have in common.

    Attributes:
        x, y: the two groups.
        a, b: the two attributes.
    """

    x: Condition
    y: Condition
    a: Condition
    b: Condition

    @model_validator(mode="after")
    def _apart(self) -> Self:
        for one, other in ((self.x, self.y), (self.a, self.b)):
            if one.overlaps(other):
                raise InputError(f"{one.text} and {other.text}: an image can be in both")
        return self

    @property
    def name(self) -> str:
        """The test in words, as it is asked for."""
        return f"{self.x.text} : {self.y.text} / {self.a.text} : {self.b.text}"

    @property
    def conditions(self) -> tuple[Condition, Condition, Condition, Condition]:
        """Of the groups and of the attributes."""
        return self.x, self.y, self.a, self.b


def columns_of(tests: Iterable[AssociationTest]) -> list[str]:
    """The columns that tests look at, by name."""
    return sorted({condition.column for test in tests for condition in test.conditions})


def as_number(text: str) -> float | None:
    """The finite number that ``text`` is; None where it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def number_text(number: float) -> str:
    """A finite number with as many digits as tell it from all others, and without an exponent: 20190101, 0.5."""
    return str(int(number)) if number.is_integer() else np.format_float_positional(number, trim="-")


def draw_sets(test: AssociationTest, images: Sequence[Columns], *, seed: int) -> ImageSets:
    """Divide the images over the four sets of a test, which may be empty.

    Of the images that are in a group and show an attribute, half serve as each. Then each group is drawn down, so that
    both have as many images that show the first attribute, the second, and neither; and the attributes likewise. An
    image that fulfils the conditions of both groups, or of both attributes, is in neither.

    Args:
        test: the conditions.
        images: what is known of each, one image of a patient.
        seed: of the draws.
    """
    rng = np.random.default_rng(derive_seed(seed, "image sets", test.name))
    group = [_which(image, test.x, test.y) for image in images]
    shown = [_which(image, test.a, test.b) for image in images]
    in_group: dict[tuple[_Which, _Which], list[int]] = {}  # by group, and attribute shown
    showing: dict[tuple[_Which, _Which], list[int]] = {}  # by attribute, and group
    for one in _WHICH:
        for other in _WHICH:
            cell = [place for place in range(len(images)) if (group[place], shown[place]) == (one, other)]
            mixed: NDArray[np.int64] = rng.permutation(np.array(cell, dtype=np.int64))
            # An image of no group can only show, and one that shows nothing can only be in a group.
            half = len(cell) // 2 if one and other else len(cell) if other else 0
            showing[other, one] = mixed[:half].tolist()
            in_group[one, other] = mixed[half:].tolist()
    x, y = _matched(in_group)
    a, b = _matched(showing)
    return ImageSets(test.name, x, y, a, b)


_Which = Literal["first", "second", ""]
_WHICH: tuple[_Which, ...] = ("first", "second", "")


def _which(image: Columns, first: Condition, second: Condition) -> _Which:
    of_first, of_second = first.holds(image), second.holds(image)
    if of_first == of_second:
        return ""
    return "first" if of_first else "second"


def _matched(cells: Mapping[tuple[_Which, _Which], list[int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """As many images of the first as of the second, from each stratum."""
    first: list[int] = []
    second: list[int] = []
    for stratum in _WHICH:
        number = min(len(cells["first", stratum]), len(cells["second", stratum]))
        first += cells["first", stratum][:number]
        second += cells["second", stratum][:number]
    return tuple(sorted(first)), tuple(sorted(second))
