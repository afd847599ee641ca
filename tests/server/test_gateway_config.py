"""Who comes through the gateway and who does not, with a real nginx in front of a server that notes what reaches it."""

from __future__ import annotations

import base64
import contextlib
import http.server
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from aiseeme_models.errors import InputError
from federation_configs.membership import Membership
from federation_configs.site_keys import (
    load_private,
    make_site_key,
    openssh_pem,
    private_pem,
    public_pem,
    serial_text,
)
from server.certificates import Authority, certificate_pem
from server.federation_home import FederationHome, FederationSettings
from server.gateway import (
    check_gateway,
    check_port,
    end_leftovers,
    find_nginx,
    gateway_command,
    render_gateway,
    write_gateway,
)
from server.provisioning import authority_of, init_federation, invite, make_kit
from server.site_registry import SiteRegistry, SiteRow

HAS_NGINX = any(shutil.which(name) for name in ("nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx"))
needs_nginx = pytest.mark.skipif(not HAS_NGINX, reason="nginx is not installed (Debian: nginx-light)")
deployment = [pytest.mark.deployment, needs_nginx]

FLEET = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
PULL = "/v1/fleet/pull-messages"
DEADLINE_S = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Upstream:
    """Stands where the SuperLink stands, with its certificate, and notes what reaches it."""

    def __init__(self, home: FederationHome) -> None:
        self.seen: list[tuple[str, str, list[str]]] = []
        self.connections = 0
        outer = self

        class Server(http.server.ThreadingHTTPServer):
            def get_request(self) -> tuple[socket.socket, object]:
                outer.connections += 1
                return super().get_request()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one piece: else TCP holds the body back for 40 ms

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.seen.append(("POST", self.path, self.headers.get_all("flwr-public-key") or []))
                answer = f"{len(body)} bytes".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def do_GET(self) -> None:
                outer.seen.append(("GET", self.path, []))
                self.send_error(500)

            def log_message(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(home.link_certificate, home.link_key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Who:
    """Somebody who knocks."""

    context: ssl.SSLContext
    key: str | None

    def header(self) -> str:
        return "" if self.key is None else f"flwr-public-key: {base64.b64encode(self.key.encode()).decode()}\r\n"


@dataclass
class Door:
    """A gateway that runs."""

    home: FederationHome
    upstream: Upstream
    port: int
    process: subprocess.Popen[bytes]
    folder: Path
    kits: dict[str, Membership] = field(default_factory=dict)

    @property
    def log(self) -> str:
        return (self.folder / "out").read_text()

    def context(self, certificate: str | None = None, key: str | None = None) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(self.home.authority_certificate))
        if certificate is not None and key is not None:
            name = self.folder / f"pair-{os.urandom(4).hex()}.pem"
            name.write_text(certificate + key)
            made.load_cert_chain(name)
        return made

    def site(self, name: str, key_of: str | None = None) -> Who:
        """A site with its certificate, and its own key or another's."""
        kit, other = self.kits[name], self.kits[key_of or name]
        return Who(self.context(kit.certificate, kit.private_key), key_pem(other))

    def connect(self, who: Who) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)
        return who.context.wrap_socket(raw, server_hostname="localhost")

    def ask(self, who: Who, path: str = PULL, *, method: str = "POST", body: bytes = b"x", extra: str = "") -> int:
        """The status that a request is answered with."""
        with self.connect(who) as link:
            return self.ask_on(link, who, path, method=method, body=body, extra=extra)

    @staticmethod
    def ask_on(
        link: ssl.SSLSocket, who: Who, path: str = PULL, *, method: str = "POST", body: bytes = b"x", extra: str = ""
    ) -> int:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{who.header()}{extra}Content-Length: {len(body)}"
        with contextlib.suppress(OSError):  # refused before all of the body was sent; the answer is there
            link.sendall(head.encode("latin-1") + b"\r\n\r\n" + body)
        return read_answer(link)


def read_answer(link: socket.socket) -> int:
    """A response's status, with its body read; 0 where the connection was closed instead."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = link.recv(65_536)
        if not piece:
            return 0
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    while len(body) < length and (piece := link.recv(65_536)):
        body += piece
    return int(head.split()[1])


def key_pem(kit: Membership) -> str:
    return public_pem(load_private(kit.private_key or "", "kit").public_key())


def eventually(condition: object, what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.05)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A federation with the sites alpha, beta and gone (revoked), behind its gateway."""
    folder = tmp_path_factory.mktemp("a $strange \"name; here'")
    settings = FederationSettings(name="demo", hostname="localhost", port=free_port(), listen="127.0.0.1")
    home = init_federation(folder / "federation", settings)
    kits = {}
    for name in ("alpha", "beta", "gone"):
        invite(home, name)
        kits[name] = make_kit(home, name)
    registry = SiteRegistry(home.sites_url)
    registry.revoke("gone")
    upstream = Upstream(home)
    write_gateway(home, registry.active(), link_port=upstream.port)
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(gateway_command(home), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        eventually(lambda: is_open(settings.port) or process.poll() is not None, "nginx did not start")
        assert process.poll() is None, (folder / "out").read_text()
        yield Door(home, upstream, settings.port, process, folder, kits)
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        upstream.close()


@pytest.fixture
def nothing_reaches(door: Door) -> Iterator[None]:
    """Whatever the test sends, the SuperLink sees nothing of it."""
    before = len(door.upstream.seen)
    yield
    assert door.upstream.seen[before:] == []


class TestWhoComesIn:
    pytestmark = deployment

    @pytest.mark.parametrize("route", FLEET)
    def test_a_site_reaches_the_ten_routes_of_the_fleet(self, door: Door, route: str) -> None:
        assert door.ask(door.site("alpha"), f"/v1/fleet/{route}") == 200
        assert door.upstream.seen[-1][1] == f"/v1/fleet/{route}"

    def test_a_chunk_of_five_mebibytes_and_some_passes_and_touches_no_disk(self, door: Door) -> None:
        assert door.ask(door.site("beta"), "/v1/fleet/push-object", body=bytes(5 * 2**20 + 4096)) == 200
        assert "buffered to a temporary file" not in door.log

    def test_the_log_names_the_site_and_no_query(self, door: Door) -> None:
        assert door.ask(door.site("beta"), "/v1/fleet/get-run?secret=1234") == 200
        eventually(lambda: 'site="beta"' in door.log, "no line for beta")
        assert "1234" not in door.log
        assert "127.0.0.1" in door.log

    def test_requests_share_one_connection_to_the_superlink(self, door: Door) -> None:
        """A TLS handshake for every request would cost more than the request."""
        before, who = door.upstream.connections, door.site("alpha")
        with door.connect(who) as link:
            assert {door.ask_on(link, who) for _ in range(50)} == {200}
        assert door.upstream.connections - before <= 2

    def test_an_idle_site_does_not_fill_the_log(self, door: Door) -> None:
        who = door.site("alpha")
        with door.connect(who) as link:
            for _ in range(20):
                assert door.ask_on(link, who) == 200
            assert door.ask_on(link, who, "/v1/fleet/get-fab") == 200
        eventually(lambda: "/v1/fleet/get-fab" in door.log, "no line")
        assert f'200 "POST {PULL}"' not in door.log


@pytest.mark.usefixtures("nothing_reaches")
class TestWhoDoesNot:
    pytestmark = deployment

    def test_no_certificate(self, door: Door) -> None:
        assert door.ask(Who(door.context(), key_pem(door.kits["alpha"]))) == 400

    def test_a_certificate_of_another_authority_with_the_same_name_and_serial(self, door: Door) -> None:
        kit = door.kits["alpha"]
        forged = Authority.make("demo authority")
        key = load_private(kit.private_key or "", "kit")
        certificate = certificate_pem(forged.certify_site("alpha", key.public_key()))
        try:
            status = door.ask(Who(door.context(certificate, kit.private_key), key_pem(kit)))
        except ssl.SSLError:
            return  # refused in the handshake
        assert status == 400

    def test_an_expired_certificate(self, door: Door) -> None:
        kit = door.kits["alpha"]
        authority = authority_of(door.home)
        key = load_private(kit.private_key or "", "kit")
        past = datetime.now(UTC) - timedelta(days=1)
        expired = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alpha")]))
            .issuer_name(authority.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.load_pem_x509_certificate((kit.certificate or "").encode()).serial_number)
            .not_valid_before(past - timedelta(days=30))
            .not_valid_after(past)
            .sign(authority.key, hashes.SHA384())
        )
        assert door.ask(Who(door.context(certificate_pem(expired), kit.private_key), key_pem(kit))) == 400
        eventually(lambda: "certificate has expired" in door.log, "the reason is not in the log")

    def test_a_revoked_site(self, door: Door) -> None:
        assert door.ask(door.site("gone")) == 403
        eventually(lambda: f'CN=gone" serial={door.kits["gone"].serial} 403' in door.log, "not logged")

    def test_a_certificate_that_the_authority_signed_but_nobody_registered(self, door: Door) -> None:
        key = make_site_key()
        signed = authority_of(door.home).certify_site("alpha", key.public_key())
        who = Who(door.context(certificate_pem(signed), private_pem(key)), public_pem(key.public_key()))
        assert door.ask(who) == 403

    def test_the_gateway_s_own_certificate_as_a_client(self, door: Door) -> None:
        pair = (door.home.gateway_certificate.read_text(), door.home.gateway_key.read_text())
        assert door.ask(Who(door.context(*pair), key_pem(door.kits["alpha"]))) in (400, 403)

    @pytest.mark.parametrize(("certificate", "key"), [("alpha", "beta"), ("beta", "alpha"), ("alpha", "gone")])
    def test_one_site_s_certificate_with_another_s_key(self, door: Door, certificate: str, key: str) -> None:
        assert door.ask(door.site(certificate, key_of=key)) == 403

    def test_no_key(self, door: Door) -> None:
        assert door.ask(Who(door.site("alpha").context, None)) == 403

    def test_a_key_that_nobody_registered(self, door: Door) -> None:
        unknown = public_pem(make_site_key().public_key())
        assert door.ask(Who(door.site("alpha").context, unknown)) == 403

    def test_plain_http(self, door: Door) -> None:
        with socket.create_connection(("127.0.0.1", door.port), timeout=DEADLINE_S) as link:
            link.sendall(f"POST {PULL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
            assert read_answer(link) == 400

    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/docs",
            "/openapi.json",
            "/health",
            "/v1/control/list-runs",
            "/v1/control/start-run",
            "/v1/runtime/acquire-task",
            "/v1/fleet/register-node",
            "/v1/fleet/unregister-node",
            "/v1/fleet/",
            "/v1/fleet/pull-messages/",
            "/v1/fleet/pull-messagesx",
            "/v1/fleet/../control/list-runs",
            "/v1/fleet/%2e%2e/control/list-runs",
            "/v1/fleet/..%2fcontrol%2flist-runs",
            "/v1/fleet/pull-messages/../../control/list-runs",
            "//v1//control//list-runs",
            "/V1/FLEET/PULL-MESSAGES",
            "/v1/fleet/PULL-MESSAGES",
            "/v1/fleet/pull-messages%0a",
            "https://localhost/v1/control/list-runs",
            "/v1/fleet/pull-messages;/../../control/list-runs",
        ],
    )
    def test_any_other_route_by_whatever_trick(self, door: Door, path: str) -> None:
        assert door.ask(door.site("alpha"), path) in (400, 404)

    def test_a_zero_byte_in_the_path(self, door: Door) -> None:
        assert door.ask(door.site("alpha"), "/v1/fleet/pull-messages%00") == 400

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "CONNECT"])
    def test_any_other_method(self, door: Door, method: str) -> None:
        with door.connect(who := door.site("alpha")) as link:
            status = door.ask_on(link, who, method=method, body=b"", extra="Connection: close\r\n")
        assert status in (400, 403, 405)

    def test_an_oversized_body(self, door: Door) -> None:
        assert door.ask(door.site("alpha"), "/v1/fleet/push-object", body=bytes(9 * 2**20)) == 413

    def test_an_oversized_body_that_does_not_say_how_large_it_is(self, door: Door) -> None:
        who = door.site("alpha")
        with door.connect(who) as link:
            head = f"POST {PULL} HTTP/1.1\r\nHost: x\r\n{who.header()}Transfer-Encoding: chunked\r\n\r\n"
            link.sendall(head.encode())
            with contextlib.suppress(OSError):
                for _ in range(9):
                    link.sendall(b"100000\r\n" + bytes(2**20) + b"\r\n")
            assert read_answer(link) == 413


@pytest.mark.deployment
@needs_nginx
def test_what_is_passed_on_is_a_route_of_the_fleet_as_it_is_written(door: Door) -> None:
    """nginx has resolved the dots where it compares; the SuperLink must not be given another reading of them."""
    before = len(door.upstream.seen)
    for path in (
        "/v1/control/../fleet/pull-messages",
        "/v1/fleet//get-run?x=../../control",
        "/v1/fleet/%67et-fab#/../x",
    ):
        assert door.ask(door.site("alpha"), path) in (200, 400, 404)
    assert {path for _, path, _ in door.upstream.seen[before:]} <= {f"/v1/fleet/{route}" for route in FLEET}


@pytest.mark.deployment
@needs_nginx
def test_of_two_keys_in_one_request_the_superlink_sees_the_one_that_was_looked_at(door: Door) -> None:
    """Else a site could pass the gateway as itself and the SuperLink as another."""
    own, other = door.site("alpha"), door.site("beta")
    before = len(door.upstream.seen)
    assert door.ask(own, extra=other.header()) in (200, 400, 403)
    assert door.ask(other, extra=own.header()) in (200, 400, 403)
    for who, (_, _, keys) in zip((own, other), door.upstream.seen[before:], strict=False):
        assert keys == [who.header().split(": ")[1].strip()]


@pytest.mark.deployment
@needs_nginx
def test_a_site_that_is_revoked_is_refused_on_the_connection_that_it_has_kept(door: Door) -> None:
    registry = SiteRegistry(door.home.sites_url)
    everybody = registry.active()
    who, other = door.site("beta"), door.site("alpha")
    with door.connect(who) as link, door.connect(other) as unconcerned:
        assert door.ask_on(link, who) == 200
        assert door.ask_on(unconcerned, other) == 200
        write_gateway(door.home, [row for row in everybody if row.name != "beta"], link_port=door.upstream.port)
        door.process.send_signal(signal.SIGHUP)
        before = len(door.upstream.seen)
        end = time.monotonic() + DEADLINE_S
        # The old workers may answer one more request on a connection, then it is closed; nobody is let in anew.
        statuses = []
        while time.monotonic() < end:
            try:
                statuses.append(door.ask_on(link, who))
            except OSError:
                statuses.append(0)
            if statuses[-1] != 200:
                break
        assert statuses[-1] in (0, 403)
        assert len(door.upstream.seen) - before == statuses.count(200)
    eventually(lambda: door.ask(who) == 403, "a revoked site still comes in")
    assert door.ask(other) == 200
    write_gateway(door.home, everybody, link_port=door.upstream.port)
    door.process.send_signal(signal.SIGHUP)
    eventually(lambda: door.ask(who) == 200, "a site that was let in again is refused")


@pytest.mark.deployment
@needs_nginx
def test_nothing_is_written_outside_the_home_and_nobody_else_reads_it(door: Door) -> None:
    assert (door.home.gateway_folder / "nginx.pid").exists()
    assert door.home.gateway_folder.stat().st_mode & 0o077 == 0
    opened = {str(fd.readlink()) for fd in Path(f"/proc/{door.process.pid}/fd").iterdir()}
    files = {name for name in opened if name.startswith("/") and not name.startswith(("/dev/", "/SYSV"))}
    assert all(name.startswith(str(door.folder)) for name in files), files


@needs_nginx
def test_nginx_accepts_what_is_written_for_a_thousand_sites(tmp_path: Path) -> None:
    home = init_federation(tmp_path / "home", FederationSettings(name="demo", hostname="localhost"))
    rows = [
        SiteRow(
            name=f"site-{number}",
            status="active",
            public_key_pem=public_pem(make_site_key().public_key()),
            serial=serial_text(x509.random_serial_number()),
            created="",
            changed="",
        )
        for number in range(1000)
    ]
    write_gateway(home, rows, link_port=1)
    asked = subprocess.run([*gateway_command(home), "-t"], capture_output=True, text=True, check=False)
    assert asked.returncode == 0 and "[warn]" not in asked.stderr, asked.stderr


@needs_nginx
def test_a_mistake_in_the_configuration_is_said_in_nginx_s_own_words(tmp_path: Path) -> None:
    home = init_federation(tmp_path / "home", FederationSettings(name="demo", hostname="localhost"))
    write_gateway(home, [], link_port=1)
    check_gateway(home)
    with (home.gateway_folder / "nginx.conf").open("a") as file:
        file.write("nonsense;\n")
    with pytest.raises(InputError, match="nonsense"):
        check_gateway(home)


def test_where_nginx_is_missing_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gateway.shutil.which", lambda name: None)
    with pytest.raises(InputError, match="nginx-light"):
        find_nginx()


def test_the_configuration_names_no_path_of_this_machine(tmp_path: Path) -> None:
    home = init_federation(tmp_path / "home", FederationSettings(name="demo", hostname="fl.example.org", listen="::1"))
    text = render_gateway(home, [], link_port=4321)
    assert str(tmp_path) not in text
    assert "listen [::1]:8443 ssl" in text and "127.0.0.1:4321" in text
    assert "listen 10.0.0.1:9000 ssl" in render_gateway(home, [], link_port=1, listen="10.0.0.1", port=9000)


def test_a_site_is_known_by_the_very_header_that_flower_s_node_sends(tmp_path: Path) -> None:
    """A contract with flwr: its own code makes the header, from the key file that a hospital's node would read."""
    import httpx
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.supercore.protobuf.client import ProtobufRequestContext
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    home = init_federation(tmp_path / "home", FederationSettings(name="demo", hostname="localhost"))
    invite(home, "alpha")
    kit = make_kit(home, "alpha")
    node_key = load_ssh_private_key(openssh_pem(load_private(kit.private_key or "", "kit")).encode(), None)
    assert isinstance(node_key, ec.EllipticCurvePrivateKey)
    request = httpx.Request("POST", f"https://localhost{PULL}")
    context = ProtobufRequestContext.__new__(ProtobufRequestContext)
    object.__setattr__(context, "request", request)
    answer = httpx.Response(200)
    NodeAuthHttpInterceptor(node_key, node_key.public_key()).intercept(context, lambda _: answer)
    text = render_gateway(home, SiteRegistry(home.sites_url).active(), link_port=1)
    assert f'"{kit.serial}:{request.headers["flwr-public-key"]}" alpha;' in text


def test_a_port_that_somebody_else_has_is_said_before_anything_starts(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings = FederationSettings(name="f", hostname="localhost", listen="127.0.0.1", port=port)
        home = init_federation(tmp_path / "home", settings)
        with pytest.raises(InputError, match=r"the gateway cannot listen on 127\.0\.0\.1:.*Address already in use"):
            check_port(home)
    check_port(home)


@pytest.mark.deployment
@needs_nginx
def test_workers_whose_master_was_killed_do_not_keep_the_port(tmp_path):
    settings = FederationSettings(name="f", hostname="localhost", listen="127.0.0.1", port=free_port())
    home = init_federation(tmp_path / "home", settings)
    write_gateway(home, [], link_port=free_port())
    end_leftovers(home)  # there is nothing yet
    with (tmp_path / "log").open("wb") as log:
        master = subprocess.Popen(gateway_command(home), stdout=log, stderr=log, start_new_session=True)
    try:
        give_up = time.monotonic() + 30
        while not list_children(master.pid):
            assert time.monotonic() < give_up
            time.sleep(0.02)
        master.kill()
        master.wait()
        with pytest.raises(InputError, match="Address already in use"):
            check_port(home)
        end_leftovers(home)
        check_port(home)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(master.pid, signal.SIGKILL)


def list_children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children()
