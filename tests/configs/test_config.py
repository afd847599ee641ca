"""A configuration says what it means, and a wrong one says what is wrong, where, and what would be right."""

from __future__ import annotations

import copy
import tomllib

import pytest

from aiseeme_models.errors import InputError
from aiseeme_models.pretext import pretext_tasks
from federation_configs.aggregation import aggregation_options
from federation_configs.loading import check_config, config_sha256, load_config, ready_made, to_toml
from server.aggregation import aggregations

GOOD = {
    "name": "good",
    "images": {"preset": "dermoscopy", "size": 64},
    "model": {"backbone": "resnet-small"},
    "curriculum": {"stage": [{"task": "simclr", "rounds": 2}]},
}


def changed(path: str, value: object) -> dict:
    """`GOOD` with one key changed; the path's parts are keys and indices."""
    config = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place: object = config
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    place[last] = value
    return config


READY_MADE = [
    "demo", "skin", "lung", "skin-small", "lung-small", "nodules-small", "nodules3d-small", "skin-private",
    "study-skin", "study-lung",
]  # fmt: skip


@pytest.mark.parametrize("name", READY_MADE)
def test_ready_made_federations_are_right(name):
    assert name in ready_made()
    config = load_config(name)
    assert config.name == name


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("nmae", "x", "nmae: unknown key; did you mean name?"),
        ("images.sise", 3, "images.sise: unknown key; did you mean size?"),
        ("curriculum.stage.0.round", 3, "curriculum.stage.0.round: unknown key; did you mean rounds?"),
        ("images.size", "large", "images.size: input should be a valid integer"),
        ("images.size", 64.5, "images.size: input should be a valid integer"),
        ("images.size", 4, "images.size: input should be greater than or equal to 16"),
        ("images.preset", "x-ray", "there are chest-xray, ct-lung, ct-nodule, dermoscopy"),
        ("model.backbone", "resnet19", "did you mean 'resnet1"),
        ("model.norm", "layer", "model.norm: input should be 'group', 'group-ws', 'batch' or 'batch-local'"),
        ("name", "../../etc", "name: string should match pattern"),
        ("seed", -1, "seed: input should be greater than or equal to 0"),
        ("curriculum.stage", [], "curriculum.stage"),
        ("curriculum.stage", [{"rounds": 2}], "curriculum.stage.0.task: missing"),
        ("curriculum.stage", [{"task": "simclr"}], "curriculum.stage.0.rounds: missing"),
        ("curriculum.stage.0.task", "simclrr", "did you mean 'simclr'?"),
        ("curriculum.stage.0.rounds", 0, "rounds: input should be greater than or equal to 1"),
        ("curriculum.stage.0.lr", -0.1, "lr: input should be greater than 0"),
        ("curriculum.stage.0.lr", float("nan"), "lr: input should be"),
        ("curriculum.stage.0.optimizer", "adam", "unknown optimizer 'adam'"),
        ("curriculum.stage.0.options", {"temprature": 1.0}, "options.temprature: unknown key (simclr has temperature"),
        ("curriculum.stage.0.batch_size", 1, "batch_size must be at least 2"),
        ("federation.aggregation", "average", "there are fedadam, fedavg"),
        ("federation.aggregation_options", {"mu": 1.0}, "aggregation_options.mu: unknown key (fedavg has no options)"),
        ("federation.min_sites", 0, "min_sites: input should be greater than or equal to 1"),
        ("federation.keep_checkpoints", 1, "keep_checkpoints: input should be greater than or equal to 2"),
        ("holdout", {"test": 0.7, "validation": 0.5}, "together may hold out at most 0.9"),
        ("probe.k", 0, "probe.k: input should be greater than or equal to 1"),
    ],
)
def test_a_mistake_is_named_with_its_file_its_key_and_what_would_be_right(path, value, says):
    with pytest.raises(InputError) as error:
        check_config(changed(path, value), where="federation.toml")
    text = str(error.value)
    assert text.startswith("federation.toml: ")
    assert says.lower() in text.lower()
    assert "pydantic" not in text


def test_several_mistakes_are_named_at_once():
    config = changed("images.size", 3) | {"colour": "red"}
    with pytest.raises(InputError) as error:
        check_config(config, where="f.toml")
    assert len(str(error.value).splitlines()) == 2


def test_a_queue_that_the_batch_does_not_divide_is_refused_before_anything_runs():
    stage = {"task": "moco", "rounds": 1, "batch_size": 48, "options": {"queue": 100}}
    with pytest.raises(InputError, match="queue"):
        check_config(changed("curriculum.stage", [stage]), where="f.toml")


def test_a_plateau_needs_held_out_images():
    config = changed("curriculum.stage.0.stop", "plateau") | {"holdout": {"validation": 0.0}}
    with pytest.raises(InputError, match="curriculum.stage.0 .simclr.: stop = 'plateau' needs held-out images"):
        check_config(config, where="f.toml")


@pytest.mark.parametrize("task", ["npid", "deepcluster"])
def test_a_plateau_is_not_sought_in_a_loss_that_rises_while_the_task_is_learnt(task):
    stage = {"task": task, "rounds": 9, "stop": "plateau"}
    with pytest.raises(InputError, match=f"curriculum.stage.0 .{task}.: stop = 'plateau'.*'rounds' or 'probe'"):
        check_config(changed("curriculum.stage", [stage]), where="f.toml")
    check_config(changed("curriculum.stage", [stage | {"stop": "rounds"}]), where="f.toml")


def test_relative_location_needs_an_image_that_a_grid_fits_in():
    config = changed("curriculum.stage.0.task", "relative-location")
    config["images"]["size"] = 32
    with pytest.raises(InputError, match="3x3 grid"):
        check_config(config, where="f.toml")


def test_colourisation_needs_images_with_colours():
    config = changed("curriculum.stage.0.task", "colourisation") | {"images": {"preset": "chest-xray", "size": 48}}
    with pytest.raises(InputError, match="curriculum.stage.0 .colourisation.: .*needs colours"):
        check_config(config, where="f.toml")


def test_whole_numbers_are_fine_where_numbers_are_meant():
    assert check_config(changed("curriculum.stage.0.lr", 1), where="f").curriculum.stage[0].learning_rate == 1.0


def test_the_resolved_configuration_means_the_same_and_has_the_same_digest(tmp_path):
    config = check_config(GOOD, where="f")
    path = tmp_path / "resolved.toml"
    path.write_text(to_toml(config))
    assert load_config(path) == config
    assert config_sha256(load_config(path)) == config_sha256(config)
    assert tomllib.loads(to_toml(config))["federation"]["min_sites"] == 2


def test_one_strength_of_the_augmentation_leaves_the_preset_s_others(tmp_path):
    config = check_config(changed("images.augmentation", {"crop_min": 0.2}), where="f")
    preset = check_config(GOOD, where="f").images.resolved_preset
    assert config.images.resolved_preset.augmentation == preset.augmentation.model_copy(update={"crop_min": 0.2})
    again = check_config(tomllib.loads(to_toml(config)), where="f")  # as it is written to a run's folder
    assert again == config
    assert type(config).model_validate_json(config.model_dump_json()) == config  # as it crosses the wire


def test_the_digest_follows_the_meaning_not_the_layout():
    same = check_config(changed("seed", 0), where="f")
    assert config_sha256(same) == config_sha256(check_config(GOOD, where="f"))
    assert config_sha256(check_config(changed("seed", 1), where="f")) != config_sha256(same)


@pytest.mark.parametrize("content", [b"name = [", b"\xff\xfe", b""])
def test_a_file_that_is_no_configuration(tmp_path, content):
    path = tmp_path / "f.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        (".".join("a" * 3000) + " = 1", "nested too deeply"),
        ("seed = " + "1" * 5000, "not valid TOML"),
        ("seed = 0x" + "f" * 5000, "digits"),
    ],
)
def test_a_file_that_would_exhaust_the_parser_is_a_mistake(tmp_path, content, says):
    path = tmp_path / "f.toml"
    path.write_text(content)
    with pytest.raises(InputError, match=f"{path}: .*{says}"):
        load_config(path)


def test_every_aggregation_has_its_options_in_the_schema():
    assert {name: aggregations[name].options_type for name in aggregations} == {
        name: aggregation_options[name] for name in aggregation_options
    }


def test_a_rate_by_the_paper_is_its_own_in_proportion_to_the_batch():
    stage = check_config(changed("curriculum.stage", [{"task": "simclr", "rounds": 2, "lr": "paper"}]), "x").curriculum
    assert (stage.stage[0].optimizer, stage.stage[0].lr, stage.stage[0].weight_decay) == ("lars", 0.3 * 64 / 256, 1e-6)
    for task in pretext_tasks:
        table = {"task": task, "rounds": 2, "lr": "paper", "batch_size": 128}
        recipe = pretext_tasks[task].recipe
        if recipe is None:
            continue
        config = changed("curriculum.stage", [table]) | {"model": {"backbone": "resnet-small", "norm": "batch"}}
        lr = check_config(config, "x").curriculum.stage[0].lr
        assert lr == pytest.approx(recipe.lr * 128 / recipe.batch)


def test_a_rate_by_the_paper_is_refused_where_a_task_has_no_recipe_of_its_own():
    options = {"tasks": [{"task": "rotation"}, {"task": "simclr"}]}
    table = {"task": "multi-task", "rounds": 2, "lr": "paper", "options": options}
    with pytest.raises(InputError, match="multi-task has none: give lr a number"):
        check_config(changed("curriculum.stage", [table]), "x")


def test_a_rate_by_the_paper_says_nothing_for_another_optimizer():
    table = {"task": "simclr", "rounds": 2, "lr": "paper", "optimizer": "adamw"}
    with pytest.raises(InputError, match="simclr's own optimizer, lars"):
        check_config(changed("curriculum.stage", [table]), "x")


SEVERAL = [{"task": "rotation"}, {"task": "simclr"}]


def several(**options: object) -> dict:
    table = {"task": "multi-task", "rounds": 2, "options": {"tasks": SEVERAL} | options}
    return changed("curriculum.stage", [table])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tasks": [{"task": "rotation"}]}, "options: tasks must name at least two"),
        ({"tasks": [SEVERAL[0], SEVERAL[0]]}, "options: tasks names a task twice"),
        ({"tasks": [SEVERAL[0], {"task": "simclrr"}]}, "options.tasks.1: unknown pretext task 'simclrr'"),
        (
            {"tasks": [SEVERAL[0], {"task": "simclr", "options": {"temprature": 1.0}}]},
            "options.tasks.1: options.temprature: unknown key (simclr has temperature, hidden_dim, projection_dim)",
        ),
        ({"tasks": [SEVERAL[0], {"task": "multi-task"}]}, "options.tasks.1: multi-task cannot be one of its own tasks"),
        ({"tasks": [SEVERAL[0], {}]}, "options.tasks.1.task: field required"),
        (
            {"tasks": [SEVERAL[0], {"task": "moco", "options": {"queue": 100}}]},
            "curriculum.stage.0 (multi-task): options.tasks.1: moco's queue must be a multiple of batch_size",
        ),
        ({"tasks": [SEVERAL[0], {"task": "byol"}]}, "options.tasks.1: byol collapses with model.norm = 'group'"),
        ({"weighting": "kendall"}, "there are dwa, equal, self-paced, uncertainty"),
        (
            {"weighting": "dwa", "weighting_options": {"tau": 3.0}},
            "options: weighting_options.tau: unknown key (dwa has temperature)",
        ),
        ({"weight": 1}, "options.weight: unknown key (multi-task has tasks, weighting, weighting_options)"),
    ],
)
def test_each_of_several_tasks_is_checked_as_if_it_were_alone(options, says):
    with pytest.raises(InputError) as error:
        check_config(several(**options), where="f.toml")
    assert says.lower() in str(error.value).lower()


def test_several_tasks_must_be_named():
    with pytest.raises(InputError, match=r"options.tasks: Field required \(multi-task has tasks, weighting"):
        check_config(changed("curriculum.stage", [{"task": "multi-task", "rounds": 2}]), where="f.toml")


def test_a_plateau_is_not_sought_where_the_loss_of_one_of_several_tasks_rises_at_first():
    config = several(tasks=[SEVERAL[0], {"task": "npid"}])
    config["curriculum"]["stage"][0]["stop"] = "plateau"
    with pytest.raises(InputError, match="rises in the first rounds of npid"):
        check_config(config, where="f.toml")


def test_several_tasks_keep_their_options_on_every_way(tmp_path):
    moco = {"task": "moco", "options": {"queue": 128, "temperature": 1}}
    options = {"tasks": [SEVERAL[0], moco], "weighting": "self-paced", "weighting_options": {"soft": True}}
    config = check_config(several(**options), where="f")
    stage = config.curriculum.stage[0]
    assert stage.options.tasks[1].options.queue == 128
    assert stage.options.weighting_options.soft
    assert (stage.tasks, stage.title) == (("multi-task", "rotation", "moco"), "multi-task (rotation + moco)")
    path = tmp_path / "resolved.toml"
    path.write_text(to_toml(config))
    assert load_config(path) == config
    assert type(config).model_validate_json(config.model_dump_json()) == config
    assert config_sha256(config) != config_sha256(check_config(several(**options | {"weighting_options": {}}), "f"))


@pytest.mark.parametrize(
    ("tasks", "weighting", "says"),
    [
        (("rotation", "relative-location"), "equal", None),
        (("rotation", "simclr"), "equal", "multi-task has simclr, which compares images with others"),
        (("rotation", "relative-location"), "dwa", "losses that are kept without noise.*use weighting = 'equal'"),
        (("rotation", "relative-location"), "self-paced", "losses that are kept without noise"),
        (("rotation", "relative-location"), "uncertainty", "weighting = 'uncertainty'.*use weighting = 'equal'"),
    ],
)
def test_private_training_of_several_tasks_needs_each_to_be_private_and_weights_that_tell_nothing(
    tasks, weighting, says
):
    config = several(tasks=[{"task": task} for task in tasks], weighting=weighting)
    config["privacy"] = {"noise_multiplier": 1.0}
    if says is None:
        check_config(config, where="f")
        return
    with pytest.raises(InputError, match=says):
        check_config(config, where="f")
