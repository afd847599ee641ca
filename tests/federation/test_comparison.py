"""Sites compare models on their own images: figures of whole batches leave, within the policy, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message

from aiseeme_models.analysis.comparison import compare_backbones
from aiseeme_models.backbones import Backbone, build_backbone, initialise
from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.cached_images import CachedImages
from aiseeme_models.seeding import generator
from client.ledger import Ledger
from client.privacy import PrivacyBudget
from client.site import Site
from client.site_config import BudgetOptions, PolicyOptions
from federation_configs.schema import FederationConfig
from federation_configs.site_errors import SiteError
from federation_configs.wire import AnalyseReply, AnalyseRequest, ComparedModel, told_likeness, told_rank
from server.asked_sites import NamedBackbone, Reached
from server.comparison import Comparison, Pair
from server.local_grid import LocalGrid
from server.request_signing import RequestSigner
from tests.conftest import InProcess, tiny_config
from tests.federation.gated_site import CONFIG, FEDERATION, KEY, NOW, Asked, gated


def backbone(seed: int, name: str = "resnet-tiny", channels: int = 3) -> NamedBackbone:
    made = build_backbone(name, norm="group", in_channels=channels)
    initialise(made, generator(seed))
    return NamedBackbone(f"run-{seed}", name, made)


def comparison(made: InProcess, config: FederationConfig = CONFIG, **changes: Any) -> Comparison:
    grid = LocalGrid(made.app(), len(made.sites))
    names = [site.name for site in made.sites]
    return Comparison(Reached(grid, names, grid.clock, **changes), config, "compare-1")


def heldout(site: Site) -> CachedImages:
    return site.images(CONFIG.images, "validation", CONFIG.holdout)


def by_hand(site: Site, first: Backbone, second: Backbone, count: int) -> list[Any]:
    preset = CONFIG.images.resolved_preset
    plain = BatchAugmentation(preset.augmentation, preset.mean, preset.std).plain
    return compare_backbones(first, second, heldout(site), plain, count=count, device="cpu")


def test_figures_are_the_sites_own_weighted_by_their_images(three: InProcess) -> None:
    one, two = backbone(1), backbone(2)
    (pair,) = comparison(three).of_all([one, two])
    assert pair.images == {"alpha": 64, "beta": 128}
    assert [block.blocks for block in pair.blocks] == [(name, name) for name in one.backbone.blocks]
    rows = [
        by_hand(site, one.backbone, two.backbone, count) for site, count in zip(three.sites[:2], (64, 128), strict=True)
    ]
    for place, block in enumerate(pair.blocks):
        small, large = rows[0][place], rows[1][place]
        assert block.cka == pytest.approx((small.cka + 2 * large.cka) / 3, abs=1e-4)
        assert block.svcca == pytest.approx((small.svcca + 2 * large.svcca) / 3, abs=1e-4)
        expected = [(small.ranks[which] + 2 * large.ranks[which]) / 3 for which in (0, 1)]
        assert block.ranks == pytest.approx(expected, abs=0.06)


def test_a_site_with_few_held_out_images_is_named_and_not_needed(three: InProcess) -> None:
    (pair,) = comparison(three).of_all([backbone(1), backbone(2)])
    assert len(heldout(three.sites[2])) in range(5, 64)
    assert pair.refused == {"gamma": "the site has fewer than 64 held-out images to compare models on"}
    three.sites[:] = three.sites[2:]
    with pytest.raises(RunFailed, match=r"no site compared run-1 with run-2 \(gamma: the site has fewer than 64"):
        comparison(three).of_all([backbone(1), backbone(2)])


def test_all_pairs_of_any_architectures_are_compared(three: InProcess) -> None:
    three.sites[:] = three.sites[:1]
    small = backbone(3, "resnet-small")
    pairs = comparison(three).of_all([backbone(1), backbone(2), small])
    assert [(pair.first, pair.second) for pair in pairs] == [("run-1", "run-2"), ("run-1", "run-3"), ("run-2", "run-3")]
    assert all(len(pair.blocks) == 5 for pair in pairs)


def test_a_model_that_went_through_the_wire_is_like_itself(three: InProcess) -> None:
    (pair,) = comparison(three).of_all([backbone(1), backbone(1)])
    assert all(block.cka == block.svcca == 1 and block.ranks[0] == block.ranks[1] for block in pair.blocks)


def test_a_backbone_for_other_images_is_refused_before_anybody_is_asked(three: InProcess) -> None:
    with pytest.raises(InputError, match="run-2 takes images of 1 channels; these have 3"):
        comparison(three).of_all([backbone(1), backbone(2, channels=1)])


def test_the_wire_carries_figures_and_nothing_else(asked: Asked) -> None:
    reply = asked.answer("analyse", asked.signed("analyse"))
    assert set(reply.content) == {"body"}
    body = json.loads(reply.content["body"]["json"])
    assert set(body) == {"nonce", "site", "images", "seconds", "blocks"}
    (block,) = body["blocks"]
    assert set(block) == {"cka", "svcca", "ranks"}
    assert body["images"] == 64
    for name in ("cka", "svcca"):
        assert block[name] == told_likeness(block[name])
    assert [told_rank(rank) for rank in block["ranks"]] == block["ranks"]


@pytest.mark.parametrize(
    ("told", "expected"), [(0.123456, 0.1235), (1 + 1e-12, 1.0), (-0.00001234567, -1.235e-05), (None, None)]
)
def test_a_likeness_leaves_with_four_digits(told: float | None, expected: float | None) -> None:
    assert told_likeness(told) == expected


def test_an_effective_rank_leaves_with_one_decimal() -> None:
    assert [told_rank(rank) for rank in (0.99999, 7.449, 100.06)] == [1.0, 7.4, 100.1]


def test_no_two_answers_are_on_batches_that_differ_by_a_few_images(asked: Asked) -> None:
    """Else the difference of two answers would tell of the images by which they differ."""
    figures = set()
    rows = asked.site.rows
    held = asked.site.rows_of("validation", CONFIG.holdout)
    assert len(held) in range(70, 128)
    for without in range(3):
        # The last ones in the order of their content: what is beyond the last whole batch counts for nothing.
        gone = held[len(held) - without :]
        asked.site = replace(asked.site, rows=[row for row in rows if row not in gone], _opened={})
        reply = asked.answer("analyse", asked.signed("analyse"))
        figures.add(json.dumps(json.loads(reply.content["body"]["json"])["blocks"]))
    assert len(figures) == 1
    for images in (65, 100, 63, 0):
        with pytest.raises(ValueError):
            AnalyseRequest(run="r", config=CONFIG, models=(asked.compared, asked.compared), images=images)


def test_fewer_than_a_batch_of_held_out_images_are_refused_before_any_is_looked_at(
    asked: Asked, no_work: list[str]
) -> None:
    held = asked.site.rows_of("validation", CONFIG.holdout)
    others = [row for row in asked.site.rows if row not in held]
    asked.site = replace(asked.site, rows=[*others, *held[:63]])
    assert asked.verdict("analyse", asked.signed("analyse")) == SiteError.TOO_FEW_HELD_OUT
    assert no_work == []


def test_images_that_turn_out_to_be_unusable_do_not_count(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Site, "images", lambda self, *_: range(63))
    assert asked.verdict("analyse", asked.signed("analyse")) == SiteError.TOO_FEW_HELD_OUT


def test_comparisons_of_a_day_are_limited_and_can_be_forbidden(asked: Asked) -> None:
    asked.set_gate(PolicyOptions(max_comparisons_per_day=2))
    assert [asked.verdict("analyse", asked.signed("analyse")) for _ in range(2)] == [None, None]
    asked.set_gate(PolicyOptions(max_comparisons_per_day=2))  # started anew
    assert asked.verdict("analyse", asked.signed("analyse")) == SiteError.TOO_MANY_COMPARISONS
    assert asked.verdict("evaluate", asked.signed("evaluate")) is None
    asked.now += 86_401
    later = RequestSigner(KEY, FEDERATION, clock=lambda: NOW + 86_401)
    assert asked.verdict("analyse", asked.signed("analyse", later)) is None
    asked.set_gate(PolicyOptions(max_comparisons_per_day=0))
    assert asked.verdict("analyse", asked.signed("analyse", later)) == SiteError.TOO_MANY_COMPARISONS


def request_of(asked: Asked, *names: str) -> AnalyseRequest:
    models = tuple(asked.compared.model_copy(update={"backbone": name}) for name in names)
    return AnalyseRequest(run="run-1", config=CONFIG, models=models)


@pytest.mark.parametrize("names", [("resnet18", "tiny"), ("tiny", "resnet18")])
def test_both_backbones_must_be_allowed(names: tuple[str, str], asked: Asked, no_work: list[str]) -> None:
    asked.set_gate(PolicyOptions(backbones=("tiny",)))
    content = asked.signer.pack(
        "analyse", request_of(asked, *names), site="alpha", valid_s=60, beside=asked.beside("analyse")
    )
    assert asked.verdict("analyse", content) == SiteError.BACKBONE_NOT_ALLOWED
    assert no_work == []


def test_weights_of_another_length_or_layout_are_refused(asked: Asked) -> None:
    wanted = asked.request("analyse")
    short = asked.signer.pack("analyse", wanted, site="alpha", valid_s=60, beside=asked.beside("train"))
    assert asked.verdict("analyse", short) == SiteError.BAD_REQUEST
    other = request_of(asked, "tiny", "resnet-tiny")
    content = asked.signer.pack("analyse", other, site="alpha", valid_s=60, beside=asked.beside("analyse"))
    assert asked.verdict("analyse", content) == SiteError.VERSION_MISMATCH
    unknown = json.loads(content["body"]["json"])
    unknown["models"][0]["backbone"] = "vgg"
    content["body"] = ConfigRecord({"json": json.dumps(unknown)})
    assert asked.verdict("analyse", content) == SiteError.BAD_REQUEST


PRIVATE = {"noise_multiplier": 1.0, "max_grad_norm": 1.0}


def test_where_patients_are_protected_nothing_is_compared(asked: Asked) -> None:
    config = tiny_config(
        holdout={"test": 0.1, "validation": 0.5},
        curriculum={"stage": [{"task": "rotation", "rounds": 1, "batch_size": 4, "lr": 0.01}]},
        privacy=PRIVATE,
    )
    request = asked.request("analyse").model_copy(update={"config": config})
    content = asked.signer.pack("analyse", request, site="alpha", valid_s=60, beside=asked.beside("analyse"))
    assert asked.verdict("analyse", content) == SiteError.WITHHELD
    noisy = BudgetOptions(local_noise=1.0, local_clip=1.0)
    asked.site = replace(asked.site, budget=PrivacyBudget(asked.site.state_folder, asked.site.gate.ledger, noisy))
    assert asked.verdict("analyse", asked.signed("analyse")) == SiteError.WITHHELD


def changed(**fields: Any) -> Callable[[Message, Message], Message]:
    def alter(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "query.analyse":
            body = json.loads(reply.content["body"]["json"])
            reply.content["body"] = ConfigRecord({"json": json.dumps(body | fields)})
        return reply

    return alter


def with_array(message: Message, reply: Message) -> Message:
    if message.metadata.message_type == "query.analyse":
        reply.content["weights"] = ArrayRecord({"flat": Array(np.zeros((64, 8), np.float32))})
    return reply


FIGURES = {"cka": 0.5, "svcca": 0.5, "ranks": [2.0, 3.0]}


@pytest.mark.parametrize(
    "alter",
    [
        changed(images=192),
        changed(images=100),
        changed(images=0),
        changed(site="alpha"),
        changed(seconds=1e8),
        changed(blocks=[FIGURES] * 4),
        changed(blocks=[FIGURES] * 6),
        changed(blocks=[FIGURES | {"cka": 1.5}] * 5),
        changed(blocks=[FIGURES | {"ranks": [2.0]}] * 5),
        changed(blocks=[FIGURES | {"ranks": [0.5, 2.0]}] * 5),
        changed(blocks=[FIGURES | {"block": "MUSTERMANN^ERIKA"}] * 5),
        changed(features=[[0.1, 0.2]]),
        with_array,
    ],
)
def test_an_answer_that_is_none_to_the_question_does_not_count(alter: Any, three: InProcess) -> None:
    three.alter = {"beta": alter}
    (pair,) = comparison(three).of_all([backbone(1), backbone(2)])
    assert pair.images == {"alpha": 64} and set(pair.refused) == {"beta", "gamma"}
    assert "MUSTERMANN" not in str(pair)


def test_signed_comparisons_are_in_the_ledgers_and_end_in_the_same_figures(three: InProcess) -> None:
    models = [backbone(1), backbone(2)]
    plain = comparison(three).of_all(models)
    with pytest.raises(RunFailed, match="the request is not signed"):
        comparison(gated(three)).of_all(models)
    signed = comparison(three, signer=RequestSigner(KEY, FEDERATION)).of_all(models)
    assert signed == plain
    for site, images in zip(three.sites[:2], (64, 128), strict=True):
        book = Ledger.in_home(site.state_folder)
        asked, started, answered = [entry.fields for entry in book.entries()][-3:]
        assert asked["what"] == started["what"] == answered["what"] == "analyse"
        assert started["images"] == answered["images"] == images
        assert "epochs" not in started and answered["bytes"] > 0


def test_half_precision_is_enough_to_compare(three: InProcess) -> None:
    models = [backbone(1), backbone(2)]
    (exact,) = comparison(three).of_all(models)
    half = CONFIG.model_copy(update={"federation": CONFIG.federation.model_copy(update={"transfer": "float16"})})
    (rounded,) = comparison(three, half).of_all(models)
    for one, other in zip(exact.blocks, rounded.blocks, strict=True):
        assert one.cka == pytest.approx(other.cka, abs=0.01)


def test_a_dead_backbone_has_no_likeness_at_any_site(three: InProcess) -> None:
    dead = backbone(1)
    with torch.no_grad():
        for weight in dead.backbone.parameters():
            weight.zero_()
    pair: Pair
    (pair,) = comparison(three).of_all([dead, backbone(2)])
    assert all(block.cka is None and block.svcca is None for block in pair.blocks)
    assert all(block.ranks[0] == 1 for block in pair.blocks)


def test_a_reply_is_no_longer_than_a_model_has_blocks() -> None:
    with pytest.raises(ValueError):
        AnalyseReply(site="alpha", images=64, seconds=1, blocks=())
    model = ComparedModel(backbone="resnet18", norm="group", layout_sha256="0" * 64)
    with pytest.raises(ValueError):
        AnalyseRequest(run="r", config=CONFIG, models=(model, model, model))
