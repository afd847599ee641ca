"""Nobody is on two sides: a patient's images share a group, a split and a fold, however the patient is named."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aiseeme_models.errors import InputError
from aiseeme_models.images.pipeline import Pipeline
from aiseeme_models.images.splits import POINTS, fold_of, split_at
from client.grouping import Identity, group, lasting_names, names_across_folders, names_somebody
from client.scanning import scan
from client.site_home import SiteHome

TOKENS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3)


def numbered(number: int) -> Image.Image:
    """16 pixels spell the number: every image is another one."""
    image = Image.new("L", (16, 16), 200)
    image.putdata([255 * (number >> bit & 1) for bit in range(16)] + [100] * 120)
    return image


@given(st.lists(st.tuples(TOKENS, st.integers(0, 3), st.integers(0, POINTS - 1)), max_size=30), st.randoms())
def test_groups_are_the_connected_components_in_any_order(images, shuffler: random.Random) -> None:
    identities = [Identity(tuple(tokens), (rank, point)) for tokens, rank, point in images]
    groups = group(identities)
    # By brute force: merge sets until none overlap.
    components: list[set[str]] = []
    for identity in identities:
        merged = set(identity.tokens).union(*(c for c in components if c & set(identity.tokens)))
        components = [c for c in components if not c & merged] + [merged]
    of = [next(i for i, c in enumerate(components) if identity.tokens[0] in c) for identity in identities]
    assert len({(a, b[0]) for a, b in zip(of, groups, strict=True)}) == len(set(of)) == len({b[0] for b in groups})
    for component in set(of):
        points = {groups[i][1] for i in range(len(of)) if of[i] == component}
        assert points == {min(identities[i].point for i in range(len(of)) if of[i] == component)[1]}
    order = list(range(len(identities)))
    shuffler.shuffle(order)
    assert group([identities[i] for i in order]) == [groups[i] for i in order]


@pytest.mark.parametrize("placeholder", ["", "ANONYMOUS", " anon ", "0", "Unknown", "^", "DEIDENTIFIED"])
def test_placeholders_name_nobody(placeholder: str) -> None:
    assert not names_somebody(placeholder)
    assert names_somebody("4711")


def test_a_patient_of_two_folders_is_one(tmp_path: Path) -> None:
    """Each folder knows other lesions of theirs, so that the groups differ."""
    home, scanned = SiteHome(tmp_path / "home"), []
    for place, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        folder.mkdir()
        for patient in range(12):
            numbered(100 * place + patient).save(folder / f"{patient}.png")
        lines = [f"{patient}.png,p{patient},lesion-{place}-{patient}" for patient in range(12)]
        (folder / "labels.csv").write_text("\n".join(["file,patient_id,lesion_id", *lines]))
        scanned += scan(folder, home, Pipeline(1, "pad", 16)).rows
    patients = [row.columns["patient_id"] for row in scanned]
    apart, joined = lasting_names(scanned), names_across_folders(scanned)
    assert len(scanned) == 24 and len(set(apart)) > 12
    assert all(len({name for name, one in zip(joined, patients, strict=True) if one == who}) == 1 for who in patients)
    assert len(set(joined)) > 6  # strangers' points rarely meet


def test_patients_of_the_real_radiographs_are_never_divided(tmp_path: Path) -> None:
    """The ids of cxr_kermany on invented pixels: splits and folds of a scanned folder."""
    from tests.conftest import DATA

    if not (DATA / "cxr_kermany" / "labels.csv").is_file():
        pytest.skip("the real radiographs are not there: set AISEEME_DATA to their folder")
    with (DATA / "cxr_kermany" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::3]
    folder = tmp_path / "site"
    folder.mkdir()
    for number in range(len(rows)):
        numbered(number).save(folder / f"{number}.png")
    lines = [f"{number}.png,{row['label']},{row['patient_id']}" for number, row in enumerate(rows)]
    (folder / "labels.csv").write_text("\n".join(["file,label,patient_id", *lines]))
    done = scan(folder, SiteHome(tmp_path / "home"), Pipeline(1, "pad", 16))
    assert len(done.rows) == len(rows) > 1500
    sides: dict[str, set[object]] = {}
    folds: dict[str, set[int]] = {}
    groups: dict[str, set[str]] = {}
    for row in done.rows:
        patient = row.columns["patient_id"]
        sides.setdefault(patient, set()).add(split_at(row.point, test=0.25, validation=0.05))
        folds.setdefault(patient, set()).add(fold_of(row.group, 5))
        groups.setdefault(patient, set()).add(row.group)
    for found in (sides, folds, groups):
        assert all(len(one) == 1 for one in found.values())
    assert len(done.rows) > len(sides) == len({row.group for row in done.rows})
    sizes = [sum(fold_of(row.group, 5) == fold for row in done.rows) / len(rows) for fold in range(5)]
    assert all(0.15 < size < 0.25 for size in sizes)
    elsewhere = scan(folder, SiteHome(tmp_path / "other hospital"), Pipeline(1, "pad", 16))
    assert [row.point for row in elsewhere.rows] == [row.point for row in done.rows]
    assert not {row.group for row in elsewhere.rows} & {row.group for row in done.rows}


def test_folds_are_independent_of_splits_and_need_two() -> None:
    from aiseeme_models.images.splits import split_of

    names = [f"patient-{number}" for number in range(4000)]
    for side in ("train", "test"):
        inside = [fold_of(name, 4) for name in names if split_of(name) == side]
        assert all(0.2 < inside.count(fold) / len(inside) < 0.3 for fold in range(4))
    with pytest.raises(InputError, match="at least 2"):
        fold_of("a", 1)
