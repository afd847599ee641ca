"""No connection leaves the machine but to the configured coordinator: each connect() and send of a whole federation."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from scripts.loopback import ENVIRONMENT, Loopback, aiseeme, aiseeme_site
from tests.conftest import REPOSITORY, write_pictures
from tests.deployment.hospitals import needs_nginx
from tests.deployment.whole_federation import CONFIG

pytestmark = [pytest.mark.deployment, needs_nginx, pytest.mark.timeout(900)]

CALLS = ("connect", "sendto", "sendmsg", "sendmmsg", "bind")
STRACE = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", f"trace={','.join(CALLS)}", "-e", "signal=none"]
ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
_ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)")')


def works(command: list[str]) -> bool:
    """Whether this machine lets us."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([*command, "true"], capture_output=True, timeout=30, check=False)
        return done.returncode == 0
    return False


def traced(folder: Path) -> list[str]:
    return [*STRACE, "-o", str(folder / "calls")] if works([*STRACE, "-o", str(folder / "tried")]) else []


def addresses(calls: str) -> dict[str, set[str]]:
    """Internet addresses by call, as strace shows them, with their ports."""
    found: dict[str, set[str]] = {call: set() for call in CALLS}
    for line in calls.splitlines():
        name = re.match(r"\d+ +(?:<\.\.\. )?(\w+)", line)
        for port, four, six in _ADDRESS.findall(line) if name and name[1] in found else ():
            found[name[1]].add(f"{four or six} {port}")
    return found


def elsewhere(found: dict[str, set[str]]) -> set[str]:
    """Those that are not on loopback."""
    everything = set().union(*found.values())
    return {one for one in everything if not ipaddress.ip_address(one.split(" ")[0]).is_loopback}


def test_what_leaves_would_be_seen(tmp_path: Path) -> None:
    """Also a question to a name server, and what a child's child sends."""
    if not (trace := traced(tmp_path)):
        pytest.skip("strace is not installed, or may not trace here")
    code = (
        "import os, socket, threading\n"
        "def udp(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.7', 53))\n"
        "def tcp():\n"
        "    one = socket.socket(socket.AF_INET6); one.settimeout(0.01)\n"
        "    try: one.connect(('2001:db8::7', 443))\n"
        "    except OSError: pass\n"
        "try: udp()\n"
        "except OSError: pass\n"
        "if os.fork() == 0: threading.Thread(target=tcp).start()\n"
        "else: os.wait()\n"
    )
    subprocess.run([*trace, sys.executable, "-c", code], check=True, timeout=60)
    assert elsewhere(addresses((tmp_path / "calls").read_text())) == {"192.0.2.7 53", "2001:db8::7 443"}


def test_a_whole_federation_talks_to_its_own_gateway_and_to_nobody_else(tmp_path: Path) -> None:
    """In a network of its own without a way out, where that is possible: nothing may need one either."""
    alone, trace = (ALONE if works(ALONE) else []), traced(tmp_path)
    if not alone and not trace:
        pytest.skip("neither strace nor a network namespace may be used here")
    # As a hospital's shell is: nothing that switches Flower's habits off is in it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "UV_"))}
    environment = {name: value for name, value in environment.items() if not name.lower().endswith("_proxy")}
    code = "from tests.deployment.whole_federation import main; main()"
    played = subprocess.run(
        [*alone, *trace, sys.executable, "-c", code, str(tmp_path / "federation")],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=850,
    )
    assert played.returncode == 0 and "all of it was done" in played.stdout, played.stdout + played.stderr[-6000:]
    if not trace:
        return
    found = addresses((tmp_path / "calls").read_text())
    assert elsewhere(found) == set()
    assert len(found["connect"]) > 5, "sites, gateway, SuperLink and runners have talked to each other"
    assert {one for one in found["sendto"] | found["sendmsg"] | found["sendmmsg"] if one.endswith(" 53")} == set()


class Proxy:
    """A hospital's proxy: CONNECT, and nothing else. Every name is this machine."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, inside: socket.socket) -> None:
        with inside, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (piece := inside.recv(4096)):
                    return
                head += piece
            method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
            self.asked.append(f"{method} {target}")
            if method != "CONNECT":
                inside.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2]))) as outside:
                inside.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_copy, args=(outside, inside), daemon=True)
                back.start()
                _copy(inside, outside)
                back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65_536):
            target.sendall(piece)
    for one in (source, target):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


@pytest.mark.parametrize("named", ["in site.toml", "in the environment"])
def test_a_hospital_s_proxy_is_for_the_gateway_and_not_for_loopback(named: str, proxy: Proxy, tmp_path: Path) -> None:
    """The gateway has a name that only the proxy finds; a runner that asked its node through the proxy would fail."""
    pictures = {"alpha": write_pictures(tmp_path / "pictures", 16)}
    config = CONFIG.replace("min_sites = 3", "min_sites = 1")
    with Loopback(tmp_path, config, pictures, hostname="gateway.hospitals.test") as federation:
        site = federation.hospitals["alpha"]
        if named == "in site.toml":
            (site.home / "site.toml").write_text(f'[connection]\nproxy = "{proxy.url}"\n')
        else:
            names = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy")
            bare = {name: value for name, value in ENVIRONMENT.items() if name.upper() != "NO_PROXY"}
            site.service.environment = bare | dict.fromkeys(names, proxy.url)
        federation.server.start()
        site.service.start()
        federation.wait_connected(site)
        done = aiseeme("launch", federation.config_file, "--federation", federation.home)
        assert done.returncode == 0, done.stdout + done.stderr + site.files()
        if named == "in site.toml":
            looked = aiseeme_site("check", "--home", site.home)
            assert looked.returncode == 0, looked.stdout
    assert set(proxy.asked) == {f"CONNECT gateway.hospitals.test:{federation.port}"}
