"""Figures by subgroup equal scikit-learn's, on the classes that all have; what cannot be compared is said, not NaN."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from aiseeme_models.downstream.subgroups import Answers, subgroup_figures
from aiseeme_models.errors import InputError
from server.subgroups import AskedSubgroups, parse_subgroups, subsets

CLASSES = ("bkl", "mel", "nv")


def answers(count: int = 600, seed: int = 0, worse: float = 0.0) -> tuple[Answers, np.ndarray]:
    """A classifier that is right more often among the first two thirds, by ``worse``; and who is of the last third."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, size=count)
    last = np.arange(count) % 3 == 2
    right = rng.random(count) < np.where(last, 0.8 - worse, 0.8)
    said = np.where(right, truth, (truth + rng.integers(1, 3, size=count)) % 3)
    probabilities = rng.dirichlet(np.ones(3), size=count) * 0.4
    probabilities[np.arange(count), said] += 0.6
    patients = [f"p{index // 2}" for index in range(count)]
    return Answers(probabilities, truth, patients, CLASSES), last


def of(last: np.ndarray) -> dict[str, np.ndarray]:
    return {"first": ~last, "last": last}


def test_figures_equal_scikit_learn_s() -> None:
    given, last = answers(worse=0.3)
    found, gap = subgroup_figures("site", of(last), given)
    guess = given.probabilities.argmax(axis=1)
    for one, inside in zip(found, (~last, last), strict=True):
        recalls = recall_score(given.truth[inside], guess[inside], average=None, labels=[0, 1, 2])
        assert [one.per_class[name].recall for name in CLASSES] == pytest.approx(recalls)
        assert one.balanced_accuracy == pytest.approx(recalls.mean())
        assert one.low < one.balanced_accuracy < one.high
        for place, name in enumerate(CLASSES):
            auc = roc_auc_score(given.truth[inside] == place, given.probabilities[inside, place])
            assert one.per_class[name].auc == pytest.approx(auc)
            bounds = one.per_class[name].intervals["recall"]
            assert bounds.low <= one.per_class[name].recall <= bounds.high
        assert one.n_images == inside.sum() and sum(entry.n_test for entry in one.per_class.values()) == one.n_images
        assert one.n_patients == len({given.patients[place] for place in np.flatnonzero(inside)})
    assert (gap.best, gap.worst, gap.compared) == ("first", "last", 2)
    assert gap.difference == pytest.approx(found[0].balanced_accuracy - found[1].balanced_accuracy)
    assert 0 < gap.low < gap.difference < gap.high


def test_the_interval_of_a_gap_that_is_chance_holds_zero() -> None:
    holds = []
    for seed in range(12):
        given, last = answers(seed=seed)
        _, gap = subgroup_figures("site", of(last), given)
        holds.append(gap.low <= 0 <= gap.high)
    assert sum(holds) >= 10


def test_the_gap_s_interval_is_that_of_resampled_patients() -> None:
    given, last = answers(300, worse=0.3)
    _, gap = subgroup_figures("site", of(last), given)
    guess, names = given.probabilities.argmax(axis=1), sorted(set(given.patients))
    of_patient = {name: [place for place, one in enumerate(given.patients) if one == name] for name in names}
    rng, gaps = np.random.default_rng(1), []
    for _ in range(400):
        drawn = np.array([p for name in rng.choice(names, size=len(names)) for p in of_patient[name]])
        both = [drawn[~last[drawn]], drawn[last[drawn]]]
        scores = [recall_score(given.truth[part], guess[part], average="macro") for part in both]
        gaps.append(scores[0] - scores[1])
    assert (gap.low, gap.high) == pytest.approx(np.quantile(gaps, [0.025, 0.975]), abs=0.03)


def test_subgroups_are_compared_on_the_classes_that_all_have() -> None:
    given, last = answers()
    no_nv = last & (given.truth == 2)
    kept = {"first": ~last, "last": last & ~no_nv}
    found, gap = subgroup_figures("site", kept, given)
    assert all(one.classes == ("bkl", "mel") for one in found)
    recalls = [found[0].per_class[name].recall for name in ("bkl", "mel")]
    assert found[0].balanced_accuracy == pytest.approx(np.mean(recalls))
    assert found[1].per_class["nv"].n_test == 0 and found[1].per_class["nv"].recall is None
    assert found[1].per_class["nv"].auc is None and gap is not None


def test_what_cannot_be_compared_is_said() -> None:
    given, last = answers()
    one_class = last & (given.truth == 1)
    few = np.zeros(600, dtype=bool)
    few[:6] = True
    none = np.zeros(600, dtype=bool)
    found, gap = subgroup_figures("site", {"a": ~last, "one": one_class, "few": few, "none": none}, given)
    assert [one.omitted for one in found] == [
        None, "only one class has 5 test images", "fewer than 10 patients", "no test image has this value"
    ]  # fmt: skip
    assert [one.balanced_accuracy is None for one in found] == [False, True, True, True]
    assert gap is None
    assert found[1].per_class["mel"].auc is None and found[1].per_class["mel"].recall is not None
    assert not found[2].per_class["mel"].intervals
    apart = {"a": last & (given.truth < 2), "b": ~last & (given.truth > 0)}
    found, gap = subgroup_figures("site", apart, given)
    assert gap is None
    assert {one.omitted for one in found} == {"no two classes have 5 images in every subgroup"}
    assert "NaN" not in "".join(one.model_dump_json() for one in found)


def test_columns_are_divided_by_value_or_in_bands() -> None:
    images = [{"sex": sex, "age": age} for sex, age in zip("fmfm" * 10, [f"{n}.0" for n in range(40)], strict=True)]
    images.append({"sex": "", "age": ""})
    assert {name: int(inside.sum()) for name, inside in subsets(AskedSubgroups("sex"), images).items()} == {
        "f": 20,
        "m": 20,
    }
    bands = subsets(AskedSubgroups("age"), images)
    assert list(bands) == ["up to 13", "over 13, up to 26", "over 26"]
    assert [int(inside.sum()) for inside in bands.values()] == [14, 13, 13]
    (asked,) = parse_subgroups(["age=..9,10..29,30.."])
    assert {name: int(inside.sum()) for name, inside in subsets(asked, images).items()} == {
        "..9": 10, "10..29": 20, "30..": 10
    }  # fmt: skip


def test_parts_of_long_numbers_are_told_apart() -> None:
    images = [{"day": f"{20190100 + day}"} for day in range(1, 32)]
    (asked,) = parse_subgroups(["day=20190101..20190115,20190116..20190131"])
    parts = subsets(asked, images)
    assert {name: int(inside.sum()) for name, inside in parts.items()} == {
        "20190101..20190115": 15, "20190116..20190131": 16
    }  # fmt: skip
    assert list(subsets(AskedSubgroups("day"), images)) == [
        "up to 20190111",
        "over 20190111, up to 20190121",
        "over 20190121",
    ]


@pytest.mark.parametrize(
    ("texts", "says"),
    [(["sex,sex"], "each once"), (["sex", "sex=f"], "each once"), (["patient_id"], "whose an image is"),
     (["sex,"], "each once"), (["age=..40,40.."], "an image can be in two"), (["age="], "write it as")],
)  # fmt: skip
def test_what_are_no_subgroups_is_said(texts: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_subgroups(texts)


def test_a_column_of_too_many_values_or_none_is_said() -> None:
    with pytest.raises(InputError, match="50 different values; name those that you mean, as device=d0,d1"):
        subsets(AskedSubgroups("device"), [{"device": f"d{number}"} for number in range(50)])
    with pytest.raises(InputError, match="no test image has a value"):
        subsets(AskedSubgroups("device"), [{"device": ""}, {}])
