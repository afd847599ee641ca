"""Through the one open door to a SuperLink that would answer: what the door and the SuperLink refuse together.

What needs no SuperLink to be refused is in ``tests/server/test_gateway_config.py``, trick by trick.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.x509.oid import NameOID
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse, StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from client.membership import SiteMembership, load_membership
from client.site_home import SiteHome
from federation_configs.bundle_file import bundle_bytes
from federation_configs.site_keys import load_private, make_site_key, private_pem, public_pem
from scripts.loopback import Loopback, aiseeme, aiseeme_site, ran, until
from server.certificates import Authority, certificate_pem
from server.federation_home import FederationHome
from server.provisioning import authority_of
from tests.deployment.attackers import Node, link_of, node_of
from tests.deployment.hospitals import loopback, needs_nginx

pytestmark = [pytest.mark.deployment, needs_nginx, pytest.mark.timeout(600)]

MEDIA = {"Content-Type": PROTOBUF_MEDIA_TYPE, "Accept": PROTOBUF_MEDIA_TYPE}
PULL = "/v1/fleet/pull-messages"
LIST = "/v1/control/list-nodes"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """Three hospitals have joined; alpha's services run, the others' nodes are ours."""
    with loopback(tmp_path_factory.mktemp("door"), images=8) as made:
        made.server.start()
        made.hospitals["alpha"].service.start()
        made.wait_connected(made.hospitals["alpha"])
        yield made


@dataclass
class Who:
    """Somebody who knocks: with a certificate or none, and a node key."""

    federation: Loopback
    certificate: str | None
    certificate_key: str | None
    key: EllipticCurvePrivateKey
    signer: EllipticCurvePrivateKey | None = None
    signed_at: datetime | None = None

    def headers(self) -> dict[str, str]:
        """What Flower's node sends to show that it has its key."""
        when = (self.signed_at or datetime.now(UTC)).isoformat()
        signature = sign_message(self.signer or self.key, when.encode())
        pem = public_pem(self.key.public_key()).encode()
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(pem).decode(),
            TIMESTAMP_HEADER: when,
            FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
        }

    def context(self) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(FederationHome(self.federation.home).authority_certificate))
        if self.certificate is not None and self.certificate_key is not None:
            pair = self.federation.folder / "knocking.pem"
            pair.write_text(self.certificate + self.certificate_key)
            made.load_cert_chain(pair)
        return made

    def ask(self, path: str, body: bytes = b"", port: int | None = None, context: ssl.SSLContext | None = None) -> int:
        """The status that a request is answered with; the path is sent as it is written."""
        link = http.client.HTTPSConnection(
            "localhost", port or self.federation.port, context=context or self.context(), timeout=30
        )
        with contextlib.closing(link):
            link.putrequest("POST", path)
            for name, value in {**self.headers(), **MEDIA}.items():
                link.putheader(name, value)
            link.putheader("Content-Length", str(len(body)))
            link.endheaders()
            with contextlib.suppress(OSError):  # refused before all of it was sent; the answer is there
                link.send(body)
            return link.getresponse().status


def membership(federation: Loopback, site: str) -> SiteMembership:
    return load_membership(SiteHome(federation.hospitals[site].home))


def member(federation: Loopback, certificate: str = "alpha", key: str = "alpha") -> Who:
    shown, mine = membership(federation, certificate), membership(federation, key)
    return Who(
        federation,
        shown.certificate_file.read_text(),
        shown.key_file.read_text(),
        load_private(mine.key_file.read_text(), key),
    )


@pytest.fixture
def beta(federation: Loopback) -> Iterator[bytes]:
    """What beta's node would ask the SuperLink: it is online, so that only what a test changes can be the reason."""
    with Node(federation.hospitals["beta"]) as node:
        yield PullMessagesRequest(node=NodeProto(node_id=node.id)).SerializeToString()


def gateway_log(federation: Loopback) -> str:
    return (federation.home / "logs" / "gateway.log").read_text(errors="replace")


def superlink_log(federation: Loopback) -> str:
    return (federation.home / "logs" / "superlink.log").read_text(errors="replace")


def refused_by(federation: Loopback, since: int, *marks: str) -> None:
    """The gateway's log names it."""

    def found() -> bool:
        lines = gateway_log(federation)[since:].splitlines()
        return any(all(mark in line for mark in marks) for line in lines)

    until(found, lambda: f"{marks} in\n{gateway_log(federation)[since:]}", 20)


def test_who_has_certificate_and_key_of_one_site_comes_in(federation: Loopback, beta: bytes) -> None:
    assert member(federation, "beta", "beta").ask(PULL, beta) == 200


@pytest.mark.parametrize("path", [LIST, f"/v1/fleet/..{LIST[3:]}", f"/v1/fleet/%2e%2e{LIST[3:]}", f"/{LIST}"])
def test_the_control_api_answers_on_loopback_and_not_through_the_door(path: str, federation: Loopback) -> None:
    """Flower's Control API asks nobody who he is: on loopback this very request lists the nodes."""
    since, seen = len(gateway_log(federation)), superlink_log(federation).count(LIST)
    home = FederationHome(federation.home)
    inner = ssl.create_default_context(cafile=str(home.link_authority))
    body = ListNodesRequest().SerializeToString()
    link = link_of(federation)
    answer = httpx.post(
        f"https://{link.address}{LIST}",
        content=body,
        headers=MEDIA,
        verify=inner,
        trust_env=False,
    )
    assert answer.is_success, answer.text
    assert len(ListNodesResponse.FromString(answer.content).nodes_info) == 3
    there = superlink_log(federation).count(LIST)
    assert there > seen
    assert member(federation).ask(path, body) == 404
    assert superlink_log(federation).count(LIST) == there
    refused_by(federation, since, 'site="alpha"' if "fleet" not in path else "", " 404 ")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/control/unregister-node",
        "/v1/control/stop-run",
        "/v1/runtime/acquire-task",
        "/v1/runtime/push-messages",
        "/v1/runtime/push-task-output",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/openapi.json",
        "/docs",
        "/health",
    ],
)
def test_no_other_route_of_the_superlink(path: str, federation: Loopback) -> None:
    since, nodes = len(superlink_log(federation)), link_of(federation).nodes()
    body = StartRunRequest().SerializeToString() if "start-run" in path else bundle_bytes()
    assert member(federation).ask(path, body) == 404
    assert f"POST {path}" not in superlink_log(federation)[since:]
    assert link_of(federation).nodes() == nodes


def expired(federation: Loopback) -> Who:
    who, authority = member(federation, "beta", "beta"), authority_of(FederationHome(federation.home))
    past = datetime.now(UTC) - timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "beta")]))
        .issuer_name(authority.certificate.subject)
        .public_key(who.key.public_key())
        .serial_number(x509.load_pem_x509_certificate((who.certificate or "").encode()).serial_number)
        .not_valid_before(past - timedelta(days=30))
        .not_valid_after(past)
        .sign(authority.key, hashes.SHA384())
    )
    who.certificate = certificate_pem(made)
    return who


def of_another_authority(federation: Loopback) -> Who:
    who = member(federation, "beta", "beta")
    who.certificate = certificate_pem(Authority.make("loopback authority").certify_site("beta", who.key.public_key()))
    return who


def without_certificate(federation: Loopback) -> Who:
    who = member(federation, "beta", "beta")
    who.certificate = None
    return who


def of_a_key_that_nobody_registered(federation: Loopback) -> Who:
    """The authority has signed it, in beta's name."""
    who, key = member(federation, "beta", "beta"), make_site_key()
    signed = authority_of(FederationHome(federation.home)).certify_site("beta", key.public_key())
    who.certificate, who.certificate_key, who.key = certificate_pem(signed), private_pem(key), key
    return who


@pytest.mark.parametrize(
    ("who", "statuses", "marks"),
    [
        (without_certificate, {400}, ['certificate="NONE']),
        (of_another_authority, {400}, ['certificate="FAILED']),
        (expired, {400}, ['certificate="FAILED:certificate has expired']),
        (of_a_key_that_nobody_registered, {403}, ['certificate="SUCCESS CN=beta"', 'site=""']),
        (lambda one: member(one, "alpha", "beta"), {403}, ['certificate="SUCCESS CN=alpha"', 'site=""']),
        (lambda one: member(one, "beta", "alpha"), {403}, ['certificate="SUCCESS CN=beta"', 'site=""']),
    ],
    ids=["none", "another authority's", "expired", "unregistered", "another's", "own with another's key"],
)
def test_a_certificate_that_is_not_the_site_s(
    who: object, statuses: set[int], marks: list[str], federation: Loopback, beta: bytes
) -> None:
    since, seen = len(gateway_log(federation)), len(superlink_log(federation))
    assert who(federation).ask(PULL, beta) in statuses  # type: ignore[operator]
    refused_by(federation, since, *marks, PULL)
    assert f'{PULL} HTTP/1.1" 401' not in superlink_log(federation)[seen:], "the door itself refused it"


@pytest.mark.parametrize("wrong", ["signature", "old", "of tomorrow", "another node"])
def test_a_node_that_does_not_show_that_it_has_its_key(wrong: str, federation: Loopback, beta: bytes) -> None:
    """The public half of a key is in every request's header: the SuperLink asks for a signature that is minutes old."""
    since, who = len(gateway_log(federation)), member(federation, "beta", "beta")
    if wrong == "signature":
        who.signer = make_site_key()
    elif wrong == "another node":
        beta = PullMessagesRequest(node=NodeProto(node_id=node_of(federation, "alpha"))).SerializeToString()
    else:
        who.signed_at = datetime.now(UTC) + timedelta(hours=-1 if wrong == "old" else 24)
    assert who.ask(PULL, beta) == 401
    refused_by(federation, since, 'site="beta"', f'401 "POST {PULL}"')


def test_an_oversized_body_and_after_it_the_site_goes_on(federation: Loopback, beta: bytes) -> None:
    since, who = len(gateway_log(federation)), member(federation, "beta", "beta")
    assert who.ask("/v1/fleet/push-object", bytes(9 * 2**20)) == 413
    refused_by(federation, since, 'site="beta"', " 413 ")
    assert who.ask(PULL, beta) == 200


def test_plain_http(federation: Loopback, beta: bytes) -> None:
    who = member(federation, "beta", "beta")
    link = http.client.HTTPConnection("localhost", federation.port, timeout=30)
    with contextlib.closing(link):
        link.request("POST", PULL, body=beta, headers=who.headers())
        assert link.getresponse().status == 400
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        plain = http.client.HTTPConnection(*link_of(federation).address.split(":"), timeout=30)  # type: ignore[arg-type]
        with contextlib.closing(plain):
            plain.request("POST", LIST)
            plain.getresponse()


def test_a_site_that_is_revoked_is_out_at_the_door_and_at_the_superlink(federation: Loopback) -> None:
    """Within one heartbeat, which is 30 s; also where the door would not look, and whatever is in its name now."""
    hospital, since = federation.hospitals["gamma"], len(gateway_log(federation))
    with Node(hospital) as node:
        assert node.pull() is None
        ran(aiseeme("site", "revoke", "gamma", "--federation", federation.home))

        def is_out() -> bool:
            try:
                node.pull()
            except httpx.HTTPStatusError as error:
                return error.response.status_code == 403
            return False

        until(is_out, "the door is closed", 30)
        asked = PullMessagesRequest(node=NodeProto(node_id=node.id)).SerializeToString()
    until(lambda: len(link_of(federation).nodes()) == 2, "the SuperLink forgets the key", 30)
    refused_by(federation, since, "CN=gamma", 'site=""', " 403 ")
    address, home = link_of(federation).address, FederationHome(federation.home)
    inside = ssl.create_default_context(cafile=str(home.link_authority))
    who = member(federation, "gamma", "gamma")
    port = int(address.rpartition(":")[2])
    assert who.ask(PULL, asked, port=port, context=inside) == 401
    again = ActivateNodeRequest(public_key=public_pem(who.key.public_key()).encode(), heartbeat_interval=30)
    assert who.ask("/v1/fleet/activate-node", again.SerializeToString(), port=port, context=inside) >= 400
    told = aiseeme_site("check", "--home", hospital.home)
    assert told.returncode == 1 and "it was revoked" in told.stdout
    listed = json.loads(ran(aiseeme("site", "list", "--federation", federation.home, "--json")))
    assert {row["name"]: row["status"] for row in listed}["gamma"] == "revoked"


def test_the_key_of_a_revoked_site_is_never_taken_again(federation: Loopback, tmp_path: Path) -> None:
    """Runs after the revocation."""
    invitation, request = tmp_path / "invitation.json", tmp_path / "request.pem"
    key = load_private(membership(federation, "gamma").key_file.read_text(), "gamma")
    ran(aiseeme("site", "add", "gamma", "--federation", federation.home, "--out", invitation))
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gamma")]))
        .sign(key, hashes.SHA384())
    )
    from cryptography.hazmat.primitives.serialization import Encoding

    request.write_bytes(asked.public_bytes(Encoding.PEM))
    done = aiseeme("site", "sign", request, "--federation", federation.home, "--out", tmp_path / "admission.json")
    assert done.returncode == 2 and "has given up this key" in done.stderr
    assert not (tmp_path / "admission.json").exists()


def test_after_all_that_the_honest_site_is_still_there(federation: Loopback) -> None:
    assert aiseeme_site("status", "--home", federation.hospitals["alpha"].home).returncode == 0
    assert node_of(federation, "alpha")
