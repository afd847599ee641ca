"""Somebody has the SuperLink in his hands: what he can have a hospital do, which is nothing that it has not allowed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Message, RecordDict

from federation_configs.bundle_file import bundle_bytes
from federation_configs.loading import load_config
from federation_configs.records import Enclosure
from federation_configs.signatures import load_signing_key
from federation_configs.site_errors import SiteError
from federation_configs.wire import DescribeRequest, EvaluateRequest, Request, TrainRequest
from scripts.loopback import Hospital, Loopback, aiseeme, aiseeme_site, ran
from server.federation_home import FederationHome
from server.global_model import start_of_stage
from server.request_signing import RequestSigner
from tests.deployment.attackers import Usurper, bomb, bundle, honest, no_message
from tests.deployment.hospitals import loopback, needs_nginx, one_stage

pytestmark = [pytest.mark.deployment, needs_nginx, pytest.mark.timeout(600)]

CONFIG = one_stage("attacked", min_sites=3, round_deadline_s=120, rejoin_s=120)
KINDS = {"describe": "query.describe", "train": "train", "evaluate": "evaluate"}
INVALID_FAB = 7


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("usurped"), CONFIG) as made:
        made.start()
        yield made


@dataclass
class Coordinator:
    """Makes requests as the federation's coordinator does, or as he would not."""

    federation: Loopback
    name: str = "loopback"

    def __post_init__(self) -> None:
        self.config = load_config(str(self.federation.config_file))
        self.model = start_of_stage(self.config, 0, None)
        self.key = load_signing_key(FederationHome(self.federation.home).signing_key)

    def request(self, kind: str, run: str = "attack", **changes: Any) -> Request:
        if kind == "describe":
            return DescribeRequest(run=run, config=self.config)
        place = {"round": 1, "stage": 0, "round_in_stage": 0, "layout_sha256": self.model.layout.digest}
        asked = {"train": TrainRequest, "evaluate": EvaluateRequest}[kind]
        return asked(run=run, config=self.config, **(place | changes))

    def signed(
        self,
        kind: str = "train",
        site: str | None = "alpha",
        key: Ed25519PrivateKey | None = None,
        federation: str | None = None,
        request: Request | None = None,
    ) -> RecordDict:
        signer = RequestSigner(key or self.key, federation or self.name)
        beside = None if kind == "describe" else Enclosure(self.model.vector)
        return signer.pack(kind, request or self.request(kind), site=site, valid_s=300, beside=beside)


@pytest.fixture(scope="module")
def coordinator(federation: Loopback) -> Coordinator:
    return Coordinator(federation)


@pytest.fixture
def alpha(federation: Loopback) -> Hospital:
    return federation.hospitals["alpha"]


@pytest.fixture
def usurper(federation: Loopback) -> Iterator[Usurper]:
    with Usurper.with_bundle(federation, bundle_bytes()) as made:
        yield made


def refused_with(hospital: Hospital, since: int, code: SiteError, what: str) -> dict[str, Any]:
    """The one entry of a refusal that the ledger has since then; there is none of any work."""
    entries = hospital.ledger[since:]
    assert not [entry for entry in entries if entry["kind"] in ("started", "answered")], entries
    (entry,) = [entry for entry in entries if entry["kind"] == "refused"]
    assert (entry["code"], entry["what"]) == (code.name, what)
    return dict(entry)


def code_in(answer: Message) -> SiteError:
    assert answer.has_error()
    return SiteError(answer.error.code)


def site_log(hospital: Hospital) -> str:
    return "\n".join(path.read_text() for path in hospital.home.glob("**/site.log"))


def changed(content: RecordDict, **fields: str) -> RecordDict:
    made = RecordDict({"body": ConfigRecord({**content.config_records["body"], **fields})})
    if "weights" in content:
        made["weights"] = content["weights"]
    return made


def parts(hospital: Hospital) -> set[int]:
    """The processes of a site: none of them is started again by an attack."""
    return {part.pid for part in hospital.service.tree()}


@pytest.fixture
def nobody_falls(federation: Loopback, alpha: Hospital) -> Iterator[None]:
    """The site's processes live through the test, and its node is not deaf after it."""
    before = parts(alpha)
    assert len(before) == 2
    yield
    assert parts(alpha) == before, alpha.files()


# --- bundles


def evil(marker: Path) -> str:
    return f"from pathlib import Path\nPath({str(marker)!r}).write_text('was here')\nclient = server = agent = None\n"


@pytest.mark.usefixtures("nobody_falls")
@pytest.mark.parametrize("task", ["flwr-clientapp", "flwr-agentapp"])
@pytest.mark.parametrize("shadows", [False, True])
def test_a_bundle_that_the_site_has_not_approved(
    task: str, shadows: bool, federation: Loopback, coordinator: Coordinator, alpha: Hospital, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    files = {"evil.py": evil(marker)}
    if shadows:  # a bundle's folder comes before the installed packages
        names = ("client", "server", "torch", "federation_configs")
        files |= {f"{name}/__init__.py": evil(marker) for name in names} | {"client/app.py": evil(marker)}
    unapproved = bundle(files, client="client.app:client" if shadows else "evil:client")
    since = len(alpha.ledger)
    with Usurper.with_bundle(federation, unapproved) as usurper:
        if task == "flwr-agentapp":
            usurper.change("task", "type", task)
        answer = usurper.ask("alpha", coordinator.signed(), "train")
    assert answer.has_error() and answer.error.code in (INVALID_FAB, SiteError.BUNDLE_NOT_APPROVED)
    entry = refused_with(alpha, since, SiteError.BUNDLE_NOT_APPROVED, "bundle")
    assert entry["sha256"] == hashlib.sha256(unapproved).hexdigest()
    assert f"not approved was refused: sha256 {entry['sha256']}" in site_log(alpha)
    assert not marker.exists()
    for path in alpha.home.rglob("*"):
        assert "evil" not in path.name and not (path.is_file() and b"was here" in path.read_bytes()), path


@pytest.mark.usefixtures("nobody_falls")
def test_an_agent_s_task_with_the_approved_bundle(usurper: Usurper, coordinator: Coordinator, alpha: Hospital) -> None:
    """Flower would unpack it and import the module that it names."""
    since = len(alpha.ledger)
    usurper.change("task", "type", "flwr-agentapp")
    assert code_in(usurper.ask("alpha", coordinator.signed(), "train")) is SiteError.BUNDLE_NOT_APPROVED
    refused_with(alpha, since, SiteError.BUNDLE_NOT_APPROVED, "bundle")


@pytest.mark.usefixtures("nobody_falls")
@pytest.mark.parametrize(
    "spoil", [lambda whole: whole[: len(whole) // 2], lambda whole: b"no zip at all", lambda _: b""]
)
def test_a_malformed_bundle_under_the_approved_name(
    spoil: Any, federation: Loopback, coordinator: Coordinator, alpha: Hospital
) -> None:
    """A stock SuperNode lives on after it and answers nobody any more."""
    since = len(alpha.ledger)
    with Usurper.with_bundle(federation, bundle_bytes()) as usurper:
        usurper.change_bundle(spoil)
        try:
            answer = usurper.ask("alpha", coordinator.signed(), "train")
        finally:
            usurper.change_bundle(lambda _: bundle_bytes())
    assert answer.has_error() and answer.error.code == INVALID_FAB
    refused_with(alpha, since, SiteError.BUNDLE_NOT_APPROVED, "bundle")


@pytest.mark.usefixtures("nobody_falls")
def test_a_run_configuration_that_the_bundle_does_not_have(
    usurper: Usurper, coordinator: Coordinator, alpha: Hospital
) -> None:
    """It would end the loop of a stock SuperNode; here nobody reads it."""
    usurper.change("run", "override_config", json.dumps({"no-such-key": "../../evil"}))
    answer = usurper.ask("alpha", coordinator.signed("describe"), "query.describe")
    assert answer.has_content()


# --- messages


@pytest.mark.usefixtures("nobody_falls")
@pytest.mark.parametrize("make", [bomb, no_message])
def test_objects_that_make_no_message(make: Any, usurper: Usurper, coordinator: Coordinator, alpha: Hospital) -> None:
    since, runner = len(alpha.ledger), alpha.service.part("client.runner")
    memory = runner.memory_info().rss
    answer = usurper.answer(usurper.send_objects("alpha", coordinator.signed(), "train", make))
    assert code_in(answer) is SiteError.BAD_REQUEST
    refused_with(alpha, since, SiteError.BAD_REQUEST, "message")
    assert runner.memory_info().rss < memory + 500e6


def test_what_tells_the_two_apart_is_only_the_objects(usurper: Usurper, coordinator: Coordinator) -> None:
    answer = usurper.answer(usurper.send_objects("alpha", coordinator.signed("describe"), "query.describe", honest))
    assert answer.has_content()


@pytest.mark.usefixtures("nobody_falls")
@pytest.mark.parametrize("kind", ["query.nothing", "query", "train.evil", "evaluate.__class__"])
def test_a_type_of_message_that_the_site_does_not_know(
    kind: str, usurper: Usurper, coordinator: Coordinator, alpha: Hospital
) -> None:
    since = len(alpha.ledger)
    assert code_in(usurper.ask("alpha", coordinator.signed(), kind)) is SiteError.BAD_REQUEST
    refused_with(alpha, since, SiteError.BAD_REQUEST, "message")


def tampered(coordinator: Coordinator) -> RecordDict:
    """The signature is over the global model of the coordinator; the array is another."""
    content = coordinator.signed()
    vector = coordinator.model.vector.copy()
    vector[0] += np.float32(1e-3)
    content["weights"] = Enclosure(vector).record
    return content


def with_other_round(coordinator: Coordinator) -> RecordDict:
    content = coordinator.signed()
    text = str(content.config_records["body"]["json"])
    return changed(content, json=text.replace('"round":1', '"round":2'))


def unsigned(coordinator: Coordinator) -> RecordDict:
    content = coordinator.signed()
    body = {"json": content.config_records["body"]["json"]}
    return RecordDict({"body": ConfigRecord(body), "weights": content["weights"]})


WRONG = {
    "a tampered global model": (tampered, SiteError.UNKNOWN_COORDINATOR),
    "a request that was changed": (with_other_round, SiteError.UNKNOWN_COORDINATOR),
    "no signature": (unsigned, SiteError.NOT_SIGNED),
    "another's signature": (lambda one: one.signed(key=Ed25519PrivateKey.generate()), SiteError.UNKNOWN_COORDINATOR),
    "a request for another site": (lambda one: one.signed(site="beta"), SiteError.OTHER_SITE),
    "of another federation": (lambda one: one.signed(federation="elsewhere"), SiteError.OTHER_FEDERATION),
    "a signature for a description": (
        lambda one: changed(one.signed(), signature=str(one.signed("describe").config_records["body"]["signature"])),
        SiteError.UNKNOWN_COORDINATOR,
    ),
}


@pytest.mark.usefixtures("nobody_falls")
@pytest.mark.parametrize("what", WRONG)
def test_a_request_that_the_coordinator_did_not_make_for_this_site(
    what: str, usurper: Usurper, coordinator: Coordinator, alpha: Hospital
) -> None:
    make, code = WRONG[what]
    since = len(alpha.ledger)
    assert code_in(usurper.ask("alpha", make(coordinator), "train")) is code
    refused_with(alpha, since, code, "train")
    assert code.sentence in site_log(alpha)


@pytest.mark.usefixtures("nobody_falls")
@pytest.mark.parametrize("run", ["../../evil", "/tmp/evil", "a/b", "..", "a\\b", "a\0b", "A" * 200])
def test_the_name_of_a_run_with_which_a_file_would_leave_its_place(
    run: str, usurper: Usurper, coordinator: Coordinator, alpha: Hospital
) -> None:
    """Also where the coordinator himself signs it: a run's name becomes the name of a folder at the site."""
    before = sorted(path for path in alpha.home.parent.rglob("*") if "run/" not in str(path) and path.is_dir())
    request = coordinator.request("train").model_copy(update={"run": run})
    since = len(alpha.ledger)
    assert code_in(usurper.ask("alpha", coordinator.signed(request=request), "train")) is SiteError.BAD_REQUEST
    refused_with(alpha, since, SiteError.BAD_REQUEST, "train")
    assert before == sorted(path for path in alpha.home.parent.rglob("*") if "run/" not in str(path) and path.is_dir())


def test_an_old_message_is_not_answered_again_also_after_the_site_was_restarted(
    federation: Loopback, coordinator: Coordinator, alpha: Hospital
) -> None:
    old = coordinator.signed("train")
    with Usurper.with_bundle(federation, bundle_bytes()) as usurper:
        assert usurper.ask("alpha", old, "train").has_content()
        since = len(alpha.ledger)
        assert code_in(usurper.ask("alpha", old, "train")) is SiteError.REPLAYED
        refused_with(alpha, since, SiteError.REPLAYED, "train")
    alpha.service.stop()
    alpha.service.start()
    federation.wait_connected(alpha)
    since = len(alpha.ledger)
    with Usurper.with_bundle(federation, bundle_bytes()) as usurper:
        assert code_in(usurper.ask("alpha", old, "train")) is SiteError.REPLAYED
    refused_with(alpha, since, SiteError.REPLAYED, "train")
    assert SiteError.REPLAYED.sentence in site_log(alpha)


# --- and after all that


def test_after_all_that_a_proper_run_finishes_with_every_site(federation: Loopback) -> None:
    done = aiseeme("launch", federation.config_file, "--federation", federation.home)
    assert done.returncode == 0, done.stdout + done.stderr + federation.server.says()
    for hospital in federation.hospitals.values():
        assert "one unbroken chain" in ran(aiseeme_site("ledger", "verify", "--home", hospital.home))
        assert "Traceback" not in hospital.service.says(), hospital.service.says()
