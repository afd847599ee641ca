"""Sites test what a model ties together in their own images: within the policy, and figures of whole sets leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message

from aiseeme_models.analysis.bias import audit
from aiseeme_models.analysis.ieat import effect_size
from aiseeme_models.analysis.image_sets import AssociationTest, Condition, draw_sets
from aiseeme_models.analysis.layer_features import layer_features
from aiseeme_models.backbones import build_backbone, initialise
from aiseeme_models.downstream.features import recalibrate_batch_norm
from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.seeding import generator
from aiseeme_models.training.shared_state import backbone_layout, flatten_backbone
from client import auditing
from client.app import make_client_app
from client.ledger import Ledger
from client.privacy import PrivacyBudget
from client.scanning import scan
from client.site import Site
from client.site_config import BudgetOptions, PolicyOptions
from client.site_home import SiteHome
from federation_configs.audit_messages import AuditRequest, told_effect, told_p, told_size
from federation_configs.records import Enclosure, pack
from federation_configs.site_errors import SiteError
from federation_configs.wire import ComparedModel
from server.asked_sites import NamedBackbone, Reached
from server.bias_audit import AuditOutcome, BiasAudit
from server.local_grid import LocalGrid
from server.request_signing import RequestSigner
from tests.conftest import InProcess, tiny_config
from tests.federation.gated_site import FEDERATION, KEY, OTHER_KEY, Asked, gated
from tests.tied_phantoms import SIDE, tint_network, write_tied

CONFIG = tiny_config(holdout={"test": 0.6, "validation": 0.1}, images={"preset": "dermoscopy", "size": SIDE})
LAYERS = ("features/map", "features/pooled")
UNTRAINED = 16


def asked_test(groups: str = "sex=f:sex=m", attributes: str = "label=mel:label=nv") -> AssociationTest:
    x, y, a, b = (Condition.parse(part) for pair in (groups, attributes) for part in pair.split(":"))
    return AssociationTest(x=x, y=y, a=a, b=b)


SEX, AGE, RARE = asked_test(), asked_test("age=..50:age=51.."), asked_test("age=89..:age=..88")
ALLOWED = PolicyOptions(label_columns=("label", "sex", "age"))


def folders(root: Path, tied: bool) -> list[Path]:
    return [write_tied(root / name, count, seed=count, tied=tied) for name, count in (("alpha", 200), ("beta", 150))]


@pytest.fixture(scope="session")
def tied_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return folders(tmp_path_factory.mktemp("tied"), True)


@pytest.fixture(scope="session")
def free_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return folders(tmp_path_factory.mktemp("free"), False)


def hospitals(data: list[Path], home: SiteHome, folder: Path) -> InProcess:
    sites = []
    for path in data:
        scanned = scan(path, home, CONFIG.images.pipeline)
        sites.append(Site(path.name, scanned.root, scanned.rows, home.store, folder / "sites" / path.name))
    return InProcess(CONFIG, folder, sites)


@pytest.fixture
def tied(tied_folders: list[Path], site_home: SiteHome, tmp_path: Path) -> InProcess:
    return hospitals(tied_folders, site_home, tmp_path)


def audited(made: InProcess, tests: tuple[AssociationTest, ...] = (SEX,), **changes: Any) -> AuditOutcome:
    grid = LocalGrid(made.app(), len(made.sites))
    names = [site.name for site in made.sites]
    asker = BiasAudit(Reached(grid, names, grid.clock, **changes), CONFIG, "audit-1")
    named = NamedBackbone("run-1", "tiny", tint_network())
    return asker.of(named, tests, layers=LAYERS, untrained=UNTRAINED, images=256)


def test_a_tie_that_was_planted_is_found_and_one_that_was_not_is_not(
    tied: InProcess, free_folders: list[Path], site_home: SiteHome, tmp_path: Path
) -> None:
    found = {(one.test, one.layer): one for one in audited(tied, (SEX, AGE)).pooled}
    assert len(found) == 4
    assert {found[SEX.name, layer].verdict for layer in LAYERS} == {"found"}
    assert all(found[SEX.name, layer].association.effect > 1 for layer in LAYERS)
    assert all(found[AGE.name, layer].verdict != "found" for layer in LAYERS)
    free = audited(hospitals(free_folders, site_home, tmp_path / "free"), (SEX, AGE)).pooled
    assert [one.verdict for one in free] == ["not found"] * 4


def by_hand(site: Site, seed: int) -> dict[str, Any]:
    """What the site should tell, computed from its images without any message."""
    rows = site.rows_of_images(CONFIG.images, "test", CONFIG.holdout)
    known = [{**row.columns, "label": row.label} for row in rows]
    assert len({row.group for row in rows}) == len(rows)
    plain = BatchAugmentation.of(CONFIG.images.resolved_preset).plain
    images = site.images(CONFIG.images, "test", CONFIG.holdout)
    chance = []
    for number in range(UNTRAINED):
        network = build_backbone("tiny", norm="group", in_channels=3)
        initialise(network, generator(seed, "untrained", number))
        chance.append(layer_features(network, images, plain, layers=LAYERS, device="cpu"))
    trained = layer_features(tint_network(), images, plain, layers=LAYERS, device="cpu")
    return {one.layer: one for one in audit([draw_sets(SEX, known, seed=seed)], trained, chance, seed=seed)}


def test_the_figures_are_those_of_the_audit_on_the_site_s_own_features(tied: InProcess) -> None:
    outcome = audited(tied)
    expected = {site.name: by_hand(site, CONFIG.seed) for site in tied.sites}
    for name, told in outcome.sites.items():
        for one in told:
            exact = expected[name][one.layer]
            assert one.association.effect == pytest.approx(exact.association.effect, abs=6e-4)
            assert one.association.p_value == pytest.approx(exact.association.p_value, abs=6e-5)
            assert one.control == pytest.approx(exact.control, abs=6e-5)
            assert one.untrained == pytest.approx(exact.untrained, abs=6e-4)
            assert one.association.sizes == tuple(told_size(size) for size in exact.association.sizes)
            assert one.corrected == pytest.approx(exact.corrected, rel=0.05, abs=4e-4)
            assert one.verdict == exact.verdict
    for one in outcome.pooled:
        parts = [told for judged in outcome.sites.values() for told in judged if told.layer == one.layer]
        sizes = np.array([part.association.sizes[0] for part in parts])
        effects = np.array([part.association.effect for part in parts])
        assert one.association.effect == pytest.approx((effects * sizes).sum() / sizes.sum())
        assert one.association.sizes[0] == sizes.sum()


def test_a_test_of_too_few_patients_is_not_made_and_no_count_tells_how_few(tied: InProcess) -> None:
    outcome = audited(tied, (SEX, RARE))
    why = "the site has fewer than 5 patients for one of the sets that are to be compared"
    assert outcome.omitted == {RARE.name: {"alpha": why, "beta": why}}
    assert {one.test for one in outcome.pooled} == {SEX.name}
    with pytest.raises(RunFailed, match=r"no site audited run-1 \(alpha: the site has fewer than 5 patients for one"):
        audited(tied, (RARE,))


def test_a_site_with_few_test_images_is_named_and_not_needed(tied: InProcess) -> None:
    site = tied.sites[1]
    test = {row.content for row in site.rows_of("test", CONFIG.holdout)[63:]}
    tied.sites[1] = replace(site, rows=[row for row in site.rows if row.content not in test], _opened={})
    outcome = audited(tied)
    assert set(outcome.sites) == {"alpha"}
    assert outcome.refused == {"beta": "the site has fewer than 64 held-out images to compare models on"}


def test_signed_audits_are_in_the_ledgers_and_end_in_the_same_figures(tied: InProcess) -> None:
    plain = audited(tied)
    with pytest.raises(RunFailed, match="the request is not signed"):
        audited(gated(tied, dict.fromkeys(("alpha", "beta"), ALLOWED)))
    assert audited(tied, signer=RequestSigner(KEY, FEDERATION)) == plain
    for site in tied.sites:
        asked, started, answered = [entry.fields for entry in Ledger.in_home(site.state_folder).entries()][-3:]
        assert asked["what"] == started["what"] == answered["what"] == "audit"
        assert asked["labels"] == "label, sex"
        assert started["images"] == len(site.rows_of("test", CONFIG.holdout)) and "epochs" not in started
        assert answered["images"] == plain.images[site.name]


class Gated:
    """The first site behind its gate, and a coordinator that asks for an audit."""

    def __init__(self, made: InProcess) -> None:
        self.asked = Asked(made.sites[0])
        digest = backbone_layout(tint_network()).digest
        self.model = ComparedModel(backbone="tiny", norm="group", layout_sha256=digest)

    def request(self, **changes: Any) -> AuditRequest:
        fields: dict[str, Any] = {
            "run": "run-1", "config": CONFIG, "model": self.model, "tests": (SEX,), "layers": LAYERS, "untrained": 5
        }  # fmt: skip
        return AuditRequest(**(fields | changes))

    def answer(self, content: Any) -> Message:
        grid = LocalGrid(make_client_app(lambda context: self.asked.site), 1)
        ids = grid.push_messages([Message(content, 2, "query.audit", ttl=600, group_id="1")])
        (reply,) = grid.pull_messages(ids)
        return reply

    def signed(self, signer: RequestSigner | None = None, **changes: Any) -> Any:
        beside = Enclosure(flatten_backbone(tint_network()))
        arguments = {"site": "alpha", "valid_s": 600.0, "beside": beside}
        return (signer or self.asked.signer).pack("audit", self.request(**changes), **arguments)

    def verdict(self, content: Any) -> SiteError | None:
        reply = self.answer(content)
        return SiteError(reply.error.code) if reply.has_error() else None


@pytest.fixture
def site(tied: InProcess) -> Gated:
    made = Gated(tied)
    made.asked.set_gate(ALLOWED)
    return made


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was worked on although it should not have been."""
    done: list[str] = []
    for name in ("expected_size", "audit"):
        monkeypatch.setattr(auditing, name, lambda *_, name=name: done.append(name))
    return done


def test_only_whitelisted_figures_leave(site: Gated) -> None:
    reply = site.answer(site.signed())
    assert set(reply.content) == {"body"}
    body = json.loads(reply.content["body"]["json"])
    assert set(body) == {"nonce", "site", "images", "seconds", "tests"}
    (test,) = body["tests"]
    assert set(test) == {"sizes", "layers"} and all(size % 5 == 0 and size >= 5 for size in test["sizes"])
    for layer in test["layers"]:
        assert set(layer) == {"effect", "p_value", "opposite", "control", "untrained"}
        assert len(layer["untrained"]) == 5 and layer["effect"] == told_effect(layer["effect"])
        assert layer["p_value"] == told_p(layer["p_value"])


def test_figures_are_rounded_on_their_way_out() -> None:
    assert [told_effect(effect) for effect in (1.23456, -2.0000001, 0.0004)] == [1.235, -2.0, 0.0]
    assert [told_p(p_value) for p_value in (1e-9, 0.00026, 1.0, 0.12345)] == [1e-4, 3e-4, 1.0, 0.1235]
    assert [told_size(count) for count in (5, 9, 10, 64)] == [5, 5, 10, 60]


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (PolicyOptions(), SiteError.LABELS_NOT_ALLOWED),
        (PolicyOptions(label_columns=("label",)), SiteError.LABELS_NOT_ALLOWED),
        (PolicyOptions(label_columns=("sex", "age")), SiteError.LABELS_NOT_ALLOWED),
        (PolicyOptions(label_columns=("label", "sex"), backbones=("resnet18",)), SiteError.BACKBONE_NOT_ALLOWED),
        (PolicyOptions(label_columns=("label", "sex"), max_comparisons_per_day=0), SiteError.TOO_MANY_COMPARISONS),
        (PolicyOptions(label_columns=("label", "sex"), require_dp=True), SiteError.PRIVACY_REQUIRED),
    ],
)
def test_what_the_policy_does_not_allow_is_refused_before_any_work(
    policy: PolicyOptions, code: SiteError, site: Gated, idle: list[str]
) -> None:
    site.asked.set_gate(policy)
    assert site.verdict(site.signed()) == code
    assert idle == []
    last, fields = site.asked.entries()[-1]
    assert (last, fields["code"]) == ("refused", code.name)


def test_nobody_but_the_coordinator_is_answered_and_nobody_twice(site: Gated, idle: list[str]) -> None:
    weights = flatten_backbone(tint_network())
    assert site.verdict(pack(site.request(), weights)) == SiteError.NOT_SIGNED
    stranger = RequestSigner(OTHER_KEY, FEDERATION, clock=lambda: site.asked.now)
    assert site.verdict(site.signed(stranger)) == SiteError.UNKNOWN_COORDINATOR
    analysis = site.asked.signer.pack("analyse", site.request(), site="alpha", valid_s=60, beside=Enclosure(weights))
    assert site.verdict(analysis) == SiteError.UNKNOWN_COORDINATOR
    assert idle == []


def test_a_request_is_answered_once_and_audits_of_a_day_are_limited(site: Gated) -> None:
    site.asked.set_gate(ALLOWED.model_copy(update={"max_comparisons_per_day": 2}))
    content = site.signed()
    assert [site.verdict(content), site.verdict(content)] == [None, SiteError.REPLAYED]
    assert [site.verdict(site.signed()) for _ in range(2)] == [None, SiteError.TOO_MANY_COMPARISONS]


def test_each_test_of_an_audit_counts_as_a_comparison_of_the_day(site: Gated, idle: list[str]) -> None:
    policy = ALLOWED.model_copy(update={"max_comparisons_per_day": 3})
    scan = tuple(asked_test(f"age=..{age}:age={age + 1}..") for age in range(40, 44))
    site.asked.set_gate(policy)
    assert site.verdict(site.signed(tests=scan)) == SiteError.TOO_MANY_COMPARISONS
    assert idle == [], "a scan of thresholds is no one comparison"
    site.verdict(site.signed(tests=scan[:2]))
    (begun,) = [fields for kind, fields in site.asked.entries() if kind == "started"]
    assert begun["comparisons"] == 2
    site.asked.set_gate(policy)  # started anew
    assert site.verdict(site.signed(tests=scan[2:])) == SiteError.TOO_MANY_COMPARISONS
    assert site.verdict(site.signed(tests=scan[2:3])) != SiteError.TOO_MANY_COMPARISONS


def test_where_patients_are_protected_nothing_is_audited(site: Gated) -> None:
    stage = {"task": "rotation", "rounds": 1, "batch_size": 4, "lr": 0.01}
    privacy = {"noise_multiplier": 1.0, "max_grad_norm": 1.0}
    images = {"preset": "dermoscopy", "size": SIDE}
    holdout = {"test": 0.6, "validation": 0.1}
    private = tiny_config(holdout=holdout, images=images, curriculum={"stage": [stage]}, privacy=privacy)
    assert site.verdict(site.signed(config=private)) == SiteError.WITHHELD
    noisy = BudgetOptions(local_noise=1.0, local_clip=1.0)
    here = site.asked.site
    site.asked.site = replace(here, budget=PrivacyBudget(here.state_folder, here.gate.ledger, noisy))
    assert site.verdict(site.signed()) == SiteError.WITHHELD


def test_weights_layers_and_sets_that_make_no_sense_here_are_refused(site: Gated) -> None:
    other = site.model.model_copy(update={"backbone": "resnet-tiny"})
    assert site.verdict(site.signed(model=other)) == SiteError.VERSION_MISMATCH
    assert site.verdict(site.signed(layers=("layer4/map",))) == SiteError.BAD_REQUEST
    assert site.verdict(site.signed(tests=(RARE,))) == SiteError.TOO_FEW_COMPARED
    content = site.asked.signer.pack(
        "audit", site.request(), site="alpha", valid_s=60, beside=Enclosure(np.zeros(5, np.float32))
    )
    assert site.verdict(content) == SiteError.BAD_REQUEST


@pytest.mark.parametrize("column", ["patient_id", "lesion_id", "seriesuid", "split_point", "file", "index"])
def test_no_column_that_says_whose_an_image_is_can_be_asked_for(column: str, site: Gated, idle: list[str]) -> None:
    with pytest.raises(InputError, match="says whose an image is"):
        Condition.parse(f"{column}=x")
    content = site.signed()
    body = json.loads(content["body"]["json"])
    body["tests"][0]["x"]["column"] = column
    content["body"] = ConfigRecord({"json": json.dumps(body)})
    assert site.verdict(content) == SiteError.BAD_REQUEST
    assert idle == []


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 100}, {"images": 2048}, {"untrained": 4}, {"untrained": 33}, {"tests": ()}, {"tests": (SEX, SEX)},
        {"layers": ("a/map", "a/map")}, {"layers": ("stem",)}, {"layers": ("../../x/map",)},
        {"tests": tuple(asked_test(f"age=..{age}:age={age + 1}..") for age in range(60)), "untrained": 32,
         "layers": tuple(f"b{number}/map" for number in range(20))},
    ],
)  # fmt: skip
def test_more_than_a_site_answers_cannot_be_asked(changes: dict[str, Any], site: Gated) -> None:
    with pytest.raises(ValueError):
        site.request(**changes)


FIGURES = {"effect": 0.5, "p_value": 0.01, "opposite": 0.99, "control": 0.01, "untrained": [0.1] * UNTRAINED}


def test_of(**changes: Any) -> dict[str, Any]:
    return {"sizes": [20, 20, 20, 20], "layers": [FIGURES | changes, FIGURES]}


test_of.__test__ = False  # type: ignore[attr-defined]


def changed(**fields: Any) -> Callable[[Message, Message], Message]:
    def alter(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "query.audit":
            body = json.loads(reply.content["body"]["json"])
            reply.content["body"] = ConfigRecord({"json": json.dumps(body | fields)})
        return reply

    return alter


def with_array(message: Message, reply: Message) -> Message:
    if message.metadata.message_type == "query.audit":
        reply.content["weights"] = ArrayRecord({"flat": Array(np.zeros((64, 8), np.float32))})
    return reply


@pytest.mark.parametrize(
    "alter",
    [
        changed(tests=[test_of(effect=float("nan"))]),
        changed(tests=[test_of(effect=2.5)]),
        changed(tests=[test_of(p_value=1.5)]),
        changed(tests=[test_of(p_value=0.0)]),
        changed(tests=[test_of(opposite=-0.1)]),
        changed(tests=[test_of(control=float("inf"))]),
        changed(tests=[test_of(control=None)]),
        changed(tests=[test_of(untrained=[0.1] * (UNTRAINED - 1))]),
        changed(tests=[test_of(untrained=[0.1] * (UNTRAINED - 1) + [9.0])]),
        changed(tests=[test_of(features="MUSTERMANN^ERIKA")]),
        changed(tests=[test_of() | {"layers": [FIGURES]}]),
        changed(tests=[test_of() | {"layers": [FIGURES] * 3}]),
        changed(tests=[test_of() | {"sizes": [20, 15, 20, 20]}]),
        changed(tests=[test_of() | {"sizes": [3, 3, 20, 20]}]),
        changed(tests=[test_of() | {"sizes": [21, 21, 20, 20]}]),
        changed(tests=[test_of() | {"sizes": [200, 200, 20, 20]}]),
        changed(tests=[test_of(), test_of()]),
        changed(tests=[None]),
        changed(tests=[]),
        changed(images=1000),
        changed(images=87),
        changed(site="alpha"),
        changed(seconds=1e8),
        changed(patients=["MUSTERMANN^ERIKA"]),
        with_array,
    ],
)
def test_an_answer_that_is_none_to_the_question_does_not_count(alter: Any, tied: InProcess) -> None:
    tied.alter = {"beta": alter}
    outcome = audited(tied)
    assert set(outcome.sites) == {"alpha"} and set(outcome.refused) == {"beta"}
    assert "MUSTERMANN" not in str(outcome)


def test_half_precision_and_the_images_that_are_asked_for_change_little(tied: InProcess) -> None:
    exact = {one.layer: one for one in audited(tied).pooled}
    half = CONFIG.model_copy(update={"federation": CONFIG.federation.model_copy(update={"transfer": "float16"})})
    grid = LocalGrid(tied.app(), 2)
    asker = BiasAudit(Reached(grid, ["alpha", "beta"], grid.clock), half, "audit-1")
    named = NamedBackbone("run-1", "tiny", tint_network())
    told = asker.of(named, (SEX,), layers=LAYERS, untrained=UNTRAINED, images=64)
    assert told.images == {"alpha": 60, "beta": 60}
    for one in told.pooled:
        assert one.association.effect == pytest.approx(exact[one.layer].association.effect, abs=0.4)


@pytest.mark.parametrize("norm", ["batch", "batch-local"])
def test_statistics_that_stay_at_the_sites_are_made_anew(norm: Any, tied: InProcess) -> None:
    backbone = build_backbone("resnet-tiny", norm=norm, in_channels=3)
    initialise(backbone, generator(1))
    layers = ("stem/pooled", "layer4/map")
    site = tied.sites[0]
    grid = LocalGrid(tied.app(), 2)
    asker = BiasAudit(Reached(grid, ["alpha", "beta"], grid.clock), CONFIG, "audit-1")
    told = asker.of(NamedBackbone("run-1", "resnet-tiny", backbone), (SEX,), layers=layers, untrained=5, images=256)
    plain = BatchAugmentation.of(CONFIG.images.resolved_preset).plain
    images = site.images(CONFIG.images, "test", CONFIG.holdout)
    if norm == "batch-local":
        recalibrate_batch_norm(backbone, images, plain, device="cpu")
    features = layer_features(backbone, images, plain, layers=layers, device="cpu")
    rows = site.rows_of_images(CONFIG.images, "test", CONFIG.holdout)
    sets = draw_sets(SEX, [{**row.columns, "label": row.label} for row in rows], seed=CONFIG.seed)
    for one in told.sites["alpha"]:
        parts = (features[one.layer][list(places)] for places in (sets.x, sets.y, sets.a, sets.b))
        assert one.association.effect == pytest.approx(effect_size(*parts), abs=2e-3)
