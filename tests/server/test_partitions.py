"""Simulated hospitals get whole patients and lesions, the mixture that was asked for, and never nothing."""

from __future__ import annotations

import csv
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiseeme_models.errors import InputError
from server.partitions import Assignment, assign, parse_partition, partition_table

DATA = Path(os.environ.get("AISEEME_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
KINDS = ["iid", "dirichlet:0.5", "quantity:1.0", "by:device"]

rows_strategy = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from("abc"), st.sampled_from(["X 1", "Y", "x-1", "", "other"])), min_size=1
)


def deal(text: str, rows: list[tuple[int, str, str]], sites: int, seed: int = 0) -> Assignment:
    groups, labels, devices = [f"p{row[0]}" for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    columns = {"device": devices}
    return assign(parse_partition(text), sites=sites, groups=groups, labels=labels, columns=columns, seed=seed)


def cohort(n: int, seed: int = 0) -> list[tuple[int, str, str]]:
    rng = random.Random(seed)
    return [(rng.randrange(n // 2), rng.choice("aabc"), rng.choice(["X 1", "Y", "Y", "Z"])) for _ in range(n)]


@pytest.mark.parametrize("text", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=rows_strategy, sites=st.integers(1, 5), seed=st.integers(0, 5))
def test_no_group_is_divided_and_no_site_is_empty(text: str, rows, sites: int, seed: int) -> None:  # type: ignore[no-untyped-def]
    try:
        dealt = deal(text, rows, sites, seed)
    except InputError:
        return  # said instead of leaving a site empty; test_ordinary_cohorts_are_dealt shows that this is the exception
    site_of_group: dict[int, int] = {}
    for (group, _, _), site in zip(rows, dealt.site_of_row, strict=True):
        assert site_of_group.setdefault(group, site) == site
    assert set(dealt.site_of_row) == set(range(sites))
    assert len(set(dealt.site_names)) == len(dealt.site_names) == sites
    assert all(name.replace("-", "").isalnum() and name == name.lower() for name in dealt.site_names)


@pytest.mark.parametrize("text", KINDS)
def test_ordinary_cohorts_are_dealt_alike_for_the_same_seed(text: str) -> None:
    rows = cohort(400)
    assert deal(text, rows, 3, seed=1) == deal(text, rows, 3, seed=1)
    if not text.startswith("by:"):
        assert deal(text, rows, 3, seed=1) != deal(text, rows, 3, seed=2)


@pytest.mark.parametrize("text", ["iid", "quantity:1.0"])
def test_the_order_of_the_rows_does_not_matter(text: str) -> None:
    rows = [(group, "a", "") for group, _, _ in cohort(300)]
    shuffled = random.Random(1).sample(rows, len(rows))
    first = {row[0]: site for row, site in zip(rows, deal(text, rows, 4).site_of_row, strict=True)}
    second = {row[0]: site for row, site in zip(shuffled, deal(text, shuffled, 4).site_of_row, strict=True)}
    assert first == second


def test_iid_sites_are_of_equal_size_and_alike() -> None:
    rows = cohort(3000)
    dealt = deal("iid", rows, 4)
    table = partition_table(dealt, [str(row[0]) for row in rows], [row[1] for row in rows])
    sizes = [line.images for line in table]
    largest_group = max(Counter(row[0] for row in rows).values())
    assert max(sizes) - min(sizes) <= largest_group
    assert all(abs(line.classes["a"] / line.images - 0.5) < 0.06 for line in table)


def test_a_small_alpha_divides_the_classes_and_a_large_one_does_not() -> None:
    rows = [(index, "abcd"[index % 4], "") for index in range(4000)]
    labels, groups = [row[1] for row in rows], [str(row[0]) for row in rows]

    def largest_shares(text: str) -> list[float]:
        table = partition_table(deal(text, rows, 4, seed=1), groups, labels)
        return [max(line.classes[label] for line in table) / 1000 for label in "abcd"]

    assert sum(largest_shares("dirichlet:0.05")) / 4 > 0.7
    assert all(abs(share - 0.25) < 0.02 for share in largest_shares("dirichlet:10000"))


def test_quantity_follows_the_proportions_that_were_drawn() -> None:
    rows = [(index, "a", "") for index in range(5000)]
    sizes = Counter(deal("quantity:0.5", rows, 4, seed=0).site_of_row)
    assert max(sizes.values()) > 2 * min(sizes.values())
    even = Counter(deal("quantity:1000000", rows, 4, seed=0).site_of_row)
    assert all(abs(size - 1250) < 15 for size in even.values())


def test_by_column_makes_the_frequent_values_sites_and_merges_the_rest() -> None:
    values = ["Lower Extremity"] * 5 + ["back"] * 4 + ["ear"] * 2 + ["hand"]
    rows = [(index, "a", value) for index, value in enumerate(values)]
    dealt = deal("by:device", rows, 3)
    assert dealt.site_names == ["lower-extremity", "back", "other"]
    assert dealt.site_of_row == [0] * 5 + [1] * 4 + [2] * 3
    assert deal("by:device", rows, 4).site_names == ["lower-extremity", "back", "ear", "hand"]


def test_a_groups_first_row_decides_its_site() -> None:
    rows = [(1, "a", "Y"), (1, "a", "X"), (2, "a", "X"), (3, "a", "Y")]
    assert deal("by:device", rows, 2).site_of_row == [0, 0, 1, 0]


def test_values_that_look_alike_get_different_names() -> None:
    rows = [(0, "a", "X 1"), (1, "a", "x-1"), (2, "a", "ÄÖ"), (3, "a", "../.."), (4, "a", "日本")]
    assert deal("by:device", rows, 5).site_names == ["site", "x-1", "x-1-2", "ao", "site-2"]


def test_by_label_works_without_naming_it_among_the_columns() -> None:
    assert deal("by:label", [(0, "a", ""), (1, "b", ""), (2, "a", "")], 2).site_names == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("random", "unknown partition 'random'"),
        ("dirichlt:1", "did you mean 'dirichlet'"),
        ("dirichlet", "ALPHA must be a number"),
        ("dirichlet:-1", "ALPHA must be a number"),
        ("quantity:nan", "ALPHA must be a number"),
        ("quantity:x", "e.g. quantity:0.5"),
        ("iid:3", "iid takes no argument"),
        ("by:", "name a column"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would_be_right(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_partition(text)


def test_cohorts_that_cannot_be_dealt_are_refused() -> None:
    rows = cohort(100)
    with pytest.raises(InputError, match="no such column; there are: device, label"):
        deal("by:scanner", rows, 2)
    with pytest.raises(InputError, match="at most 3 sites"):
        deal("by:device", rows, 4)
    with pytest.raises(InputError, match="there are 1; use fewer sites"):
        deal("iid", [(0, "a", "")] * 9, 2)
    with pytest.raises(InputError, match="at least 1"):
        deal("iid", rows, 0)
    with pytest.raises(InputError, match="no image falls to site-.*larger ALPHA"):
        deal("quantity:0.001", rows, 4)
    with pytest.raises(InputError, match="1 of 2 have none"):
        assign(parse_partition("dirichlet:1"), sites=1, groups=["a", "b"], labels=["x", None], columns={}, seed=0)


def test_the_table_counts_images_groups_and_classes() -> None:
    rows = [(1, "nv", "A"), (1, "mel", "A"), (2, "nv", "B"), (3, "nv", "B"), (4, "nv", "B")]
    dealt = deal("by:device", rows, 2)
    table = partition_table(dealt, [str(row[0]) for row in rows], [row[1] for row in rows])
    assert [(line.site, line.images, line.groups, line.classes) for line in table] == [
        ("b", 3, 3, {"nv": 3, "mel": 0}),
        ("a", 2, 1, {"nv": 1, "mel": 1}),
    ]


@pytest.mark.parametrize(
    ("name", "column", "text"),
    [
        ("skin_ham10000", "lesion_id", "by:localization"),
        ("skin_ham10000", "lesion_id", "dirichlet:0.3"),
        ("cxr_kermany", "patient_id", "iid"),
        ("cxr_kermany", "patient_id", "quantity:0.5"),
    ],
)
def test_real_lesions_and_patients_stay_at_one_site(name: str, column: str, text: str) -> None:
    path = DATA / name / "labels.csv"
    if not path.is_file():
        pytest.skip(f"real images not there: {name}")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups, labels = [row[column] for row in rows], [row["label"] for row in rows]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    dealt = assign(parse_partition(text), sites=4, groups=groups, labels=labels, columns=columns, seed=0)
    sites_of: dict[str, set[int]] = {}
    for group, site in zip(groups, dealt.site_of_row, strict=True):
        sites_of.setdefault(group, set()).add(site)
    assert len(sites_of) < len(rows) and all(len(sites) == 1 for sites in sites_of.values())
    assert sum(line.images for line in partition_table(dealt, groups, labels)) == len(rows)
