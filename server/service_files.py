"""The folder through which the coordinator's running parts know of each other, ``run/`` in the federation's home."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError, RunFailed
from federation_configs.one_process import holding, is_held

LOCK = "lock"
ENDED = 3
"""Exit code of a run's process where the run has failed or was stopped: no crash, for which Python's is 1."""

if TYPE_CHECKING:
    from server.federation_home import FederationHome
    from server.flower_adapter import Link

_ADDRESS = re.compile(r"127\.0\.0\.1:\d{1,5}")


class ServiceFiles:
    """The files of a running coordinator.

    Args:
        home: the federation's home.
    """

    def __init__(self, home: Path) -> None:
        self.folder = home / "run"
        self.flower_home = self.folder / "flower"
        self._address = self.folder / "superlink"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the one process that serves this federation.

        Raises:
            InputError: another process does.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.flower_home.mkdir(exist_ok=True, mode=0o700)
        with holding(self.folder / LOCK, f"{self.folder.parent}: `aiseeme serve` is running already"):
            yield

    def is_held(self) -> bool:
        """Whether `aiseeme serve` is running."""
        return is_held(self.folder / LOCK)

    def choose_link_port(self) -> int:
        """The SuperLink's port on loopback: the one of last time where it is free, as the gateway knows it."""
        last = self._known()
        wanted = int(last.rpartition(":")[2]) if last else 0
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        write_atomically(self._address, f"127.0.0.1:{port}".encode())
        return port

    @property
    def link_address(self) -> str:
        """``127.0.0.1:port`` of the SuperLink.

        Raises:
            RunFailed: `aiseeme serve` was never started.
        """
        known = self._known()
        if known is None:
            raise RunFailed(f"{self._address}: missing or damaged; `aiseeme serve` writes it")
        return known

    def _known(self) -> str | None:
        try:
            text = self._address.read_text()
        except FileNotFoundError:
            return None
        return text if _ADDRESS.fullmatch(text) else None


def check_served(home: FederationHome) -> None:
    """Raise unless `aiseeme serve` serves the federation.

    Raises:
        InputError: there is no federation, or nobody serves it.
    """
    _ = home.config  # raises where there is no federation: then none can be served
    if not ServiceFiles(home.folder).is_held():
        raise InputError(f"{home.folder}: nobody serves this federation: start `aiseeme serve` first")


def superlink_of(home: FederationHome) -> Link:
    """The way to the federation's SuperLink.

    Raises:
        RunFailed: `aiseeme serve` was never started.
    """
    from server.flower_adapter import Link

    return Link.of(ServiceFiles(home.folder).link_address, home.link_authority, home.superexec_secret)


def sites_online(home: FederationHome) -> frozenset[str] | None:
    """Names of the active sites that are connected now; None where nobody serves the federation, so nobody can tell."""
    if not ServiceFiles(home.folder).is_held():
        return None
    import httpx

    from server.site_registry import SiteRegistry

    try:
        online = superlink_of(home).online()
    except httpx.HTTPError:
        return None
    names = SiteRegistry(home.sites_url).names_by_key()
    return frozenset(names[key] for key in online if key in names)
