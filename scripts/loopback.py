"""A whole federation of processes on loopback, provisioned as people do it: through the two command lines.

``make federation`` runs it with phantom hospitals; the deployment tests and benchmarks play with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from aiseeme_models.errors import InputError
from federation_configs.loading import load_config
from federation_configs.supervision import say
from server.gateway import find_nginx

AISEEME, AISEEME_SITE = "from server.cli import main; main()", "from client.cli import main; main()"
# Many processes on few cores: threads that wait for each other would only be in the others' way.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


class LoopbackError(RuntimeError):
    """Something did not happen that had to."""


def aiseeme(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``aiseeme`` to its end."""
    return _run(AISEEME, arguments)


def aiseeme_site(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``aiseeme-site`` to its end."""
    return _run(AISEEME_SITE, arguments)


def _run(code: str, arguments: Sequence[object]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600)


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(happened: Callable[[], Any], what: str | Callable[[], str], deadline_s: float = 90.0) -> Any:
    """Wait until ``happened`` gives something true, and give that."""
    give_up = time.monotonic() + deadline_s
    while not (found := happened()):
        if time.monotonic() > give_up:
            said = what() if callable(what) else what
            raise LoopbackError(f"within {deadline_s:.0f} s it did not happen that {said}")
        time.sleep(0.05)
    return found


def ran(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed, which must have succeeded."""
    if done.returncode != 0:
        raise LoopbackError(f"{done.args[-4:]}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


@dataclass
class Service:
    """A process with children of its own: `aiseeme serve` or `aiseeme-site run`."""

    code: str
    arguments: list[str]
    log: Path
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in a session of its own."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.code, *self.arguments],
                env=dict(self.environment),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def stop(self) -> int:
        """Ask it to end, as systemd or Docker does, and see that all its children are gone."""
        if self.process is None:
            raise LoopbackError("it does not run")
        children = self.tree()
        self.process.terminate()
        code = self.process.wait(30)
        _, alive = psutil.wait_procs(children, timeout=10)
        if alive:
            raise LoopbackError(f"left behind: {alive}")
        self.process = None
        return code

    def kill_tree(self) -> None:
        """SIGKILL to all of it, whatever state it is in."""
        if self.process is None:
            return
        for child in self.tree():
            with _gone_already():
                child.kill()
        self.process.kill()
        self.process.wait()
        self.process = None

    def tree(self) -> list[psutil.Process]:
        """All its children now."""
        if self.process is None:
            return []
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def part(self, mark: str) -> psutil.Process:
        """The child whose command line has ``mark``, waited for."""
        return until(lambda: self._part(mark), f"{mark} runs", 60)

    def _part(self, mark: str) -> psutil.Process | None:
        for child in self.tree():
            with _gone_already():
                if mark in " ".join(child.cmdline()):
                    return child
        return None

    def says(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@contextmanager
def _gone_already() -> Iterator[None]:
    with suppress(psutil.NoSuchProcess):
        yield


@dataclass
class Hospital:
    """A site: its folder of pictures, its home, its service."""

    name: str
    pictures: Path
    home: Path
    service: Service

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """The entries of its ledger."""
        path = self.home / "ledger.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def is_training(self) -> bool:
        """Whether it has begun with a round and not ended it."""
        kinds = [(entry["kind"], entry.get("what")) for entry in self.ledger]
        return bool(kinds) and kinds[-1] == ("started", "train")

    def files(self) -> str:
        """Everything readable that its services wrote, to be shown where a test fails."""
        logs = [self.service.log, *self.home.glob("run/*.log"), *self.home.glob("**/site.log")]
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in logs if path.exists())


@dataclass
class Loopback:
    """The federation. ``with`` it: everything is stopped at the end."""

    folder: Path
    config: str
    pictures: Mapping[str, Path]
    size: int = 32
    hostname: str = "localhost"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))
    hospitals: dict[str, Hospital] = field(default_factory=dict)

    def __enter__(self) -> Loopback:
        self.home = self.folder / "federation"
        self.port = free_port()
        self.config_file = self.folder / "loopback.toml"
        self.config_file.write_text(self.config)
        ran(
            aiseeme(
                *("init", self.home, "--hostname", self.hostname, "--name", "loopback"),
                *("--port", self.port, "--listen", "127.0.0.1"),
            )
        )
        self.server = Service(
            AISEEME,
            ["serve", "--federation", str(self.home)],
            self.folder / "serve.log",
            self.environment,
        )
        for name, pictures in self.pictures.items():
            self.join(name, pictures)
        return self

    def join(self, name: str, pictures: Path) -> Hospital:
        """Provision a hospital whose key is made at the hospital, and scan its pictures."""
        home = self.folder / "sites" / name
        home.parent.mkdir(exist_ok=True)
        invitation, request = self.folder / f"{name}.invitation.json", self.folder / f"{name}.request.pem"
        admission = self.folder / f"{name}.admission.json"
        ran(aiseeme("site", "add", name, "--federation", self.home, "--out", invitation))
        ran(aiseeme_site("join", invitation, "--home", home, "--out", request))
        ran(aiseeme("site", "sign", request, "--federation", self.home, "--out", admission))
        ran(aiseeme_site("join", admission, "--home", home))
        ran(aiseeme_site("scan", pictures, "--home", home, "--preset", "dermoscopy", "--size", self.size))
        service = Service(
            AISEEME_SITE,
            ["run", "--home", str(home), "--cpu"],
            self.folder / f"{name}.log",
            self.environment,
        )
        self.hospitals[name] = Hospital(name, pictures, home, service)
        return self.hospitals[name]

    def start(self) -> None:
        """Start the coordinator and all sites, and wait until all are connected."""
        self.server.start()
        for hospital in self.hospitals.values():
            hospital.service.start()
        for hospital in self.hospitals.values():
            self.wait_connected(hospital)

    def wait_connected(self, hospital: Hospital, deadline_s: float = 90.0) -> None:
        """Wait until a site says that it is."""
        until(
            lambda: aiseeme_site("status", "--home", hospital.home).returncode == 0,
            lambda: f"{hospital.name} connects\n{hospital.files()}\n{self.server.says()}",
            deadline_s,
        )

    def launch(self, *options: object) -> str:
        """Launch the run and do not wait for it; gives its id."""
        text = ran(aiseeme("launch", self.config_file, "--federation", self.home, "--detach", *options))
        return text.strip()

    def row(self, run: str) -> dict[str, Any]:
        """The run as the registry has it."""
        rows = json.loads(ran(aiseeme("runs", "--runs", self.home / "runs", "--json")))
        return next(row for row in rows if row["id"] == run)

    def wait_for_end(self, run: str, deadline_s: float = 240.0) -> dict[str, Any]:
        """Wait until the run has ended; gives its row."""
        ended = lambda: (row := self.row(run))["status"] in ("done", "failed", "stopped") and row  # noqa: E731
        return until(ended, lambda: f"run {run} ends\n{self.log(run)}\n{self.server.says()}", deadline_s)

    def results(self, run: str) -> dict[str, Any]:
        """Its ``results.json``."""
        return json.loads((self.home / "runs" / run / "results.json").read_text())

    def log(self, run: str) -> str:
        """What its coordinator printed."""
        path = self.home / "runs" / run / "coordinator.log"
        return path.read_text() if path.exists() else ""

    def checkpoint(self, run: str, number: int) -> bool:
        """Whether a round's checkpoint has been written."""
        return (self.home / "runs" / run / "checkpoints" / f"round-{number:04d}.json").exists()

    def simulated(self) -> dict[str, Any]:
        """The results of a simulation with the same configuration, seed and pictures."""
        data = [part for one in self.hospitals.values() for part in ("--data", one.pictures)]
        done = aiseeme("simulate", self.config_file, *data, "--runs", self.folder / "simulated", "--json")
        return json.loads(ran(done))

    def __exit__(self, *_: object) -> None:
        services = [*(one.service for one in self.hospitals.values()), self.server]
        for service in services:
            if service.process is not None and service.process.poll() is None:
                for process in service.tree():
                    with _gone_already():
                        process.send_signal(signal.SIGCONT)
            service.kill_tree()
        if os.environ.get("AISEEME_KEEP") is None:
            shutil.rmtree(self.folder / "simulated", ignore_errors=True)


def main() -> None:
    """``make federation``: three phantom hospitals and a coordinator, every process a real one, a run of two stages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="a new folder for all of it")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "loopback.toml")
    parser.add_argument("--images", type=int, default=40, help="per hospital")
    given = parser.parse_args()
    try:
        _show(given.folder, given.config, given.images)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    except LoopbackError as error:
        raise SystemExit(f"failed: {error}") from None


def _show(folder: Path, config_file: Path, images: int) -> None:
    config = load_config(str(config_file))  # a mistake in it, or a missing nginx, is said before anything is started
    find_nginx()
    if folder.exists():
        raise InputError(f"{folder} is there already: name a new folder, or remove it")
    folder.mkdir(parents=True)
    phantoms = folder / "phantoms"
    say(f"three phantom hospitals in {phantoms}")
    ran(aiseeme_site("phantom", phantoms, "--sites", 3, "--images", images))
    pictures = {one.name: one for one in sorted(phantoms.iterdir()) if one.is_dir()}
    say("a federation with its own authority; every hospital makes its own key, joins and scans its images")
    with Loopback(folder, config_file.read_text(), pictures, size=config.images.size) as federation:
        say("the coordinator and the hospitals start, each a process of its own")
        federation.start()
        say(f"all connected, over TLS, to localhost:{federation.port}; their logs are in {folder}")
        launch = ("launch", str(federation.config_file), "--federation", str(federation.home))
        launched = subprocess.run([sys.executable, "-c", AISEEME, *launch], env=ENVIRONMENT, check=False)
        if launched.returncode != 0:
            raise LoopbackError(f"the run is not done; the logs are in {folder}")
        (run,) = [path.name for path in (federation.home / "runs").iterdir() if path.is_dir()]
        ran(aiseeme("verify", run, "--federation", federation.home))
        say("the signed chain from the final model back to round 0 was verified")
        expected, found = federation.simulated()["backbone_sha256"], federation.results(run)["backbone_sha256"]
        if expected != found:
            raise LoopbackError(f"the federation's backbone {found} is not the simulation's {expected}")
        say(f"its backbone is bit for bit the one of `aiseeme simulate`: sha256 {found}")
        for hospital in federation.hospitals.values():
            hospital.service.stop()
        federation.server.stop()
    say("everything is stopped. Look at:")
    site = next(iter(federation.hospitals.values())).home
    say(f"  the report            {federation.home}/runs/{run}/report.html")
    say(f"  the runs              .venv/bin/aiseeme runs --runs {federation.home}/runs")
    say(f"  the hospitals         .venv/bin/aiseeme site list --federation {federation.home}")
    say(f"  a hospital's ledger   .venv/bin/aiseeme-site ledger --home {site}")


if __name__ == "__main__":
    main()
