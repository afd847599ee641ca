"""A planted difference of hospitals is found, shuffled hospitals are at chance, figures are those of plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from aiseeme_models.analysis.site_inference import exchange_p_value, infer_sites, second_half, shared_classes
from aiseeme_models.downstream.logistic import fit_logistic
from aiseeme_models.errors import InputError

PATIENTS = 240
FEATURES = NDArray[np.float32]


def drawn(
    *, device: float = 0.0, skewed: bool = False, seed: int = 0
) -> tuple[FEATURES, list[str], list[str], list[str]]:
    """Two images of each patient at one of three hospitals: features, sites, patients, classes.

    A class moves the features; ``device`` moves those of every hospital apart; ``skewed`` hospitals have other classes.
    """
    random = np.random.default_rng(seed)
    site = np.arange(PATIENTS) % 3
    shown = random.random(PATIENTS) < (np.array([0.12, 0.5, 0.88])[site] if skewed else 0.5)
    x = random.normal(size=(PATIENTS, 6)) + 3.0 * shown[:, None] * np.eye(6)[0]
    x[:, 1] += device * site
    twice = np.repeat(np.arange(PATIENTS), 2)
    noisy = x[twice] + 0.3 * random.normal(size=(2 * PATIENTS, 6))
    names = [f"p{number}" for number in twice]
    return noisy.astype(np.float32), [f"s{site[i]}" for i in twice], names, ["ab"[int(shown[i])] for i in twice]


def test_a_planted_difference_is_found_and_classes_do_not_hide_it() -> None:
    x, sites, patients, classes = drawn(device=3.0)
    for matched in (None, classes):
        found = infer_sites(x, sites, patients, classes=matched)
        assert found.low is not None and found.low > 1 / 3 + 0.1
        assert found.low < found.balanced_accuracy < found.high
        assert found.p == pytest.approx(2 / 1000)
        assert (found.images, found.patients) == (2 * PATIENTS, PATIENTS)


def test_hospitals_that_do_not_differ_are_at_chance() -> None:
    x, sites, patients, _ = drawn(device=3.0)
    random, of_patient = np.random.default_rng(1), dict(zip(patients, sites, strict=True))
    below = 0
    for seed in range(15):
        shuffled = dict(zip(of_patient, random.permutation(list(of_patient.values())), strict=True))
        found = infer_sites(
            x, [str(shuffled[name]) for name in patients], patients, seed=seed, repeats=2, permutations=99
        )
        assert found.low <= 1 / 3 <= found.high
        below += found.p < 0.05
    assert below <= 1


def test_other_classes_are_told_from_other_devices() -> None:
    x, sites, patients, classes = drawn(skewed=True)
    assert infer_sites(x, sites, patients, repeats=2).p < 0.05
    matched = infer_sites(x, sites, patients, classes=classes, repeats=2)
    assert matched.low <= 1 / 3 <= matched.high and matched.p > 0.05


def test_whoever_knows_the_class_alone_is_at_chance_among_images_of_one_class() -> None:
    _, sites, patients, classes = drawn(skewed=True)
    alone = np.array([[name == "a", name == "b"] for name in classes], np.float32)
    assert infer_sites(alone, sites, patients, repeats=2).balanced_accuracy > 0.4
    found = infer_sites(alone, sites, patients, classes=classes, repeats=2)
    assert found.balanced_accuracy == pytest.approx(1 / 3) and found.p == 1.0


def test_the_figure_is_that_of_scikit_learn_in_a_loop() -> None:
    x, sites, patients, classes = drawn(device=0.7, skewed=True)
    site, shown = np.array(sites), np.array(classes)
    plain, matched = [], []
    for repeat in range(2):
        second = second_half(sites, patients, seed=4, repeat=repeat)
        for tested in (second, ~second):
            model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
            named = model.fit(x[~tested], site[~tested]).predict(x[tested])
            plain.append(balanced_accuracy_score(site[tested], named))
        second = second_half(sites, patients, classes, seed=4, repeat=repeat)
        for tested in (second, ~second):
            cells = [f"{one} {other}" for one, other in zip(site[~tested], shown[~tested], strict=True)]
            weights = compute_sample_weight("balanced", cells)
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            model.fit(x[~tested], site[~tested], logisticregression__sample_weight=weights)
            of_class = []
            for name in "ab":
                here = tested & (shown == name)
                of_class.append(recall_score(site[here], model.predict(x[here]), average="macro"))
            matched.append(np.mean(of_class))
    found = infer_sites(x, sites, patients, seed=4, repeats=2, permutations=9)
    assert found.balanced_accuracy == pytest.approx(np.mean(plain))
    found = infer_sites(x, sites, patients, classes=classes, seed=4, repeats=2, permutations=9)
    assert found.balanced_accuracy == pytest.approx(np.mean(matched))


def test_halves_divide_no_patient_and_are_alike() -> None:
    _, sites, patients, classes = drawn(skewed=True)
    second = second_half(sites, patients, classes, seed=0)
    for name in set(patients):
        assert len({bool(second[place]) for place, other in enumerate(patients) if other == name}) == 1
    for cell in set(zip(sites, classes, strict=True)):
        here = np.array([pair == cell for pair in zip(sites, classes, strict=True)])
        assert abs(int(second[here].sum()) - int((~second)[here].sum())) <= 2, "one patient's two images"
    renamed = [f"other {name}" for name in patients]
    assert (second == second_half(sites, renamed, classes, seed=0)).all(), "pseudonyms differ between machines"


@pytest.mark.parametrize("classes", [["x"] * 7, list("xxyyyxx")])
def test_the_p_value_is_that_of_all_exchanges(classes: list[str]) -> None:
    """Seven images of six patients, the last of whom has two; every way to give the hospitals to the patients."""
    named, sites = list("aabbbaa"), list("aababaa")
    patients = ["1", "2", "3", "4", "5", "6", "6"]
    units = list(dict.fromkeys(zip(patients, sites, classes, strict=True)))
    cell_mean = []
    for order in itertools.permutations(range(len(units))):
        if any(units[place][2] != units[other][2] for place, other in enumerate(order)):
            continue
        given = {units[place][0]: units[other][1] for place, other in enumerate(order)}
        now = [given[name] for name in patients]
        recalls: dict[str, list[float]] = {}
        for site, shown in sorted(set(zip(now, classes, strict=True))):
            here = [place for place in range(7) if (now[place], classes[place]) == (site, shown)]
            recalls.setdefault(site, []).append(np.mean([named[place] == site for place in here]))
        cell_mean.append(np.mean([np.mean(ones) for ones in recalls.values()]))
    exact = np.mean(np.array(cell_mean) >= cell_mean[0] - 1e-9)  # the first order leaves everybody where he is
    found = exchange_p_value(named, sites, patients, classes, seed=0, permutations=4000)
    assert found == pytest.approx(exact, abs=0.03)


def test_classes_are_compared_that_every_hospital_has() -> None:
    sites = ["a"] * 4 + ["b"] * 4
    patients = ["1", "2", "3", "3", "4", "5", "6", "7"]
    classes = ["x", "x", "y", "y", "x", "x", "y", None]
    assert shared_classes(sites, patients, classes, fewest=1) == ["x", "y"]
    assert shared_classes(sites, patients, classes, fewest=2) == ["x"], "two images of one patient are one"
    assert shared_classes(sites, patients, classes) == []


def test_what_cannot_be_attacked_is_said() -> None:
    x, sites, patients, _ = drawn()
    with pytest.raises(InputError, match="two hospitals or more"):
        infer_sites(x, ["s0"] * len(sites), patients)
    with pytest.raises(InputError, match="480 features, 479 sites"):
        infer_sites(x, sites[:-1], patients)
    with pytest.raises(InputError, match="s9: one patient"):
        infer_sites(x, ["s9", "s9", *sites[2:]], patients)
    with pytest.raises(InputError, match="not finite"):
        infer_sites(np.where(np.eye(len(x), 6) > 0, np.nan, x), sites, patients)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_fitted_layer_gives_the_same_probabilities(classes: int) -> None:
    import torch

    random = np.random.default_rng(0)
    x = (random.normal(size=(90, 5)) * [1, 10, 0.1, 1, 1] + 3).astype(np.float32)
    fitted = fit_logistic(x, [f"c{i % classes}" for i in range(90)])
    with torch.no_grad():
        told = fitted.layer()(torch.from_numpy(x)).softmax(dim=1).numpy()
    np.testing.assert_allclose(told, fitted.probabilities(x), atol=1e-5)
