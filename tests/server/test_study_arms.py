"""What a study compares, and that all that is trained is trained on equally many images."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest

from aiseeme_models.errors import InputError
from client.scanning import scan
from client.site import Site
from server.study import study_kinds
from server.study.compute import Compute, check_equal, planned
from server.study.dealing import Share
from tests.server.studies import LOCATION, ROTATION, SIMCLR, study_config

MOCO = {"task": "moco", "rounds": 1, "batch_size": 4, "options": {"queue": 16}}


@pytest.fixture
def sites(three_folders, site_home, tmp_path) -> list[Site]:
    made = []
    for data in three_folders:
        scanned = scan(data, site_home, study_config().images.pipeline)
        made.append(Site(data.name, scanned.root, scanned.rows, site_home.store, tmp_path / data.name))
    return made


def arms_of(kind, config, **options):
    return {arm.name: arm for arm in study_kinds[kind](**options).arms(config)}


def order_of(arm) -> list[str]:
    return [stage.task for stage in arm.stages]


@pytest.mark.parametrize("kind", ["order", "tasks", "volume"])
@pytest.mark.parametrize("stages", [(ROTATION, SIMCLR), (ROTATION, LOCATION, SIMCLR)])
def test_everything_that_is_trained_takes_equal_compute(kind, stages, sites):
    config = study_config(*(stage | {"batch_size": 2} for stage in stages))  # a tenth of alpha is two images
    takes = {name: arm.compute(config, sites).images for name, arm in arms_of(kind, config).items()}
    trained = {name: images for name, images in takes.items() if images}
    assert len(trained) >= 4
    assert len(set(trained.values())) == 1, trained


def test_a_grid_of_batch_sizes_takes_equal_compute_in_other_steps(sites):
    config = study_config()
    arms = arms_of("hyperparameters", config, lr=(0.01, 0.001), batch=(2, 3, 4))
    assert len(arms) == 6
    takes = {name: arm.compute(config, sites) for name, arm in arms.items()}
    assert len({compute.images for compute in takes.values()}) == 1
    assert takes["lr-0.01-batch-2"].steps > takes["lr-0.01-batch-4"].steps


def test_compute_is_what_the_rounds_add_up_to():
    """By hand: 10 images in batches of 4 are 2 steps of 4, 3 images 1 step of 3; two rounds, then one of 2 epochs."""
    config = study_config(SIMCLR, ROTATION | {"local_epochs": 2})
    found = planned(config.curriculum.stage, [10, 3])
    assert found == Compute(steps=2 * (2 + 1) + (4 + 2), images=2 * (8 + 3) + (16 + 6))


def test_unequal_arms_are_refused_with_what_each_takes():
    with pytest.raises(InputError, match=r"a: 100; b: 90.*same batch_size"):
        check_equal({"a": Compute(10, 100), "b": Compute(9, 90)})


def test_every_order_of_three_tasks_is_played_the_given_one_first_and_its_reverse_second():
    config = study_config(ROTATION, LOCATION, SIMCLR)
    arms = list(arms_of("order", config).values())
    orders = [tuple(order_of(arm)) for arm in arms[:6]]
    given = ("rotation", "relative-location", "simclr")
    assert orders[:2] == [given, given[::-1]]
    assert set(orders) == set(permutations(given))
    assert [arm.name for arm in arms[6:]] == [
        "rotation-alone",
        "relative-location-alone",
        "simclr-alone",
        "random",
        "floor",
    ]


def test_a_stage_keeps_its_rounds_wherever_it_stands_and_a_single_task_has_all_of_them():
    arms = arms_of("order", study_config(ROTATION, SIMCLR))
    assert {stage.task: stage.rounds for stage in arms["simclr-then-rotation"].stages} == {"rotation": 1, "simclr": 2}
    assert [stage.rounds for stage in arms["simclr-alone"].stages] == [3]


def test_of_four_tasks_some_orders_are_drawn_by_the_seed():
    config = study_config(ROTATION, LOCATION, SIMCLR, MOCO)

    def orders(seed):
        made = arms_of("order", config.model_copy(update={"seed": seed}), drawn=3).values()
        return [tuple(order_of(arm)) for arm in made if len(getattr(arm, "stages", ())) == 4]

    assert len(set(orders(3))) == len(orders(3)) == 5
    assert orders(3)[1] == orders(3)[0][::-1]
    assert orders(3) == orders(3) != orders(4)


def test_a_stage_that_comes_first_has_no_teacher():
    distilled = SIMCLR | {"distill": {"weight": 1.0, "kind": "mse"}}
    arms = arms_of("order", study_config(ROTATION, distilled))
    assert arms["rotation-then-simclr"].stages[1].distill is not None
    assert arms["simclr-then-rotation"].stages[0].distill is None
    assert arms["simclr-alone"].stages[0].distill is None


def test_given_weights_make_arms_of_their_own():
    assert {"given-rotation-then-simclr", "given"} <= set(arms_of("order", study_config(), initial=True))
    assert not any(name.startswith("given") for name in arms_of("order", study_config()))


def test_each_site_alone_and_all_in_one_place_have_the_same_images_and_steps(sites):
    config = study_config()
    arms = arms_of("tasks", config)
    alone = arms["local-only"].trainings(config, sites)
    assert [[site.name for site in one.sites] for one in alone] == [["alpha"], ["beta"], ["gamma"]]
    (pooled,) = arms["pooled"].trainings(config, sites)
    everybody = Counter(row.content for site in sites for row in site.rows)
    assert Counter(row.content for row in pooled.sites[0].rows) == everybody
    assert arms["pooled"].compute(config, sites).steps == arms["federated"].compute(config, sites).steps


def test_a_share_has_whole_training_patients_is_nested_and_leaves_the_other_splits(sites):
    config = study_config(ROTATION | {"batch_size": 2}, SIMCLR | {"batch_size": 2})
    shares = {f: Share(f)(config, sites, config.curriculum.stage)[0].sites for f in (0.25, 0.5, 1.0)}
    for number, site in enumerate(sites):
        patients = site.training_patients(config.holdout)
        groups = {}
        for fraction, some in shares.items():
            kept = some[number]
            groups[fraction] = {row.group for row in kept.rows_of("train", config.holdout)}
            assert len(groups[fraction]) == -int(-fraction * patients // 1)
            whole = [row for row in site.rows_of("train", config.holdout) if row.group in groups[fraction]]
            assert kept.rows_of("train", config.holdout) == whole
            for split in ("validation", "test"):
                assert kept.rows_of(split, config.holdout) == site.rows_of(split, config.holdout)
        assert groups[0.25] < groups[0.5] < groups[1.0]


def test_a_share_that_is_smaller_than_a_batch_is_refused_with_the_site(sites):
    config = study_config(SIMCLR | {"batch_size": 8})
    with pytest.raises(InputError, match=r"alpha would have \d training images, fewer than batch_size = 8"):
        Share(0.1)(config, sites, config.curriculum.stage)


@pytest.mark.parametrize(
    ("kind", "stages", "options", "says"),
    [
        ("order", (SIMCLR,), {}, "at least two stages"),
        ("hyperparameters", (SIMCLR,), {}, "at least two settings"),
        ("hyperparameters", (SIMCLR,), {"lr": (1e-3, 1e-2), "stage": 2}, "the curriculum has 1 stages"),
    ],
)
def test_a_study_of_nothing_is_refused(kind, stages, options, says):
    with pytest.raises(InputError, match=says):
        arms_of(kind, study_config(*stages), **options)
