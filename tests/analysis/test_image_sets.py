"""Sets are what columns say, each image is in one of them, and groups and attributes are mixed alike."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from aiseeme_models.analysis.image_sets import AssociationTest, Condition, as_number, columns_of, draw_sets, number_text
from aiseeme_models.errors import InputError


def asked(groups: str, attributes: str = "label=mel:label=nv") -> AssociationTest:
    x, y, a, b = (Condition.parse(part) for pair in (groups, attributes) for part in pair.split(":"))
    return AssociationTest(x=x, y=y, a=a, b=b)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("sex=f", "f", True), ("sex=f", "F", False), ("sex=f,m", "m", True), ("sex=f", None, False),
        ("sex=f", "", False), ("age=0..39", "39.0", True),
        ("age=0..39", "39.5", False), ("age=0..39", "-1", False), ("age=60..", "60", True),
        ("age=60..", "1e3", True), ("age=..39", "-5", True), ("age=..39", "unknown", False), ("age=..39", "nan", False),
        ("age=60..", "inf", False), ("age=-1.5..1.5", "0", True), ("site=a..b", "a..b", True), ("site=..", "..", True),
    ],
)  # fmt: skip
def test_a_condition_is_a_value_or_a_range(text: str, value: str | None, holds: bool) -> None:
    condition = Condition.parse(text)
    assert condition.holds({condition.column: value}) is holds
    assert Condition.parse(condition.text) == condition
    assert Condition.model_validate_json(condition.model_dump_json()) == condition


@pytest.mark.parametrize(
    "text", ["", "sex", "=f", "sex=", "sex=f,", "sex=,", "age=40..39", "patient_id=7", f"a={'x' * 101}"]
)
def test_what_is_no_condition_is_said(text: str) -> None:
    with pytest.raises(InputError) as said:
        Condition.parse(text)
    assert "validation error" not in str(said.value)


@pytest.mark.parametrize(
    ("groups", "overlap"),
    [
        ("sex=f:sex=m", False), ("sex=f,m:sex=m", True), ("age=..39:age=40..", False), ("age=..40:age=40..", True),
        ("age=..39:age=39,50", True), ("age=..39:age=50", False), ("age=50:age=..39", False), ("sex=f:age=..39", False),
    ],
)  # fmt: skip
def test_sets_of_one_column_must_be_apart(groups: str, overlap: bool) -> None:
    if overlap:
        with pytest.raises(ValueError, match="an image can be in both"):
            asked(groups)
    else:
        assert asked(groups).name.startswith(groups.replace(":", " : "))


@pytest.mark.parametrize(
    ("number", "text"),
    [(1234567.0, "1234567"), (20190115.0, "20190115"), (1e22, "1" + 22 * "0"), (0.1, "0.1"), (-2.5, "-2.5"), (0.0, "0"),
     (1234567.25, "1234567.25"), (1e-7, "0.0000001"), (0.1 + 0.2, "0.30000000000000004"), (5e-324, None),
     (1.7976931348623157e308, None)],
)  # fmt: skip
def test_bounds_are_written_with_all_digits_so_that_they_are_read_as_they_were(number: float, text: str | None) -> None:
    assert text is None or number_text(number) == text
    for condition in (Condition(column="c", low=number), Condition(column="c", low=-abs(number), high=number)):
        assert Condition.parse(condition.text) == condition


def test_the_columns_of_tests_are_named_once() -> None:
    assert columns_of([asked("sex=f:sex=m"), asked("age=..39:age=40..")]) == ["age", "label", "sex"]


def test_only_finite_numbers_are_numbers() -> None:
    assert [as_number(text) for text in ("4", " 4.5 ", "1e2", "nan", "inf", "", "x")] == [
        4,
        4.5,
        100,
        None,
        None,
        None,
        None,
    ]


def images(count: int, seed: int, share: float = 0.5) -> list[dict[str, Any]]:
    """Melanomas are more frequent among the women by ``share``."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        sex = str(rng.choice(["f", "m", ""]))
        mel = rng.random() < (share if sex == "f" else 0.3)
        found.append({"sex": sex, "label": "mel" if mel else str(rng.choice(["nv", "bkl"]))})
    return found


@pytest.mark.parametrize("seed", range(5))
def test_groups_have_the_same_mix_of_attributes_and_attributes_of_groups(seed: int) -> None:
    known = images(400, seed, 0.8)
    sets = draw_sets(asked("sex=f:sex=m"), known, seed=seed)

    def mix(places: tuple[int, ...], column: str, values: tuple[str, ...]) -> Counter[str]:
        return Counter(known[p][column] if known[p][column] in values else "" for p in places)

    assert {known[p]["sex"] for p in sets.x} == {"f"} and {known[p]["sex"] for p in sets.y} == {"m"}
    assert {known[p]["label"] for p in sets.a} == {"mel"} and {known[p]["label"] for p in sets.b} == {"nv"}
    assert mix(sets.x, "label", ("mel", "nv")) == mix(sets.y, "label", ("mel", "nv"))
    assert mix(sets.a, "sex", ("f", "m")) == mix(sets.b, "sex", ("f", "m"))
    every = [*sets.x, *sets.y, *sets.a, *sets.b]
    assert len(every) == len(set(every)) > 150


def test_the_seed_says_who_serves_as_what() -> None:
    known, test = images(200, 1), asked("sex=f:sex=m")
    assert draw_sets(test, known, seed=3) == draw_sets(test, known, seed=3) != draw_sets(test, known, seed=4)


def test_sets_that_no_image_is_in_are_empty_and_ambiguous_images_are_in_none() -> None:
    known = images(60, 2)
    assert draw_sets(asked("sex=x:sex=m"), known, seed=0).x == ()
    both = draw_sets(asked("sex=f:label=mel", "label=nv:label=bkl"), known, seed=0)
    assert all(known[p]["label"] != "mel" for p in both.x) and all(known[p]["sex"] != "f" for p in both.y)
    # Where group and attribute are one, no image of one group is like any of the other.
    assert draw_sets(asked("label=mel:label=nv"), known, seed=0).x == ()
