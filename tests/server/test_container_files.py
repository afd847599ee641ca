"""What the container files promise: locked down, pinned, the same layers for both roles, and commands that exist."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import Context, Group, UsageError
from typer.main import get_command
from typer.testing import CliRunner

import client.cli
import server.cli
from client.membership import load_membership
from client.node_files import NodeFiles
from client.site_home import SiteHome
from federation_configs.membership import to_json
from server.federation_home import FederationHome, FederationSettings
from server.provisioning import init_federation, invite, sign_request

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = ["server.Dockerfile", "client.Dockerfile"]
COMPOSE_FILES = ["compose.yaml", "site.compose.yaml"]
USER = "10001"


def read_all(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / name).read_text()))


def instructions(name: str) -> list[tuple[str, str]]:
    """The last stage's instructions: name and the rest, lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found = [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]
    last = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    return found[last:]  # type: ignore[return-value]


def services() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in COMPOSE_FILES:
        (whole,) = read_all(file)
        yield from ((f"{file}: {name}", service) for name, service in whole["services"].items())


def kubernetes(kind: str) -> dict[str, Any]:
    return next(one for one in read_all("kubernetes/site.yaml") if one["kind"] == kind)


def pod() -> dict[str, Any]:
    return kubernetes("Deployment")["spec"]["template"]["spec"]


def all_files() -> list[Path]:
    return [path for path in DOCKER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


# --- the images


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_as_an_ordinary_user_and_says_how_it_is(name: str) -> None:
    said = instructions(name)
    assert [rest for word, rest in said if word == "USER"] == [f"{USER}:{USER}"]
    assert [rest for word, rest in said if word == "STOPSIGNAL"] == ["SIGTERM"]
    assert sum(word == "HEALTHCHECK" for word, _ in said) == 1
    after = [word for word, _ in said][[word for word, _ in said].index("USER") :]
    assert not {"RUN", "COPY", "ADD"} & set(after)
    assert "VOLUME" not in dict(said)  # a home in a volume without a name is lost with its keys


def test_both_images_share_their_layers() -> None:
    common = [(DOCKER / name).read_text().partition("# common end")[0].partition("\n")[2] for name in DOCKERFILES]
    assert common[0] == common[1]
    assert "--require-hashes" in common[0]
    assert "ARG BASE_IMAGE=python:3.11-slim-bookworm\n" in common[0]


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    uv = re.search(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert uv is not None
    for name in DOCKERFILES:
        text = (DOCKER / name).read_text()
        assert f'image.version="{project}"' in text
        assert f"ARG UV_VERSION={uv.group(1)}\n" in text
    named = [service["image"] for _, service in services()]
    named += [one["image"] for one in (*pod()["initContainers"], *pod()["containers"])]
    assert {name.rpartition(":")[2] for name in named} == {project}


def test_nothing_is_latest() -> None:
    assert [path.name for path in all_files() if "latest" in path.read_text()] == []


def test_only_what_is_needed_reaches_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    wanted = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert all((ROOT / one).exists() for one in wanted)
    copied = set()
    for name in DOCKERFILES:
        for line in re.findall(r"^COPY (?!--from)(.*)$", (DOCKER / name).read_text(), re.MULTILINE):
            copied |= {word for word in line.split()[:-1] if not word.startswith("--")}
    assert copied == wanted


# --- what is run


@pytest.mark.parametrize(("where", "service"), services(), ids=[name for name, _ in services()])
def test_a_service_is_locked_down(where: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True  # `aiseeme serve` as process 1 leaves zombies
    assert [mount.split(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert not {"privileged", "cap_add", "devices", "pid", "user"} & set(service)
    assert "host" not in (service.get("network_mode"), service.get("ipc"))
    if where != "compose.yaml: coordinator":
        assert "ports" not in service
    if "phantoms" not in where:
        assert service["restart"] == "unless-stopped"
        images = [mount for mount in service["volumes"] if ":/images" in mount]
        assert all(mount.endswith(":ro") for mount in images)
        assert len(images) == ("coordinator" not in where)


def test_a_coordinator_is_not_reached_from_elsewhere_unless_somebody_says_so() -> None:
    assert dict(services())["compose.yaml: coordinator"]["ports"] == ["${AISEEME_LISTEN:-127.0.0.1}:8443:8443"]


def test_the_pod_meets_the_restricted_standard() -> None:
    spec, outer = pod(), pod()["securityContext"]
    assert (outer["runAsNonRoot"], outer["runAsUser"]) == (True, int(USER))
    assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
    # Else Kubernetes lets the group read private keys, and the site refuses them.
    assert outer["fsGroupChangePolicy"] == "OnRootMismatch"
    assert spec["automountServiceAccountToken"] is False
    assert spec["shareProcessNamespace"] is True
    for one in (*spec["initContainers"], *spec["containers"]):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in one["resources"]["limits"]
        mounts = {mount["mountPath"]: mount for mount in one["volumeMounts"]}
        assert {"/var/lib/aiseeme", "/tmp"} <= set(mounts)
        assert all(mounts[path].get("readOnly") for path in mounts.keys() & {"/images", "/letter"})
    allowed = {"persistentVolumeClaim", "emptyDir", "secret"}
    assert all(set(volume) <= {"name", *allowed} for volume in spec["volumes"])


def test_a_site_is_one_pod_that_only_reaches_names_and_the_gateway() -> None:
    deployment = kubernetes("Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    (site,) = pod()["containers"]
    assert site["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(site)
    policy = kubernetes("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    assert policy["podSelector"]["matchLabels"] == deployment["selector"]["matchLabels"]
    assert all(rule["to"] for rule in policy["egress"])
    assert sorted(port["port"] for rule in policy["egress"] for port in rule["ports"]) == [53, 53, 8443]


# --- the commands in the files


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of AISEEME that the container files and their page name."""
    entry = {"server.Dockerfile": "aiseeme", "client.Dockerfile": "aiseeme-site"}
    for name, program in entry.items():
        said = dict(instructions(name))
        assert json.loads(said["ENTRYPOINT"]) == [program]
        yield name, [program, *json.loads(said["CMD"])]
    yield "client.Dockerfile", json.loads(dict(instructions("client.Dockerfile"))["HEALTHCHECK"].partition("CMD ")[2])
    for where, service in services():
        if "command" in service:
            yield where, ["aiseeme-site" if "client" in service["image"] else "aiseeme", *service["command"]]
    (site,) = pod()["containers"]
    yield "site.yaml", ["aiseeme-site", *site["args"]]
    yield "site.yaml", ["aiseeme-site", *pod()["initContainers"][1]["args"]]
    yield "site.yaml", site["readinessProbe"]["exec"]["command"]
    for path in (DOCKER / "check.sh", DOCKER / "kubernetes" / "site.yaml", ROOT / "docs" / "containers.md"):
        text = re.sub(r"(-n|--name) aiseeme\S*", "", path.read_text().replace("\\\n", " "))
        for line in re.findall(r"(?<![-\w/#`\"])(aiseeme(?:-site)? [a-z-][^\n#|;>`')]*)", text):
            yield path.name, shlex.split(line)
        for service, rest in re.findall(r"compose run --rm (?:-v \S+ )?([\w$]+) ([a-z][^\n#|;>]*)", text):
            if service != "phantoms":
                yield path.name, ["aiseeme" if service == "coordinator" else "aiseeme-site", *shlex.split(rest)]


APPS = {"aiseeme": server.cli.app, "aiseeme-site": client.cli.app}


def parses(program: str, arguments: list[str]) -> None:
    """Raises UsageError where a command or an option is not there."""
    command, rest = get_command(APPS[program]), list(arguments)
    while True:
        _, rest, _ = command.make_parser(Context(command)).parse_args(rest)
        if not isinstance(command, Group) or arguments[-1] == "--help" or (command.invoke_without_command and not rest):
            return
        if not rest or rest[0] not in command.commands:
            raise UsageError(f"no such command: {program} {shlex.join(arguments)}")
        command, rest = command.commands[rest[0]], rest[1:]


def test_every_command_in_the_files_exists() -> None:
    found = [(where, words) for where, words in commands() if words[0] in APPS and len(words) > 1]
    assert len(found) > 40
    assert {"init", "serve", "launch", "join", "scan", "run", "status", "check"} <= {words[1] for _, words in found}
    for where, words in found:
        try:
            parses(words[0], words[1:])
        except UsageError as error:
            pytest.fail(f"{where}: {shlex.join(words)}: {error}")
    for program, app in APPS.items():
        assert CliRunner().invoke(app, ["--help"]).exit_code == 0, program


def test_a_command_that_is_not_there_is_noticed() -> None:
    for words in (["aiseeme", "fly"], ["aiseeme-site", "run", "--wings"], ["aiseeme", "site", "fly"]):
        with pytest.raises(UsageError, match=r"(?i)no such"):
            parses(words[0], words[1:])


# --- what the files do by themselves


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment like the one in a site's container."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": programs, "AISEEME_SITE": str(tmp_path / "volume" / "site"), "COLUMNS": "160"}


def test_the_pod_takes_each_letter_once_and_shows_the_request(tmp_path: Path, shell: dict[str, str]) -> None:
    letter, volume = tmp_path / "letter.json", tmp_path / "volume"
    volume.mkdir()
    name, option, script = pod()["initContainers"][0]["command"]
    script = script.replace("/letter/letter.json", str(letter))

    def start() -> str:
        done = subprocess.run(
            [name, option, script], cwd=volume, env=shell, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert start() == ""  # no letter yet
    federation = FederationHome(tmp_path / "federation")
    init_federation(federation.folder, FederationSettings(name="fed", hostname="localhost"))
    letter.write_bytes(to_json(invite(federation, "st-mary")))
    shown = start()
    request = shown[shown.index("-----BEGIN CERTIFICATE REQUEST") :]
    assert start() == request  # a restart makes no other key
    admission, _ = sign_request(federation, request.encode(), "request")
    letter.write_bytes(to_json(admission))
    assert "joined" in start()
    site = SiteHome(Path(shell["AISEEME_SITE"]))
    first = load_membership(site).folder
    assert start() == ""
    assert load_membership(site).folder == first
    assert not [path.name for path in volume.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]


def test_a_pod_lives_while_the_service_is_there_connected_or_not(tmp_path: Path, shell: dict[str, str]) -> None:
    (site,) = pod()["containers"]
    probe = site["livenessProbe"]["exec"]["command"]

    def lives() -> bool:
        return subprocess.run(probe, env=shell, capture_output=True, timeout=60, check=False).returncode == 0

    home = Path(shell["AISEEME_SITE"])
    home.mkdir(parents=True)
    assert not lives()
    with NodeFiles(home).held():
        assert lives()


def test_the_coordinators_health_is_that_of_its_gateway(tmp_path: Path) -> None:
    check = [sys.executable, str(DOCKER / "gateway_health.py")]
    environment = {**os.environ, "AISEEME_HOME": str(tmp_path / "federation")}

    def look() -> tuple[int, str]:
        done = subprocess.run(check, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = look()
    assert code == 1 and "does not answer" in said
    settings = FederationSettings(name="fed", hostname="fl.example.org", listen="127.0.0.1", port=_free_port())
    home = init_federation(tmp_path / "federation", settings)
    code, said = look()
    assert code == 1 and "refused" in said
    with _tls_server(home.gateway_certificate, home.gateway_key, settings.port):
        assert look() == (0, "the gateway answers: TLSv1.3\n")
    with _tls_server(home.link_certificate, home.link_key, settings.port):  # another's certificate
        code, said = look()
    assert code == 1 and "certificate" in said


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _tls_server(certificate: Path, key: Path, port: int) -> Iterator[None]:
    """Something that answers one TLS connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", port)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True):
                pass

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield
        thread.join(10)
