"""The hospital decides: what site.toml does not allow is refused, each with its own code."""

from __future__ import annotations

import re
import tomllib
from datetime import datetime
from pathlib import Path

import pytest

from aiseeme_models.analysis.image_sets import AssociationTest, Condition
from client.policy import check_hours, check_images, check_stamp, decide
from client.refusals import Refusal
from client.schedule import ScheduleOptions
from client.site import Site
from client.site_config import PolicyOptions, SiteConfig, load_site_config
from client.site_home import SiteHome
from client.survey import Survey
from federation_configs.audit_messages import AuditRequest
from federation_configs.site_errors import SiteError
from federation_configs.wire import (
    AnalyseRequest,
    AssessRequest,
    ComparedModel,
    DescribeRequest,
    EvaluateRequest,
    FitRequest,
    RangeRequest,
    Request,
    Stamp,
    TrainRequest,
)
from tests.conftest import REPOSITORY, tiny_config, write_pictures

NOW = 1_800_000_000.0
PLACE = {"round": 1, "stage": 1, "round_in_stage": 0, "layout_sha256": "0" * 64}


def describing() -> DescribeRequest:
    return DescribeRequest(run="r", config=tiny_config())


def training(**place: int) -> TrainRequest:
    return TrainRequest(run="r", config=tiny_config(), **{**PLACE, **place})


def evaluating() -> EvaluateRequest:
    return EvaluateRequest(run="r", config=tiny_config(), **PLACE)


def code(policy: PolicyOptions, request: Request, epochs_today: float = 0.0) -> SiteError | None:
    try:
        decide(policy, request, epochs_today=epochs_today)
    except Refusal as refusal:
        return refusal.code
    return None


# What tiny_config asks: rotation, then simclr, two rounds each; 48 px, batches of 4, the backbone "tiny", dermoscopy.
RULES = [
    ({"tasks": ("rotation", "simclr")}, {"tasks": ("rotation",)}, SiteError.TASK_NOT_ALLOWED),
    ({"backbones": ("tiny", "resnet18")}, {"backbones": ("resnet18",)}, SiteError.BACKBONE_NOT_ALLOWED),
    ({"presets": ("dermoscopy",)}, {"presets": ("chest-xray", "ct-lung")}, SiteError.PRESET_NOT_ALLOWED),
    ({"max_image_size": 48}, {"max_image_size": 47}, SiteError.TOO_LARGE),
    ({"max_batch_size": 4}, {"max_batch_size": 3}, SiteError.TOO_LARGE),
    ({"max_rounds": 4}, {"max_rounds": 3}, SiteError.TOO_MANY_ROUNDS),
    ({"require_dp": False}, {"require_dp": True}, SiteError.PRIVACY_REQUIRED),
]


@pytest.mark.parametrize(("within", "beyond", "refused"), RULES)
@pytest.mark.parametrize("request_", [describing(), training(), evaluating()], ids=["describe", "train", "evaluate"])
def test_every_request_outside_the_policy_is_refused(within, beyond, refused, request_) -> None:
    assert code(PolicyOptions(**within), request_) is None
    assert code(PolicyOptions(**beyond), request_) == refused


@pytest.mark.parametrize("missing", [None, "multi-task", "rotation", "simclr"])
def test_a_stage_of_several_tasks_needs_all_of_them_allowed(missing) -> None:
    options = {"tasks": [{"task": "rotation"}, {"task": "simclr"}]}
    stage = {"task": "multi-task", "rounds": 2, "batch_size": 4, "options": options}
    request = DescribeRequest(run="r", config=tiny_config(curriculum={"stage": [stage]}))
    allowed = PolicyOptions(tasks=tuple({"multi-task", "rotation", "simclr"} - {missing}))
    assert code(allowed, request) == (None if missing is None else SiteError.TASK_NOT_ALLOWED)


def test_the_default_policy_allows_what_the_version_can_do() -> None:
    for request in (describing(), training(), evaluating()):
        assert code(PolicyOptions(), request, epochs_today=1e6) is None


def test_epochs_of_a_day_are_counted_with_the_round_that_is_asked() -> None:
    policy = PolicyOptions(max_epochs_per_day=3)
    assert code(policy, training(), epochs_today=2) is None
    assert code(policy, training(), epochs_today=2.5) == SiteError.TOO_MANY_EPOCHS
    assert code(policy, evaluating(), epochs_today=9) is None
    assert code(policy, describing(), epochs_today=9) is None


def test_each_test_of_an_audit_counts_as_a_comparison_and_all_else_that_compares_as_one() -> None:
    model = ComparedModel(backbone="tiny", norm="group", layout_sha256="0" * 64)
    label = {"a": Condition.parse("label=mel"), "b": Condition.parse("label=nv")}
    scan = tuple(
        AssociationTest(x=Condition.parse(f"age=..{age}"), y=Condition.parse(f"age={age + 1}.."), **label)
        for age in range(40, 43)
    )
    audit = AuditRequest(run="r", config=tiny_config(), model=model, tests=scan, layers=("features/map",))
    analysis = AnalyseRequest(run="r", config=tiny_config(), models=(model, model))
    assessment = AssessRequest(run="r", config=tiny_config(), **PLACE)
    policy = PolicyOptions(label_columns=("label", "age"), max_comparisons_per_day=5)
    for request, most_before in ((audit, 2), (analysis, 4), (assessment, 4)):
        decide(policy, request, epochs_today=0, comparisons_today=most_before)
        with pytest.raises(Refusal) as refusal:
            decide(policy, request, epochs_today=0, comparisons_today=most_before + 1)
        assert refusal.value.code == SiteError.TOO_MANY_COMPARISONS
    decide(policy, training(), epochs_today=0, comparisons_today=9)


def test_a_range_test_counts_with_the_passes_that_it_takes() -> None:
    request = RangeRequest(run="r", config=tiny_config(), **PLACE, rates=(1e-4, 1.0), steps=20)
    policy = PolicyOptions(max_epochs_per_day=3)
    for images, today, refused in (
        (None, 2, None),  # not counted yet: one pass at least
        (None, 2.5, SiteError.TOO_MANY_EPOCHS),
        (40, 1, None),  # 10 batches of 4 a pass: two passes
        (40, 1.5, SiteError.TOO_MANY_EPOCHS),
        (39, 1, SiteError.TOO_MANY_EPOCHS),  # 9 batches a pass: three
    ):
        try:
            decide(policy, request, epochs_today=today, images=images)
            assert refused is None
        except Refusal as refusal:
            assert refusal.code == refused


def test_no_batch_is_tried_that_is_larger_than_allowed() -> None:
    request = FitRequest(run="r", config=tiny_config(), **PLACE, sizes=(4, 16))
    assert code(PolicyOptions(max_batch_size=16), request) is None
    assert code(PolicyOptions(max_batch_size=15), request) == SiteError.TOO_LARGE


def test_a_stage_that_is_not_there_is_refused() -> None:
    assert code(PolicyOptions(), training(stage=2)) == SiteError.BAD_REQUEST


def test_too_few_images() -> None:
    check_images(PolicyOptions(), 5)
    for policy, images, refused in (
        (PolicyOptions(), 4, SiteError.TOO_FEW_IMAGES),
        (PolicyOptions(min_images=100), 99, SiteError.TOO_FEW_IMAGES),
        (PolicyOptions(), 0, SiteError.NO_IMAGES),
    ):
        with pytest.raises(Refusal) as refusal:
            check_images(policy, images)
        assert refusal.value.code == refused


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, None),
        ({"federation": "other"}, SiteError.OTHER_FEDERATION),
        ({"site": "beta"}, SiteError.OTHER_SITE),
        ({"site": None}, SiteError.OTHER_SITE),
        ({"issued": NOW + 119, "expires": NOW + 300}, None),
        ({"issued": NOW + 121, "expires": NOW + 300}, SiteError.CLOCK_SKEW),
        ({"issued": NOW - 600, "expires": NOW}, SiteError.EXPIRED),
        ({"issued": NOW - 3000, "expires": NOW + 1}, None),
        ({"issued": NOW, "expires": NOW + 8 * 86_400}, SiteError.BAD_REQUEST),
    ],
)
def test_a_request_is_for_one_federation_one_site_and_a_while(changes, refused) -> None:
    fields = {"federation": "skin", "site": "alpha", "issued": NOW - 1, "expires": NOW + 60, "nonce": "0" * 32}
    stamp = Stamp(**(fields | changes))
    try:
        check_stamp(stamp, federation="skin", site="alpha", for_one_site=True, now=NOW)
        assert refused is None
    except Refusal as refusal:
        assert refusal.code == refused
    if changes == {"site": None}:
        check_stamp(stamp, federation="skin", site="alpha", for_one_site=False, now=NOW)


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-{text}")  # the 23rd is a Monday


@pytest.mark.parametrize(
    ("options", "now", "opens"),
    [
        ({}, "25T12:00", "25T12:00"),
        ({"hours": "20:00-07:00"}, "25T19:59", "25T20:00"),
        ({"hours": "20:00-07:00"}, "25T20:00", "25T20:00"),
        ({"hours": "20:00-07:00"}, "25T06:59:59", "25T06:59:59"),
        ({"hours": "20:00-07:00"}, "25T07:00", "25T20:00"),
        ({"hours": "09:00-17:30"}, "25T17:29", "25T17:29"),
        ({"hours": "09:00-17:30"}, "25T17:30", "26T09:00"),
        ({"hours": "09:00-24:00"}, "25T23:59", "25T23:59"),
        ({"hours": "09:00-24:00"}, "25T00:00", "25T09:00"),
        ({"days": ("sat", "sun")}, "25T12:00", "28T00:00"),
        ({"days": ("sat", "sun")}, "29T23:59", "29T23:59"),
        ({"hours": "20:00-07:00", "days": ("fri",)}, "28T06:00", "28T06:00"),  # Friday's night lasts into Saturday
        ({"hours": "20:00-07:00", "days": ("fri",)}, "27T06:00", "27T20:00"),
    ],
)
def test_the_hours(options, now, opens) -> None:
    schedule = ScheduleOptions(**options)
    assert schedule.next_opening(at(now)) == at(opens)
    assert schedule.is_open(at(now)) == (now == opens)
    assert schedule.is_open(schedule.next_opening(at(now)))
    if now != opens:
        with pytest.raises(Refusal) as refusal:
            check_hours(schedule, at(now))
        assert refusal.value.code == SiteError.OUTSIDE_HOURS


def test_the_next_opening_may_be_a_week_away() -> None:
    schedule = ScheduleOptions(hours="20:00-07:00", days=("wed",))
    assert schedule.next_opening(at("26T07:00")) == datetime(2026, 12, 2, 20)


def test_settings_are_read(tmp_path: Path) -> None:
    assert load_site_config(tmp_path / "none.toml").policy == PolicyOptions()
    path = tmp_path / "site.toml"
    path.write_text(
        f"""
        [policy]
        coordinators = ["{"a" * 64}"]
        bundles = ["{"b" * 64}"]
        tasks = ["rotation", "moco"]
        backbones = ["resnet18"]
        presets = ["ct-lung"]
        cohorts = ["research-2025"]
        min_images = 50
        max_image_size = 256
        max_rounds = 100
        max_epochs_per_day = 20
        max_batch_size = 128
        require_dp = true
        [schedule]
        hours = "20:00-07:00"
        days = ["mon", "fri"]
        [machine]
        device = "cuda:1"
        memory_gb = 16
        threads = 4
        [connection]
        proxy = "http://proxy.hospital:3128"
        quickest_poll_s = 0.5
        slowest_poll_s = 5
        """
    )
    config = load_site_config(path)
    assert config.policy.allowed_cohorts == {"research-2025"}
    assert config.policy.approved_bundles("c" * 64) == {"b" * 64}
    assert PolicyOptions().approved_bundles("c" * 64) == {"c" * 64}
    assert (config.machine.device, config.machine.memory_gb, config.machine.threads) == ("cuda:1", 16, 4)
    assert (config.connection.proxy, config.connection.slowest_poll_s) == ("http://proxy.hospital:3128", 5)
    assert config.schedule.is_open(at("23T21:00")) and not config.schedule.is_open(at("24T21:00"))


def test_the_documentation_shows_every_key_with_its_default(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "hospital-it.md").read_text()
    (shown,) = (block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "[policy]" in block)
    path = tmp_path / "site.toml"
    path.write_text(shown)
    assert load_site_config(path) == SiteConfig()
    path.write_text(re.sub(r"^# (?=\w+ = )", "", shown, flags=re.MULTILINE))
    keys = tomllib.loads(path.read_text())
    tables = {name: set(field.default.__class__.model_fields) for name, field in SiteConfig.model_fields.items()}
    assert {name: set(table) for name, table in keys.items()} == tables


def test_only_images_of_allowed_cohorts_are_offered(tmp_path: Path) -> None:
    from client.scanning import scan

    home, options = SiteHome(tmp_path / "home"), tiny_config().images
    for seed, cohort in enumerate(("research", "clinic")):
        folder = write_pictures(tmp_path / cohort, 12 + seed, seed=seed, labels=False)
        scan(folder, home, options.pipeline, cohort=cohort)
    plain = Site("alpha", tmp_path, [], home.store, tmp_path / "state")
    offered = {}
    for names in (None, ("research",), ("clinic", "research"), ("other",)):
        policy = PolicyOptions(cohorts=names)
        site = Survey(home, plain, policy.allowed_cohorts)(options, True)
        offered[names] = len(site.rows)
        if names == ("research",):
            assert all(Path(row.file).is_relative_to((tmp_path / "research").resolve()) for row in site.rows)
    assert offered == {None: 25, ("research",): 12, ("clinic", "research"): 25, ("other",): 0}


def test_a_site_says_when_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client import check

    class Now(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return at("25T12:00")

    monkeypatch.setattr(check, "datetime", Now)
    (tmp_path / "site.toml").write_text('[schedule]\nhours = "20:00-07:00"\ndays = ["fri"]\n')
    assert "20:00-07:00 on fri, next from Friday 20:00" in check._policy(SiteHome(tmp_path)).says
    (tmp_path / "site.toml").unlink()
    assert "works all day; " in check._policy(SiteHome(tmp_path)).says


def test_every_code_has_one_fixed_sentence_that_holds_no_detail() -> None:
    sentences = [code.sentence for code in SiteError]
    assert len(set(sentences)) == len(sentences)
    assert all("{" not in sentence and len(sentence) < 100 for sentence in sentences)
