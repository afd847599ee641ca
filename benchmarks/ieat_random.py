"""What untrained networks "show" in a bias audit by the raw count, and what its gate and correction leave of that.

Groups by sex, age band and place of the body, attributes by kind of lesion, on real images of skin lesions (HAM10000):
every pair of groups with every pair of attributes, one image of a lesion, at most so many of a set. Each untrained
network is tested at every layer, one-sided as SB-SSL (arXiv 2203.01854) counts, and audited beside all others. Once the
sets are drawn as there (the group alone decides), once as the audit draws them (groups of the same mix of attributes).
Prints one line of JSON: ``python -m benchmarks.ieat_random --data FOLDER [--networks 12] [--norm batch]``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aiseeme_models.analysis.bias import ImageSets, Measured, control_p_value, judge
from aiseeme_models.analysis.ieat import association_test
from aiseeme_models.analysis.image_sets import AssociationTest, Columns, Condition, draw_sets
from aiseeme_models.analysis.layer_features import layer_features, layer_names
from aiseeme_models.backbones import build_backbone, initialise
from aiseeme_models.downstream.features import recalibrate_batch_norm
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.seeding import derive_seed, generator
from federation_configs.command_line import console
from federation_configs.loading import check_config
from server.progress import Progress
from server.simulation import hospitals_of

PLACES = ("back", "lower extremity", "upper extremity", "trunk", "face", "abdomen", "chest")
GROUPS = (
    "sex=female:sex=male",
    "age=..39:age=60..",
    "age=..49:age=50..",
    "age=40..59:age=60..",
    *(f"localization={one}:localization={other}" for one, other in itertools.combinations(PLACES, 2)),
)
ATTRIBUTES = ("label=mel,bcc,akiec:label=nv,bkl,df,vasc", "label=mel:label=nv", "label=bcc,akiec:label=bkl")
RAW = 0.1
FEWEST = 8

Draw = Callable[[AssociationTest, Sequence[Columns], int], ImageSets]


def as_published(test: AssociationTest, images: Sequence[Columns], seed: int) -> ImageSets:
    """Any images that fulfil a condition, none of them twice, the rarer sets first."""
    rng = np.random.default_rng(derive_seed(seed, "as published", test.name))
    order = rng.permutation(len(images)).tolist()
    fitting = [[place for place in order if one.holds(images[place])] for one in test.conditions]
    size = min(min(map(len, fitting)) // 2, 64)
    used: set[int] = set()
    drawn: dict[int, tuple[int, ...]] = {}
    for which in sorted(range(4), key=lambda which: len(fitting[which])):
        drawn[which] = tuple([place for place in fitting[which] if place not in used][:size])
        used |= set(drawn[which])
    return ImageSets(test.name, drawn[0], drawn[1], drawn[2], drawn[3])


def as_audited(test: AssociationTest, images: Sequence[Columns], seed: int) -> ImageSets:
    """As a site draws them."""
    return draw_sets(test, images, seed=seed)


DRAWS: dict[str, Draw] = {"as published": as_published, "as audited": as_audited}


def capped(sets: ImageSets, most: int) -> ImageSets:
    """At most so many of a set."""
    rng = np.random.default_rng(derive_seed(0, "cap", sets.name))
    return ImageSets(
        sets.name,
        *(tuple(rng.permutation(np.array(one, int))[:most].tolist()) for one in (sets.x, sets.y, sets.a, sets.b)),
    )


def told(tests: Sequence[ImageSets], measured: list[dict[tuple[str, str], Measured]]) -> dict[str, Any]:
    """Raw counts, and what audits of each network beside the others find."""
    layers = list(dict.fromkeys(layer for _, layer in measured[0]))
    below = {layer: np.mean([one.association.p_value < RAW for network in measured for one in network.values()
                             if one.layer == layer]) for layer in layers}  # fmt: skip
    audits = []
    for place, network in enumerate(measured):
        others = measured[:place] + measured[place + 1 :]
        beside = [
            Measured(
                one.test, one.layer, one.association, one.control, tuple(o[key].association.effect for o in others)
            )
            for key, one in network.items()
        ]
        audits.append(judge(beside))
    verdicts = [one.verdict for audit in audits for one in audit]
    every = [one.association for network in measured for one in network.values()]
    pooled = [one.association.p_value for network in measured for one in network.values() if one.layer == layers[-1]]
    return {
        "tests": len(tests),
        "images_in_a_group": [min(len(one.x) for one in tests), max(len(one.x) for one in tests)],
        "raw_below_0.1": round(float(np.mean([one.p_value < RAW for one in every])), 3),
        "raw_below_0.1_last_layer": round(float(np.mean(np.array(pooled) < RAW)), 3),
        "raw_below_0.1_by_layer": {layer: round(float(share), 3) for layer, share in below.items()},
        "raw_two_sided_below_0.1": round(float(np.mean([one.two_sided < RAW for one in every])), 3),
        "judged": len(verdicts),
        "not_testable": round(verdicts.count("not testable") / len(verdicts), 3),
        "found": verdicts.count("found"),
        "audits_that_find_any": sum(any(one.verdict == "found" for one in audit) for audit in audits),
    }


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="HAM10000 with labels.csv, or as published")
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--set", type=int, default=64, help="most images of a set")
    parser.add_argument("--backbone", default="resnet-small")
    parser.add_argument("--norm", default="group")
    parser.add_argument("--size", type=int, default=48)
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    stage = {"task": "rotation", "rounds": 1, "batch_size": 8}
    table = {
        "name": "ieat-random",
        "images": {"preset": "dermoscopy", "size": given.size},
        "curriculum": {"stage": [stage]},
        "holdout": {"test": 0.8, "validation": 0.0},
    }
    config = check_config(table, where="benchmark")
    with tempfile.TemporaryDirectory() as made:
        home, screen = Path(made), Progress(console(stderr=True))
        (site,) = hospitals_of(config, [given.data], 1, None, "cpu", home, home / "sites", screen).sites
        rows = site.rows_of_images(config.images, "test", config.holdout)
        first = {row.group: place for place, row in reversed(list(enumerate(rows)))}
        places = sorted(first.values())[: given.images]
        images = site.images(config.images, "test", config.holdout).only(places)
        known: list[Columns] = [{**rows[place].columns, "label": rows[place].label} for place in places]
        pairs = [
            [[Condition.parse(part) for part in text.split(":")] for text in texts] for texts in (GROUPS, ATTRIBUTES)
        ]
        asked = [AssociationTest(x=x, y=y, a=a, b=b) for (x, y), (a, b) in itertools.product(*pairs)]
        drawn = {name: [capped(draw(test, known, 0), given.set) for test in asked] for name, draw in DRAWS.items()}
        tests = {
            name: [sets for sets in many if min(map(len, (sets.x, sets.y, sets.a, sets.b))) >= FEWEST]
            for name, many in drawn.items()
        }
        plain = BatchAugmentation.of(config.images.resolved_preset).plain
        measured: dict[str, list[dict[tuple[str, str], Measured]]] = {name: [] for name in DRAWS}
        for number in range(given.networks):
            network = build_backbone(given.backbone, norm=given.norm, in_channels=3)
            initialise(network, generator(number, "untrained"))
            recalibrate_batch_norm(network, images, plain, device="cpu")
            features = layer_features(network, images, plain, layers=layer_names(network), device="cpu")
            for name, many in tests.items():
                measured[name].append(
                    {
                        (sets.name, layer): Measured(
                            sets.name,
                            layer,
                            association_test(*(found[list(p)] for p in (sets.x, sets.y, sets.a, sets.b)), seed=0),
                            control_p_value(found, sets, 0),
                            (),
                        )
                        for sets in many
                        for layer, found in features.items()
                    }
                )
    line = {"benchmark": "ieat_random", "backbone": given.backbone, "norm": given.norm, "size": given.size,
            "networks": given.networks, "images": len(known)}  # fmt: skip
    line |= {name: told(tests[name], measured[name]) for name in DRAWS}
    print(json.dumps(line | {"seconds": round(time.perf_counter() - started)}))


if __name__ == "__main__":
    main()
