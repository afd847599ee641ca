"""``aiseeme-site run``: the node and the runner, kept alive until somebody stops them."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models import __version__
from aiseeme_models.errors import InputError
from aiseeme_models.printable import LONGEST_LINE, printable
from client.ledger import Ledger
from client.membership import CURRENT, load_membership, membership_folder
from client.node_files import NodeFiles
from client.site_home import SETTINGS, SiteHome
from federation_configs.bundle_file import BUNDLE_SHA256
from federation_configs.flower import quiet_environment
from federation_configs.membership import WARN_DAYS
from federation_configs.supervision import Kept, StopAsked, end_all, say

if TYPE_CHECKING:
    from client.membership import SiteMembership
    from client.site_config import ConnectionOptions

_DEAF_S = 120.0
"""A node's loop sleeps at most about 20 s between two tries to reach a gateway that is away."""
_SILENT_S = 60.0
_FIRST_LOOK_S, _LOOK_EVERY_S = 10.0, 60.0
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


def run_site(home: SiteHome, device: str | None) -> None:
    """Take part in the federation until SIGTERM or SIGINT; changed settings and a renewed certificate are taken up.

    Args:
        home: a site that has joined.
        device: a torch device string; None: the one of site.toml.

    Raises:
        InputError: the site has not joined, its settings are wrong, or it is running already.
    """
    stop, stamp = StopAsked(), _stamp(home)
    parts = _Parts(home, device)
    with parts.files.held():
        Ledger.in_home(home.folder).append("started-up", version=__version__, bundle=BUNDLE_SHA256)
        parts.introduce()
        try:
            while not stop.asked:
                parts.tend()
                if (now := _stamp(home)) != stamp:
                    stamp = now
                    parts = _renewed(parts, home.folder, device)
                stop.wait(0.5)
        finally:
            say("stopping")
            end_all(parts.kept)


class _Parts:
    """The node and the runner of a site under one version of its settings, not started yet.

    Raises:
        InputError: the site has not joined, or its settings are wrong.
    """

    def __init__(self, home: SiteHome, device: str | None) -> None:
        membership, config = load_membership(home), home.config
        self._membership, self.files = membership, NodeFiles(home.folder)
        folder, files = str(home.folder.resolve()), self.files
        node = Kept(
            "the node",
            lambda: [sys.executable, "-m", "client.supernode", folder, str(files.choose_port())],
            quiet_environment(files.flower_home, _proxied(config.connection)),
            files.folder / "node.log",
            is_deaf=lambda: (files.since_alive() or 0.0) > _DEAF_S,
            patience_s=_DEAF_S,
        )
        runner = Kept(
            "the runner",
            lambda: [sys.executable, "-m", "client.runner", folder, device or config.machine.device],
            quiet_environment(files.flower_home),
            None,
        )
        self.kept = [node, runner]
        self._contact = _Contact(files, membership, config.connection)

    def introduce(self) -> None:
        """Say who takes part where, and for how long."""
        membership = self._membership
        days = membership.days_left
        say(f"{membership.site} takes part in {membership.federation} at {membership.gateway_host}")
        if days < WARN_DAYS:
            say(f"its certificate ends in {days:.0f} days: ask the coordinator for `aiseeme site rotate`")

    def tend(self) -> None:
        """Keep them alive; call this about every second."""
        for kept in self.kept:
            kept.tend(say)
        self._contact.tend()


def _renewed(parts: _Parts, home: Path, device: str | None) -> _Parts:
    """The parts under changed settings, the old ones ended; the old ones go on where the new settings are wrong."""
    try:
        renewed = _Parts(SiteHome(home), device)
    except InputError as error:
        say(printable(f"the changed settings are not used: {error}", LONGEST_LINE))
        return parts
    say("the settings have changed: node and runner are started again")
    end_all(parts.kept)
    renewed.introduce()
    return renewed


def _stamp(home: SiteHome) -> tuple[str, int]:
    """Changes with the site's settings and with its certificate."""
    try:
        settings = (home.folder / SETTINGS).stat().st_mtime_ns
    except FileNotFoundError:
        settings = 0
    return str((membership_folder(home.folder) / CURRENT).resolve()), settings


class _Contact:
    """Says when the gateway is reached and lost, and why it is not."""

    def __init__(self, files: NodeFiles, membership: SiteMembership, connection: ConnectionOptions) -> None:
        self._files, self._membership, self._connection = files, membership, connection
        self._connected, self._said = False, ""
        self._look_at = time.monotonic() + _FIRST_LOOK_S

    def tend(self) -> None:
        """Look once; call this about every second."""
        silent = self._files.since_contact()
        connected = silent is not None and silent < _SILENT_S
        if connected != self._connected:
            self._connected, self._said = connected, ""
            say("connected" if connected else "no contact with the gateway any more")
            self._look_at = time.monotonic()
        if not connected and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_EVERY_S
            # In a thread: a network that swallows packets must not keep the others from being tended.
            threading.Thread(target=self._explain, daemon=True).start()

    def _explain(self) -> None:
        from client.check import look_at_gateway

        looked = look_at_gateway(self._membership, self._connection.proxy)
        reason = "; ".join(f"{found.what}: {found.says}" for found in looked if not found.ok)
        if reason and reason != self._said and not self._connected:
            self._said = reason
            say(printable(f"not connected: {reason}", LONGEST_LINE))


def _proxied(connection: ConnectionOptions) -> dict[str, str]:
    """The environment with the way out that site.toml names."""
    environment = dict(os.environ)
    if connection.proxy is not None:
        for name in _PROXIES:
            environment.pop(name, None)
        if connection.proxy != "none":
            environment["HTTPS_PROXY"] = connection.proxy
    return environment


def is_connected(home: Path) -> bool:
    """Whether a process runs the site and the gateway has answered it in the last minute: a container's health."""
    files = NodeFiles(home)
    silent = files.since_contact()
    return files.is_held() and silent is not None and silent < _SILENT_S
