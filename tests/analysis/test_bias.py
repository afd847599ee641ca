"""Untrained networks "show" bias by the raw count; the gate, the baseline and the correction leave none of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import t

from aiseeme_models.analysis.bias import ImageSets, LayerAudit, audit
from aiseeme_models.analysis.ieat import association_test
from aiseeme_models.backbones import build_backbone, initialise
from aiseeme_models.errors import InputError
from aiseeme_models.images.labels import read_labels

HAM = Path(__file__).parents[3] / "shared" / "data" / "skin_ham10000"


def sets(n: int = 30) -> ImageSets:
    places = np.arange(4 * n).reshape(4, n)
    return ImageSets("sex", *(tuple(row.tolist()) for row in places))


def features(bias: float, knows: float, seed: int, n: int = 30) -> dict[str, np.ndarray]:
    """One layer: ``knows`` parts the attributes, ``bias`` pulls the first group to the first of them."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(4 * n, 16))
    direction = np.zeros(16)
    direction[0] = 1.0
    noise[:n] += bias * direction
    noise[2 * n : 3 * n] += knows * direction
    noise[3 * n :] -= knows * direction
    return {"layer4": noise.astype(np.float32)}


def verdicts(bias: float, knows: float) -> LayerAudit:
    chance = [features(0.0, 1.0, seed) for seed in range(101, 107)]
    (found,) = audit([sets()], features(bias, knows, 0), chance, seed=0)
    return found


def test_a_tie_that_is_there_is_found_and_one_that_is_not_is_not() -> None:
    assert verdicts(1.5, 2.0).verdict == "found"
    assert verdicts(-1.5, 2.0).verdict == "found"  # whichever group it is
    assert verdicts(0.0, 2.0).verdict == "not found"


def test_where_the_layer_does_not_know_the_attributes_nothing_can_be_said() -> None:
    assert verdicts(1.5, 0.0).verdict == "not testable"


def test_what_untrained_networks_show_as_strongly_is_not_found() -> None:
    chance = [features(1.6, 2.0, seed) for seed in range(101, 107)]
    (found,) = audit([sets()], features(1.5, 2.0, 0), chance, seed=0)
    assert found.association.p_value < 0.01 and found.beyond > 0.05 and found.verdict == "not found"


def test_the_distance_from_untrained_networks_is_a_t_prediction() -> None:
    found = verdicts(1.5, 2.0)
    chance = np.array(found.untrained)
    statistic = (found.association.effect - chance.mean()) / (chance.std(ddof=1) * np.sqrt(1 + 1 / len(chance)))
    assert found.beyond == pytest.approx(2 * t.sf(abs(statistic), len(chance) - 1))


def test_groups_of_other_sizes_are_drawn_down_and_the_same_each_time() -> None:
    test = ImageSets("sex", tuple(range(30)), tuple(range(30, 50)), tuple(range(60, 90)), tuple(range(90, 120)))
    chance = [features(0.0, 1.0, seed) for seed in range(101, 107)]
    one, two = (audit([test], features(1.0, 2.0, 0), chance, seed=4) for _ in range(2))
    assert one == two and one[0].association.sizes[:2] == (20, 20)


def test_what_cannot_be_audited_is_said() -> None:
    with pytest.raises(InputError, match="4 untrained networks"):
        audit([sets()], features(0, 1, 0), [features(0, 1, 1)] * 4, seed=0)
    with pytest.raises(InputError, match="in both groups"):
        ImageSets("t", (1, 2), (2, 3), (4, 5), (6, 7))
    with pytest.raises(InputError, match="tied to itself"):
        ImageSets("t", (1, 2), (3, 4), (4, 5), (6, 7))


@pytest.mark.slow
@pytest.mark.skipif(not HAM.is_dir(), reason="the folder of real images is not here")
def test_on_real_images_untrained_networks_show_what_the_paper_saw_and_the_audit_finds_none_of_it() -> None:
    """A third to a half of the raw tests below 0.1, and not one finding among them."""
    labels = read_labels(HAM)
    assert labels is not None
    rows = sorted(labels.rows.values(), key=lambda row: row.file)
    malignant, benign = ("mel", "bcc", "akiec"), ("nv", "bkl", "df", "vasc")
    splits = {
        "sex": ({"sex": "male"}, {"sex": "female"}),
        **{
            f"{one} or {two}": ({"localization": one}, {"localization": two})
            for one, two in (
                ("back", "lower extremity"), ("trunk", "upper extremity"), ("face", "abdomen"), ("chest", "back"),
                ("abdomen", "lower extremity"), ("face", "trunk"), ("neck", "foot"), ("upper extremity", "face"),
            )
        },
    }  # fmt: skip
    rng = np.random.default_rng(0)
    images: list[str] = []
    tests: list[ImageSets] = []

    def some(condition: dict[str, str], kinds: tuple[str, ...], number: int) -> tuple[int, ...]:
        fitting = [
            row.file
            for row in rows
            if row.label in kinds
            and all(row.columns[key] == value for key, value in condition.items())
            and row.file not in images
        ]
        chosen = [fitting[place] for place in rng.permutation(len(fitting))[:number]]
        images.extend(chosen)
        return tuple(range(len(images) - len(chosen), len(images)))

    for name, (one, two) in splits.items():
        groups = [some(condition, malignant + benign, 12) for condition in (one, two)]
        shows = [some({}, kinds, 16) for kinds in (malignant, benign)]
        tests.append(ImageSets(name, *groups, *shows))
    pixels = torch.stack([_pixels(HAM / "images" / name) for name in images])

    def layers(seed: int) -> dict[str, np.ndarray]:
        backbone = build_backbone("resnet-tiny", norm="group", in_channels=3)
        initialise(backbone, torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            return {name: block.numpy() for name, block in backbone.eval().forward_blocks(pixels).items()}

    raw = []
    chance = [layers(seed) for seed in range(1, 8)]
    for one in chance[:3]:
        for test in tests:
            for layer in one.values():
                found = association_test(*(layer[list(p)] for p in (test.x, test.y, test.a, test.b)), seed=0)
                raw.append(min(found.p_value, 1 - found.p_value) * 2)
    share = np.mean(np.array(raw) < 0.1)
    assert share > 0.2, share  # a test that invents nothing would be at 0.1
    judged = audit(tests, layers(0), chance, seed=0)
    assert [one.test for one in judged if one.verdict == "found"] == []


def _pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize((48, 48))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
