"""A federation that faults are done to: its configuration, its runs and their phases, and the processes to be hit."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from aiseeme_models.errors import InputError, RunFailed
from client.node_files import NodeFiles
from federation_configs.loading import load_config
from scripts.loopback import AISEEME, ENVIRONMENT, Hospital, Loopback, Service, until
from server.federation_home import FederationHome
from server.launching import launch, stop
from server.registry import UNFINISHED, RunRegistry, RunRow
from server.run_folder import registry_url
from tests.deployment.hospitals import federation_table, head, loopback

# A round trains for some seconds and moves 45 MB each way: each of its phases can be hit. MoCo keeps its queue and key
# encoder at the site: a second round that is played again must begin from the right ones of them.
_STAGE = """
[[curriculum.stage]]
task = "moco"
rounds = {rounds}
batch_size = 4
local_epochs = {epochs}
options = {{ queue = 16 }}
"""
PATIENT = {"min_sites": 3, "round_deadline_s": 150, "rejoin_s": 150, "round_retries": 4}
PHASES = ("training", "upload", "aggregation")
END_S = 420.0


def configured(*, rounds: int = 2, epochs: int = 4, **federation: Any) -> str:
    """The configuration: ``rounds`` of ``epochs``, and other values in its ``[federation]`` table."""
    stage = _STAGE.format(rounds=rounds, epochs=epochs)
    return head("faults", "resnet18") + stage + federation_table(**(PATIENT | federation))


@functools.cache
def expected(rounds: int = 2, epochs: int = 4) -> str:
    """The backbone that a run must end with: what a simulation on the same pictures trains."""
    with tempfile.TemporaryDirectory() as folder:
        there = loopback(Path(folder), configured(rounds=rounds, epochs=epochs))
        there.config_file = there.folder / "simulated.toml"
        there.config_file.write_text(there.config)
        there.hospitals = {
            name: Hospital(name, pictures, there.folder, Service("", [], there.folder, {}))
            for name, pictures in there.pictures.items()
        }
        return str(there.simulated()["backbone_sha256"])


@dataclass
class Run:
    """A launched run of a federation."""

    federation: Loopback
    id: str
    played: dict[str, int] = field(default_factory=dict)
    _trained: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.federation.home / "runs" / self.id

    @property
    def row(self) -> RunRow:
        return RunRegistry(registry_url(self.federation.home / "runs")).get(self.id)

    @property
    def says(self) -> str:
        """What its coordinator has printed."""
        return self.federation.log(self.id)

    @property
    def round(self) -> int:
        """The round that is played now, from 1."""
        done = [int(path.stem.partition("-")[2]) for path in self.folder.glob("checkpoints/round-*.json")]
        return 1 + max(done, default=0)

    def metrics(self) -> list[dict[str, Any]]:
        """One line per round and site."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def counted(self) -> dict[int, set[str]]:
        """Which sites counted in which round."""
        found: dict[int, set[str]] = {}
        for line in self.metrics():
            if "images" in line:
                found.setdefault(line["round"], set()).add(line["site"])
        return found

    def ledger_of(self, site: str) -> tuple[str, int | None]:
        """The newest entry of a site's ledger that belongs to a training of this run: its kind, and the round."""
        entries = self.federation.hospitals[site].ledger
        newest = entries[-1] if entries else {}
        asked = next((one for one in entries if one["seq"] == newest.get("request")), {})
        if newest.get("what") != "train" or asked.get("run") != self.id:
            return "", None
        return newest["kind"], asked["round"]

    def trains(self, site: str, first: int = 2) -> bool:
        """Whether a site is in the midst of training a round that is not before ``first``."""
        kind, number = self.ledger_of(site)
        if kind != "started" or number is None or number < first:
            return False
        cpu = processor_s(self.federation.hospitals[site].service.part("client.runner"))
        known, since = self._trained.setdefault(site, (number, cpu))
        if known != number:
            self._trained[site] = (number, cpu)
            return False
        return cpu - since > 0.5

    def uploads(self, site: str, first: int = 2) -> bool:
        """Whether a site has trained the present round, and its answer is still on its way."""
        kind, number = self.ledger_of(site)
        return kind == "answered" and number == self.round >= first and not self.has_sent(site)

    def aggregates(self, first: int = 2) -> bool:
        """Whether all answers of the present round have been sent, and its checkpoint is not there yet."""
        number = self.round
        answered = all(self.ledger_of(site) == ("answered", number) for site in self.federation.hospitals)
        sent = answered and all(self.has_sent(site) for site in self.federation.hospitals)
        return sent and number >= first and not self.federation.checkpoint(self.id, number)

    def has_sent(self, site: str) -> bool:
        """Whether the last that a site's node says is that it has sent an answer."""
        log = self.federation.hospitals[site].home / "run" / "node.log"
        lines = [line for line in log.read_text(errors="replace").splitlines() if "INFO" in line or "ERROR" in line]
        return bool(lines) and "Sent successfully" in lines[-1]

    def wait_for(self, phase: str, site: str = "beta", *, first: int = 2) -> None:
        """Wait until the run is in a phase of a round that is not before ``first``."""
        there = {
            "training": lambda: self.trains(site, first),
            "upload": lambda: self.uploads(site, first),
            "aggregation": lambda: self.aggregates(first),
        }
        until(there[phase], lambda: f"{phase} begins\n{self.all_logs()}", 120)

    def wait_for_round(self, number: int, deadline_s: float = END_S) -> None:
        """Wait until a round's checkpoint is there."""
        until(
            lambda: self.round > number or self.row.status not in UNFINISHED,
            lambda: f"round {number} is done\n{self.all_logs()}",
            deadline_s,
        )

    def wait_for_end(self, deadline_s: float = END_S) -> RunRow:
        """Wait until it is done, failed or stopped."""
        ended = lambda: (row := self.row).status not in UNFINISHED and row  # noqa: E731
        row: RunRow = until(ended, lambda: f"run {self.id} ends\n{self.all_logs()}", deadline_s)
        return row

    def ends_with_the_same_bits(self) -> None:
        """Wait for the end, and compare the backbone with the simulation's."""
        row = self.wait_for_end()
        assert row.status == "done", f"{row.status}: {row.reason}\n{self.all_logs()}"
        assert self.federation.results(self.id)["backbone_sha256"] == expected(**self.played), self.all_logs()

    def all_logs(self) -> str:
        """What every process has printed last."""
        sites = "\n".join(one.files() for one in self.federation.hospitals.values())
        return f"{self.says[-3000:]}\n{self.federation.server.says()[-3000:]}\n{sites}"


def begin(federation: Loopback, **options: Any) -> Run:
    """Launch a run of `configured` with these options."""
    federation.config_file.write_text(configured(**options))
    run = launch(FederationHome(federation.home), load_config(str(federation.config_file)))
    return Run(federation, run, _played(options))


@contextmanager
def launched(federation: Loopback, **options: Any) -> Iterator[tuple[Run, subprocess.Popen[str]]]:
    """A run as `aiseeme launch` launches and watches it; the command is ended with the block."""
    earlier = runs_of(federation)
    federation.config_file.write_text(configured(**options))
    command = [sys.executable, "-c", AISEEME, "launch", str(federation.config_file)]
    with subprocess.Popen(
        [*command, "--federation", str(federation.home)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as watching:
        try:
            new = until(lambda: runs_of(federation) - earlier, "a run is launched").pop()
            yield Run(federation, new, _played(options)), watching
        finally:
            watching.kill()


def _played(options: dict[str, Any]) -> dict[str, int]:
    return {key: options[key] for key in ("rounds", "epochs") if key in options}


def runs_of(federation: Loopback) -> set[str]:
    """The ids of all runs so far."""
    return {path.parent.name for path in (federation.home / "runs").glob("*/federation.json")}


def site_process(federation: Loopback, site: str, part: str) -> psutil.Process:
    """A site's ``runner`` or ``supernode``."""
    return federation.hospitals[site].service.part(f"client.{part}")


def processes(federation: Loopback, victim: str, site: str = "beta") -> list[psutil.Process]:
    """What makes up a part of the federation, the one that would start the others again first."""
    if victim in ("runner", "node"):
        return [site_process(federation, site, {"node": "supernode"}.get(victim, victim))]
    mark = {"superlink": "server.superlink", "coordinator": "server.coordinator", "gateway": "nginx: master"}[victim]
    found = federation.server.part(mark)
    return [found, *found.children(recursive=True)]


def kill(victims: list[psutil.Process]) -> None:
    """SIGKILL."""
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()


@contextmanager
def frozen(victims: list[psutil.Process]) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end."""
    for victim in victims:
        victim.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGCONT)


def processor_s(process: psutil.Process) -> float:
    """Seconds of processor time that a process has used."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def is_connected(hospital: Hospital) -> bool:
    """Whether the gateway has answered a site just now."""
    files = NodeFiles(hospital.home)
    since = files.since_contact()
    return files.is_held() and since is not None and since < 4


def healed(federation: Loopback) -> Loopback:
    """The federation as the next test needs it: everything runs, all sites are connected, no run is left over."""
    home = FederationHome(federation.home)
    for service in (federation.server, *(one.service for one in federation.hospitals.values())):
        for process in service.tree():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        if service.process is None or service.process.poll() is not None:
            service.start()
    for row in RunRegistry(registry_url(federation.home / "runs")).unfinished():
        with suppress(InputError, RunFailed):
            stop(home, row.id)
    for hospital in federation.hospitals.values():
        until(lambda one=hospital: is_connected(one), lambda one=hospital: f"it connects\n{one.files()}", 180)
    return federation


class Watch:
    """Tells how long a recovery took; ``pytest -rP`` shows it."""

    def __init__(self, what: str) -> None:
        self._what, self._since = what, time.monotonic()

    def stop(self) -> None:
        tell(self._what, time.monotonic() - self._since)


def tell(what: str, seconds: float) -> None:
    """Print a duration; pytest shows it with ``-rP``."""
    print(f"RECOVERY {what}: {seconds:.1f} s")  # noqa: T201
