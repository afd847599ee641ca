"""``aiseeme serve``: SuperLink, gateway and the launched runs, kept alive until somebody stops them."""

from __future__ import annotations

import signal
import sys
import time

import httpx
from sqlalchemy.exc import SQLAlchemyError

from aiseeme_models.errors import RunFailed
from aiseeme_models.printable import LONGEST_LINE, printable
from federation_configs.flower import quiet_environment
from federation_configs.supervision import Kept, StopAsked, end_all, say
from server.federation_home import FederationHome
from server.flower_adapter import Link
from server.gateway import check_gateway, check_port, end_leftovers, gateway_command, write_gateway
from server.played_runs import PlayedRuns
from server.service_files import ServiceFiles, superlink_of
from server.site_registry import SiteRegistry

_TURN_S = 0.5
_HEALTH_EVERY_S = 5.0
_DEAF_AFTER = 6  # looks in a row without an answer


class _Health:
    """Whether the SuperLink answers, looked at seldom, and believed dead only after several looks."""

    def __init__(self, link: Link) -> None:
        self._link, self._looked, self._misses = link, 0.0, 0

    def begin(self) -> None:
        """A new process has not been asked yet."""
        self._looked, self._misses = time.monotonic(), 0

    def is_deaf(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= _HEALTH_EVERY_S:
            self._looked = now
            self._misses = 0 if self._link.is_up() else self._misses + 1
        return self._misses >= _DEAF_AFTER


class _Doors:
    """Keeps SuperLink and gateway to the list of active sites."""

    def __init__(self, home: FederationHome, link: Link, link_port: int, gateway: Kept) -> None:
        self._home, self._link, self._port, self._gateway = home, link, link_port, gateway
        self._sites = SiteRegistry(home.sites_url)
        self._known: list[tuple[str, str, str]] | None = None
        self._synced = False

    def tend(self) -> None:
        """Let in who is new, and shut out who is revoked: at the gateway at once, at the SuperLink once it answers."""
        active = self._sites.active()
        now = [(row.name, row.public_key_pem, row.serial) for row in active]
        if now != self._known:
            write_gateway(self._home, active, link_port=self._port)
            if self._known is not None:
                if self._gateway.process is not None and self._gateway.runs:
                    self._gateway.process.send_signal(signal.SIGHUP)
                say(f"sites that may connect: {', '.join(row.name for row in active) or 'none'}")
            self._known, self._synced = now, False
        if not self._synced:
            self._synced = self._at_the_superlink()

    def forget(self) -> None:
        """The SuperLink was started anew: look again whether it knows the sites."""
        self._synced = False

    def _at_the_superlink(self) -> bool:
        try:
            there = self._link.nodes()
            wanted = self._sites.names_by_key()
            for key, node in there.items():
                if key not in wanted:
                    self._link.unregister(node)
            for key, name in wanted.items():
                if key not in there:
                    self._link.register(key, name)
        except httpx.HTTPError:
            return False  # not up yet: asked again at the next turn
        return True


def serve(home: FederationHome) -> None:
    """Serve the federation until SIGTERM or SIGINT.

    Raises:
        InputError: no such home, nginx is missing or refuses its configuration, or another process serves already.
    """
    config, files = home.config, ServiceFiles(home.folder)
    stop = StopAsked()
    with files.held():
        home.runs.mkdir(exist_ok=True, mode=0o700)
        port = files.choose_link_port()
        link = superlink_of(home)
        environment = quiet_environment(files.flower_home)
        health = _Health(link)
        superlink = Kept(
            "the SuperLink",
            lambda: _superlink_command(home, port),
            environment,
            home.logs / "superlink.log",
            is_deaf=health.is_deaf,
        )
        gateway = Kept("the gateway", lambda: gateway_command(home), environment, home.logs / "gateway.log")
        doors, runs = _Doors(home, link, port, gateway), PlayedRuns(home, files)
        doors.tend()
        check_gateway(home)
        end_leftovers(home)
        check_port(home)
        say(f"{config.name}: hospitals connect to {config.hostname}:{config.port}; logs are in {home.logs}")
        starts, trouble = 0, ""
        try:
            while not stop.asked:
                superlink.tend(say)
                gateway.tend(say)
                if superlink.starts != starts:
                    starts = superlink.starts
                    doors.forget()
                    health.begin()
                trouble = _tend(doors, runs, trouble)
                stop.wait(_TURN_S)
        finally:
            say("stopping; runs go on when it is started again")
            end_all([superlink, gateway, *runs.playing])


def _tend(doors: _Doors, runs: PlayedRuns, told: str) -> str:
    """Tend doors and runs. A full disk or a busy database passes: it is said once, and tried again at the next turn."""
    try:
        doors.tend()
        runs.tend()
    except (OSError, SQLAlchemyError, RunFailed) as error:
        trouble = printable(str(error), LONGEST_LINE)
        if trouble != told:
            say(f"this goes wrong now, and is tried again: {trouble}")
        return trouble
    return ""


def _superlink_command(home: FederationHome, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "server.superlink"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(home.superexec_secret)),
        *("--database", str(home.database), "--enable-supernode-auth"),
        *("--ssl-ca-certfile", str(home.link_authority)),
        *("--ssl-certfile", str(home.link_certificate), "--ssl-keyfile", str(home.link_key)),
        "--disable-runtime-dependency-installation",
    ]
