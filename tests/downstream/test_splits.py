"""A patient's or lesion's images never lie in two splits, whatever else changes."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiseeme_models.errors import InputError
from aiseeme_models.images.splits import TEST_FRACTION, VALIDATION_FRACTION, split_of

DATA = Path(os.environ.get("AISEEME_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


@given(group=st.text())
def test_a_group_has_one_split(group: str) -> None:
    assert split_of(group) == split_of(group) in ("train", "validation", "test")


@given(group=st.text(), validation=st.floats(0.0, 0.7), other=st.floats(0.0, 0.7))
def test_another_validation_fraction_never_moves_a_test_image(group: str, validation: float, other: float) -> None:
    first, second = split_of(group, validation=validation), split_of(group, validation=other)
    assert (first == "test") == (second == "test")


@given(group=st.text(), test=st.floats(0.0, 0.5), more=st.floats(0.0, 0.4))
def test_a_larger_test_split_keeps_the_smaller_one(group: str, test: float, more: float) -> None:
    if split_of(group, test=test) == "test":
        assert split_of(group, test=test + more) == "test"


def test_splits_have_the_sizes_that_were_asked_for() -> None:
    n = 40_000
    counts = Counter(split_of(f"patient-{number}") for number in range(n))
    for split, share in (("test", TEST_FRACTION), ("validation", VALIDATION_FRACTION)):
        assert abs(counts[split] - share * n) < 4 * (share * (1 - share) * n) ** 0.5  # four standard deviations


def test_the_split_is_the_same_on_every_machine_and_day() -> None:
    # Fixed for good: another answer would move test patients into training between two versions.
    expected = {
        "HAM_0000001": "train",
        "IM-0005": "train",
        "é": "train",
        "": "train",
        "HAM_0000004": "train",
        "patient-4": "test",
        "patient-15": "validation",
    }
    assert {name: split_of(name) for name in expected} == expected


def test_nothing_is_left_out_at_the_edges() -> None:
    assert {split_of(str(number), test=0.0, validation=0.0) for number in range(500)} == {"train"}
    assert "train" not in {split_of(str(number), test=0.999, validation=0.0009) for number in range(200)}


@pytest.mark.parametrize(("test", "validation"), [(-0.1, 0.1), (0.1, -0.1), (0.7, 0.3), (float("nan"), 0.1)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(test: float, validation: float) -> None:
    with pytest.raises(InputError, match="sum below 1"):
        split_of("x", test=test, validation=validation)


@pytest.mark.parametrize(("name", "column"), [("skin_ham10000", "lesion_id"), ("cxr_kermany", "patient_id")])
def test_real_lesions_and_patients_are_not_divided(name: str, column: str) -> None:
    labels = DATA / name / "labels.csv"
    if not labels.is_file():
        pytest.skip(f"real images not there: {name}")
    with labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row[column], set()).add(split_of(row[column]))
    assert len(splits) < len(rows)  # there are groups of several images
    assert all(len(found) == 1 for found in splits.values())
    share = sum(split_of(row[column]) == "test" for row in rows) / len(rows)
    assert 0.22 < share < 0.28
