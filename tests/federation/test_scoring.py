"""Sites probe a backbone on their own labels: one rounded figure leaves, and a stage may end by it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Message

from aiseeme_models.downstream.features import extract_features
from aiseeme_models.downstream.probe import knn_probe, linear_probe
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from federation_configs.records import pack
from federation_configs.site_errors import SiteError
from federation_configs.wire import ScoreRequest
from server.global_model import backbone_of, start_of_stage
from server.local_grid import LocalGrid
from server.observer import Silent
from tests.conftest import InProcess, tiny_config
from tests.federation.gated_site import CONFIG
from tests.federation.test_private_rounds import PRIVATE

STAGE = {"task": "rotation", "rounds": 4, "batch_size": 4, "lr": 0.01}


def asked(made: InProcess, site: int, config=CONFIG, **changes) -> Message:
    model = start_of_stage(config, 0, None)
    request = ScoreRequest(
        run="run", config=config, round=1, stage=0, round_in_stage=0, layout_sha256=model.layout.digest, **changes
    )
    grid = LocalGrid(made.app(), len(made.sites))
    (reply,) = grid.pull_messages(
        grid.push_messages([Message(pack(request, model.vector), 2 + site, "query.score", ttl=600, group_id="1")])
    )
    return reply


def by_hand(site, probe: str) -> float:
    """The probe with the public pieces, on the site's own rows."""
    backbone = backbone_of(CONFIG, 0, start_of_stage(CONFIG, 0, None).vector)
    preset = CONFIG.images.resolved_preset
    plain = BatchAugmentation(preset.augmentation, preset.mean, preset.std).plain
    sets = {}
    for split in ("train", "validation"):
        images = site.images(CONFIG.images, split, CONFIG.holdout)
        labels = [row.label for row in site.rows_of(split, CONFIG.holdout)]
        sets[split] = extract_features(backbone, images, plain, device="cpu"), labels
    x, y, x_test, y_test = *sets["train"], *sets["validation"]
    found = knn_probe(x, y, x_test, y_test) if probe == "knn" else linear_probe(x, y, x_test, y_test, seed=3)
    return found.balanced_accuracy


@pytest.mark.parametrize("probe", ["knn", "linear"])
def test_the_score_is_the_probe_on_the_sites_own_validation_images(probe, three):
    body = json.loads(asked(three, 1, probe=probe).content["body"]["json"])
    assert body["score"] == pytest.approx(by_hand(three.sites[1], probe), abs=5e-4)
    assert body["score"] == round(body["score"], 3)
    assert body["images"] == len(three.sites[1].rows_of("validation", CONFIG.holdout))
    assert set(body) == {"nonce", "site", "round", "stage", "images", "score", "seconds"}


def test_a_site_with_few_held_out_images_or_no_labels_says_so_and_no_more(three):
    assert asked(three, 2).error.code == SiteError.TOO_FEW_HELD_OUT
    site = three.sites[0]
    three.sites[0] = replace(site, rows=[replace(row, label=None) for row in site.rows], _opened={})
    assert asked(three, 0).error.code == SiteError.NO_LABELS
    three.sites[0] = replace(site, rows=[replace(row, label="nevus") for row in site.rows], _opened={})
    assert asked(three, 0).error.code == SiteError.NO_LABELS


def test_no_exact_figure_leaves_under_privacy(three):
    assert asked(three, 0, tiny_config(privacy=PRIVATE, curriculum={"stage": [STAGE]})).error.code == SiteError.WITHHELD


class Told(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def probed(**changes):
    return tiny_config(
        curriculum={"stage": [STAGE | {"stop": "probe", "patience": 1, "min_improvement": 0.5} | changes]},
        holdout={"test": 0.1, "validation": 0.5},
    )


def test_a_stage_ends_when_the_probe_no_longer_rises(three):
    three.config, observer = probed(), Told()
    state, _ = three.play(observer)
    stage = state.stages[0]
    assert stage.stopped_by == "probe"
    assert stage.rounds_done == len(stage.scores) == 2, "no halving of the error in the second round"
    assert all(0 < score <= 1 for score in stage.scores)
    assert observer.notes == [f"gamma did not score the backbone: {SiteError.TOO_FEW_HELD_OUT.sentence}"] * 2


def test_a_crashed_run_ends_at_the_same_round_with_the_same_bits(three, tmp_path):
    three.config = probed(patience=2)

    class Crash(Silent):
        def round_started(self, config, state, round_number, attempt):
            if round_number == 2:
                raise KeyboardInterrupt

    whole = three.play(run="whole")
    with pytest.raises(KeyboardInterrupt):
        three.play(Crash(), run="crashed")
    again = three.play(run="crashed")
    assert [stage.scores for stage in again[0].stages] == [stage.scores for stage in whole[0].stages]
    assert (again[1] == whole[1]).all()


@pytest.mark.parametrize(
    "lie", [{"score": 1.5}, {"score": -0.1}, {"images": 5}, {"images": 10**6}, {"site": "beta"}, {"classes": 2}]
)
def test_a_score_that_cannot_be_does_not_count(lie, three):
    three.config, observer = probed(rounds=1), Told()

    def alter(message, reply):
        if message.metadata.message_type == "query.score":
            body = json.loads(reply.content["body"]["json"]) | lie
            reply.content["body"] = ConfigRecord({"json": json.dumps(body)})
        return reply

    three.alter = {"alpha": alter}
    three.play(observer)
    assert any(note.startswith("alpha did not score the backbone: the reply") for note in observer.notes)


def test_where_nobody_can_score_the_stage_plays_all_its_rounds(federation):
    state, _ = federation(probed()).play()
    assert (state.stages[0].stopped_by, state.stages[0].rounds_done, state.stages[0].scores) == ("rounds", 4, [])


def test_a_probe_needs_held_out_images_and_no_privacy():
    with pytest.raises(InputError, match="stop = 'probe' needs held-out images"):
        tiny_config(curriculum={"stage": [STAGE | {"stop": "probe"}]}, holdout={"validation": 0.0})
    with pytest.raises(InputError, match=r"stop = 'probe' needs a figure of held-out images"):
        tiny_config(curriculum={"stage": [STAGE | {"stop": "probe"}]}, privacy=PRIVATE)
