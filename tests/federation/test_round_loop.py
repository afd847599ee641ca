"""A federation plays its curriculum, and no site can spoil it or learn from its errors."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from aiseeme_models.errors import RunFailed
from aiseeme_models.pretext import pretext_tasks
from federation_configs.records import pack, unpack_body, unpack_weights
from federation_configs.wire import DescribeReply, TrainReply, TrainRequest, told_loss
from server.global_model import start_of_stage
from server.observer import Silent
from tests.conftest import tiny_config
from tests.models.small_tasks import SMALL

SECRET = "/srv/pacs/MUSTERMANN^ERIKA/1.2.840.99"


def is_training(message: Message) -> bool:
    return message.metadata.message_type == "train"


def changed_body(**fields):
    """A site that lies about what it did."""

    def alter(message, reply):
        if not is_training(message):
            return reply
        body = json.loads(reply.content["body"]["json"]) | fields
        reply.content["body"] = ConfigRecord({"json": json.dumps(body)})
        return reply

    return alter


def changed_weights(change):
    """A site that sends other weights."""

    def alter(message, reply):
        if not is_training(message):
            return reply
        weights = reply.content["weights"]["flat"].numpy().copy()
        reply.content["weights"] = ArrayRecord({"flat": Array(change(weights))})
        return reply

    return alter


def raises(message, reply):
    if is_training(message):
        raise RuntimeError(f"cannot open {SECRET}")
    return reply


def foreign_error(message, reply):
    return Message(Error(2, f"cannot open {SECRET}"), reply_to=message) if is_training(message) else reply


def with_header(header: bytes):
    """A site whose array says the right type and shape outside, and something else in NumPy's own header."""

    def alter(message, reply):
        if is_training(message):
            size = reply.content["weights"]["flat"].shape[0]
            text = header.ljust(118 if len(header) < 118 else len(header)) + b"\n"
            data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4 * size)
            reply.content["weights"] = ArrayRecord({"flat": Array("float32", (size,), "numpy.ndarray", data)})
        return reply

    return alter


def extra_record(message, reply):
    if is_training(message):
        reply.content["notes"] = ConfigRecord({"patient": SECRET})
    return reply


def two_arrays(message, reply):
    if is_training(message):
        reply.content["weights"]["queue"] = Array(np.zeros(3, np.float32))
    return reply


def with_nan(weights):
    weights[7] = np.nan
    return weights


def with_infinity(weights):
    weights[-1] = -np.inf
    return weights


MISBEHAVIOUR = {
    "NaN": (changed_weights(with_nan), "not-finite"),
    "infinity": (changed_weights(with_infinity), "not-finite"),
    "far out of range": (changed_weights(lambda w: w + np.float32(1e6)), "out-of-range"),
    "too few values": (changed_weights(lambda w: w[:-1]), "malformed-reply"),
    "a shape that would broadcast": (changed_weights(lambda w: w[:1]), "malformed-reply"),
    "a matrix": (changed_weights(lambda w: w[None]), "malformed-reply"),
    "doubles": (changed_weights(lambda w: w.astype(np.float64)), "malformed-reply"),
    "integers": (changed_weights(lambda w: w.astype(np.int64)), "malformed-reply"),
    "a pickle": (with_header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"), "malformed-reply"),
    "a header that is no Python": (with_header(b"((("), "malformed-reply"),
    "a header that nests too deep": (with_header(b"-" * 3900 + b"1"), "malformed-reply"),
    "a header of another shape": (
        with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"),
        "malformed-reply",
    ),
    "steps that it cannot have made": (changed_body(steps=10_000), "impossible-count"),
    "fewer images than it declared": (changed_body(images=1), "impossible-count"),
    "a time beyond the deadline": (changed_body(seconds=1e9), "impossible-count"),
    "a loss below zero": (changed_body(loss=-1e9), "malformed-reply"),
    "two arrays": (two_arrays, "malformed-reply"),
    "zero images": (changed_body(images=0), "impossible-count"),
    "negative images": (changed_body(images=-5), "malformed-reply"),
    "a billion images": (changed_body(images=1_000_000_000), "impossible-count"),
    "half an image": (changed_body(images=1.5), "malformed-reply"),
    "an extra metric": (changed_body(accuracy=0.9), "malformed-reply"),
    "an extra record": (extra_record, "malformed-reply"),
    "a loss that is no number": (changed_body(loss="low"), "malformed-reply"),
    "another round": (changed_body(round=99), "wrong-question"),
    "another site's name": (changed_body(site="alpha"), "wrong-question"),
    "a path as its name": (changed_body(site="../../etc"), "malformed-reply"),
    "an exception with a path": (raises, "foreign-error"),
    "Flower's error with a path": (foreign_error, "foreign-error"),
}


@pytest.mark.parametrize("what", MISBEHAVIOUR)
def test_the_round_goes_on_without_a_site_that_sends(what, federation):
    alter, code = MISBEHAVIOUR[what]
    config = tiny_config(curriculum={"stage": [{"task": "rotation", "rounds": 1, "batch_size": 4}]})
    bad = federation(config, {"beta": alter}, where="bad")
    state, vector = bad.play()

    assert state.finished
    assert [missed.code for missed in state.sites["beta"].missed] == [code]
    assert state.sites["beta"].answered == 0
    assert state.sites["alpha"].answered == state.sites["gamma"].answered == 1
    assert np.isfinite(vector).all()
    # To the bit what a federation gives in which beta never answers.
    silent = federation(
        config, {"beta": lambda m, r: Message(Error(3, ""), reply_to=m) if is_training(m) else r}, "silent"
    )
    np.testing.assert_array_equal(vector, silent.play()[1])
    for file in (bad.folder / "run").rglob("*"):
        if file.is_file():
            assert b"MUSTERMANN" not in file.read_bytes(), file


def test_a_site_s_own_exception_leaves_it_as_a_code_only(federation, monkeypatch):
    played = federation()
    beta = played.sites[1]
    monkeypatch.setattr(type(beta), "images", lambda self, *a: (_ for _ in ()).throw(OSError(f"bad file {SECRET}")))
    replies = []
    app = played.app()
    played.app = lambda: lambda message, context: replies.append(app(message, context)) or replies[-1]
    with pytest.raises(RunFailed, match="an internal error; the site's own log has the details"):
        played.play()
    assert replies
    assert all(SECRET not in repr(reply.error) for reply in replies)
    logging.shutdown()
    assert SECRET in (beta.state_folder / "site.log").read_text()  # where hospital IT can find it


def test_a_lost_quorum_fails_the_run_with_the_reason(federation):
    lost = federation(alter={"alpha": raises, "beta": foreign_error})
    asked_again = []

    class Watch(Silent):
        def round_started(self, config, state, round_number, attempt):
            asked_again.append(attempt)

    with pytest.raises(RunFailed) as failure:
        lost.play(Watch())
    assert "round 1: 1 of 3 sites gave a valid reply and min_sites is 2" in str(failure.value)
    assert "alpha: the site's client failed" in str(failure.value)
    assert asked_again == [0, 1]
    assert "MUSTERMANN" not in str(failure.value)


def test_a_site_that_fails_once_counts_again_when_it_is_asked_again(federation):
    def once(kind):
        left = [1]

        def alter(message, reply):
            if is_training(message) and left[0]:
                left[0] -= 1
                return kind(message, reply)
            return reply

        return alter

    undisturbed = federation(where="undisturbed").play()
    retried = federation(alter={"alpha": once(raises), "beta": once(raises)}, where="retried").play()
    assert not any(site.missed for site in retried[0].sites.values())
    np.testing.assert_array_equal(undisturbed[1], retried[1])


def test_a_site_beyond_the_deadline_does_not_count(federation, monkeypatch):
    config = tiny_config(
        curriculum={"stage": [{"task": "rotation", "rounds": 1, "batch_size": 4}]},
        federation={"min_sites": 2, "round_deadline_s": 20.0},
    )
    slow = federation(config)
    import server.local_grid as grid

    ticking = iter(np.cumsum([0, 1] * 3 + [0, 1, 0, 25, 0, 1]))  # three descriptions, then alpha, beta, gamma
    monkeypatch.setattr(grid.time, "monotonic", lambda: float(next(ticking, 1e6)))
    state, _ = slow.play()
    assert [missed.code for missed in state.sites["beta"].missed] == ["no-answer"]
    assert state.sites["gamma"].answered == 1  # a federation's sites work at the same time


def test_only_the_backbone_crosses_from_stage_to_stage(federation):
    config = tiny_config()
    seen = []

    def spy(message, reply):
        if is_training(message):
            request = unpack_body(message.content, TrainRequest, weights=True)
            weights = message.content["weights"]["flat"].numpy()
            seen.append((request.stage, request.round_in_stage, weights, reply.content["weights"]["flat"].numpy()))
        return reply

    only = federation(config, {"alpha": spy})
    only.play()
    first, second = start_of_stage(config, 0, None), start_of_stage(config, 1, None)
    size = first.layout.backbone_size
    at_start = {stage: weights for stage, round_in_stage, weights, _ in seen if round_in_stage == 0}
    np.testing.assert_array_equal(at_start[0], first.vector)
    np.testing.assert_array_equal(at_start[1][size:], second.vector[size:])  # a fresh head
    assert (at_start[1][:size] != second.vector[:size]).any()  # a trained backbone


def test_the_mean_is_the_sites_mean_weighted_by_their_images(federation):
    replies = []

    def keep(message, reply):
        if is_training(message):
            body = unpack_body(reply.content, TrainReply, weights=True)
            size = reply.content["weights"]["flat"].shape[0]
            replies.append((body.images, unpack_weights(reply.content, size).astype(np.float64)))
        return reply

    config = tiny_config(curriculum={"stage": [{"task": "rotation", "rounds": 1, "batch_size": 4}]})
    played = federation(config, dict.fromkeys(("alpha", "beta", "gamma"), keep))
    state, vector = played.play()
    expected = sum(n * w for n, w in replies) / sum(n for n, _ in replies)
    np.testing.assert_allclose(vector, expected, atol=1e-7)
    assert {n for n, _ in replies} == {site.images for site in state.sites.values()}


def test_a_site_that_describes_itself_as_another_is_not_let_in(federation):
    def impostor(message, reply):
        if message.metadata.message_type == "query.describe":
            body = unpack_body(reply.content, DescribeReply).model_copy(update={"site": "alpha"})
            return Message(pack(body), reply_to=message)
        return reply

    state, _ = federation(alter={"beta": impostor}).play()
    assert state.sites["beta"].answered == 0
    assert all("not expected here, or is here twice" in missed.reason for missed in state.sites["beta"].missed)


def test_metrics_hold_one_line_per_site_and_round(federation):
    played = federation()
    played.play()
    lines = [json.loads(line) for line in (played.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [(line["round"], line["site"]) for line in lines if "site" in line]
    assert trained == [(r, site) for r in range(1, 5) for site in ("alpha", "beta", "gamma")]
    assert [line["round"] for line in lines if line.get("event") == "round"] == [1, 2, 3, 4]


def test_a_plateau_ends_a_stage_early(federation):
    stage = {"task": "rotation", "rounds": 9, "batch_size": 4, "stop": "plateau", "patience": 1, "min_improvement": 0.9}
    config = tiny_config(curriculum={"stage": [stage, {"task": "simclr", "rounds": 1, "batch_size": 4}]})
    state, _ = federation(config).play()
    assert state.stages[0].stopped_by == "plateau"
    assert state.stages[0].rounds_done < 9
    assert len(state.stages[0].heldout) == state.stages[0].rounds_done
    assert state.stages[1].stopped_by == "rounds"


@pytest.mark.parametrize(
    "task",
    [
        "moco",
        "npid",
        "swav",
        "deepcluster",
        "byol",
        "relative-location",
        "jigsaw",
        "masked",
        "colourisation",
        "barlow-twins",
        "dino",
        "multi-task",
    ],
)
@pytest.mark.parametrize("norm", ["group", "batch", "batch-local"])
def test_every_task_runs_with_every_norm(task, norm, federation):
    if norm in pretext_tasks[task].collapses_with:
        norm = "group-ws"  # refused with plain group norm
    stage = {"task": task, "rounds": 2, "batch_size": 4, "options": SMALL.get(task, {})}
    config = tiny_config(model={"backbone": "tiny", "norm": norm}, curriculum={"stage": [stage]})
    state, vector = federation(config).play()
    assert state.finished
    assert not any(site.missed for site in state.sites.values())
    assert np.isfinite(vector).all()


def test_local_state_never_crosses_the_wire(federation):
    """A queue, a momentum encoder, local statistics: no array of a message has their size in it."""
    stage = {"task": "moco", "rounds": 1, "batch_size": 4, "options": {"queue": 16}}
    config = tiny_config(model={"backbone": "tiny", "norm": "batch-local"}, curriculum={"stage": [stage]})
    layout = start_of_stage(config, 0, None).layout
    assert all(re.match(r"(backbone|head)\.", entry.name) for entry in layout.entries)
    assert not any("running" in entry.name or "queue" in entry.name for entry in layout.entries)
    sizes = set()

    def spy(message, reply):
        for record in (message.content, reply.content):
            sizes.update(array.shape for name in record.array_records.values() for array in name.values())
        return reply

    played = federation(config, dict.fromkeys(("alpha", "beta", "gamma"), spy))
    played.play()
    assert sizes == {(layout.size,)}
    kept = list((played.sites[0].state_folder).rglob("*.safetensors"))
    assert kept, "the queue is kept at the site"


def test_record_with_unknown_key_is_malformed():
    record = RecordDict({"body": ConfigRecord({"json": "{}", "more": "x"})})
    from federation_configs.records import MalformedRecord

    with pytest.raises(MalformedRecord):
        unpack_body(record, TrainReply)


def changed_description(**fields):
    def alter(message, reply):
        if message.metadata.message_type == "query.describe":
            body = json.loads(reply.content["body"]["json"]) | fields
            return Message(RecordDict({"body": ConfigRecord({"json": json.dumps(body)})}), reply_to=message)
        return reply

    return alter


@pytest.mark.parametrize(
    "fields",
    [
        {"train": 2**31},
        {"train": 0},
        {"train": 4},
        {"validation": 3},
        {"test": 2},
        {"rejected": {"mustermann-erika": 7}},
        {"rejected": {"truncated": 3}},
        {"rejected": {"truncated": "<4"}},
        {"site": "omega"},
        {"protocol": 10},
    ],
)
def test_a_site_with_an_impossible_description_is_not_let_in(fields, federation):
    state, _ = federation(alter={"beta": changed_description(**fields)}).play()
    assert state.sites["beta"].answered == 0
    assert state.sites["beta"].missed
    assert "mustermann" not in state.model_dump_json()


def test_small_counts_do_not_leave_a_site(federation):
    from dataclasses import replace

    played = federation()
    descriptions = []

    def keep(message, reply):
        if message.metadata.message_type == "query.describe":
            descriptions.append(json.loads(reply.content["body"]["json"]))
        return reply

    played.alter = {"beta": keep}
    played.sites[1] = replace(played.sites[1], rejected={"truncated": 4, "damaged": 5})
    state, _ = played.play()
    assert descriptions[0]["rejected"] == {"truncated": "<5", "damaged": 5}
    assert state.sites["beta"].rejected == {"truncated": "<5", "damaged": 5}
    rows = [row for row in played.sites[1].rows if row in played.sites[1].rows_of("train", played.config.holdout)]
    few = federation(where="few")
    few.sites[1] = replace(few.sites[1], rows=rows[:4])
    state, _ = few.play()
    assert {missed.reason for missed in state.sites["beta"].missed} == {
        "the site has fewer than 5 training images for this request, or than its policy asks for"
    }


def test_a_negative_variance_is_refused_before_it_spoils_every_feature(federation):
    stage = {"task": "simclr", "rounds": 1, "batch_size": 4}
    config = tiny_config(model={"backbone": "tiny", "norm": "batch"}, curriculum={"stage": [stage]})
    layout = start_of_stage(config, 0, None).layout

    def negative(weights):
        weights[layout.variance_slices[0]] = -4.0
        return weights

    state, vector = federation(config, {"beta": changed_weights(negative)}).play()
    assert [missed.code for missed in state.sites["beta"].missed] == ["negative-variance"]
    assert (vector[layout.variance_slices[0]] >= 0).all()


def test_an_evaluation_that_brings_an_array_or_fails_is_noted_and_does_not_count(federation):
    def evaluates_wrongly(message, reply):
        if message.metadata.message_type == "evaluate":
            reply.content["weights"] = ArrayRecord({"flat": Array(np.zeros(10, np.float32))})
        return reply

    notes = []

    class Notes(Silent):
        def note(self, text):
            notes.append(text)

    config = tiny_config(holdout={"test": 0.1, "validation": 0.5})
    state, _ = federation(config, alter={"beta": evaluates_wrongly}).play(Notes())
    assert state.finished
    assert all(stage.heldout for stage in state.stages)
    assert (
        notes
        == ["beta did not measure the held-out loss: the reply was refused: it has records other than those agreed"] * 2
    )


def test_a_log_that_cannot_be_written_keeps_no_answer_back_and_shows_nothing(federation, tmp_path, capfd):
    from dataclasses import replace

    played = federation()
    (tmp_path / "a-file").write_text("")
    played.sites[1] = replace(played.sites[1], state_folder=tmp_path / "a-file" / "MUSTERMANN")
    state, _ = played.play()
    assert {missed.reason for missed in state.sites["beta"].missed} == {
        "an internal error; the site's own log has the details"
    }
    assert "MUSTERMANN" not in "".join(capfd.readouterr())


def test_a_file_that_has_gone_since_the_scan_costs_one_image(federation, tmp_path):
    import shutil
    from dataclasses import replace

    from aiseeme_models.images.cache import CacheStore
    from client.scanning import scan
    from client.site_home import SiteHome

    played = federation()
    whole = played.sites[1]
    shutil.copytree(whole.folder.parent, tmp_path / "beta")
    scanned = scan(tmp_path / "beta", SiteHome(tmp_path / "other"), played.config.images.pipeline)
    site = replace(whole, folder=scanned.root, rows=scanned.rows, store=CacheStore(tmp_path / "cold-cache"))
    gone = site.rows_of("train", played.config.holdout)[0]
    (scanned.root / gone.file).unlink()
    played.sites[1] = site
    state, _ = played.play()
    assert state.sites["beta"].answered == 4
    assert state.sites["beta"].images == len(whole.rows_of("train", played.config.holdout)) - 1


def test_losses_leave_a_site_rounded(federation):
    told = []

    def keep(message, reply):
        told.append(json.loads(reply.content["body"]["json"]).get("loss"))
        return reply

    played = federation()
    played.alter = {"beta": keep}
    played.play()
    losses = [loss for loss in told if loss is not None]
    assert losses
    assert all(loss == float(f"{loss:.4g}") for loss in losses)


@pytest.mark.parametrize(
    ("loss", "told"), [(2.0794415, 2.079), (0.000123456, 0.0001235), (12345.6, 1000.0), (-1e-9, 0.0), (0.0, 0.0)]
)
def test_what_a_loss_is_when_it_leaves(loss, told):
    assert told_loss(loss) == told
