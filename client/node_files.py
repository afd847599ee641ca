"""The folder through which the running parts of a site know of each other: the node, the runner, and who starts them.

``run/`` in the site's home, readable by its owner only. Nothing in it outlives the next start.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiseeme_models.atomic_files import write_atomically
from federation_configs.one_process import holding, is_held

LOCK = "lock"
_ADDRESS = re.compile(r"(127\.0\.0\.1:\d{1,5})\n")


class NodeFiles:
    """The files of one running site.

    Args:
        home: the site's home.
    """

    def __init__(self, home: Path) -> None:
        self.folder = home / "run"
        self.secret = self.folder / "secret"
        self.flower_home = self.folder / "flower"
        self._address = self.folder / "address"
        self._alive, self._contact = self.folder / "node.alive", self.folder / "node.contact"
        self._ended = self.folder / "ended"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the one process that runs this site, with a folder that is empty but for logs.

        Raises:
            InputError: another process runs it.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with holding(self.folder / LOCK, f"{self.folder.parent}: this site is running already"):
            for left in (self._address, self._alive, self._contact, self.secret):
                left.unlink(missing_ok=True)
            for folder in (self._ended, self.flower_home):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(mode=0o700)
            descriptor = os.open(self.secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            yield

    def is_held(self) -> bool:
        """Whether a process runs this site."""
        return is_held(self.folder / LOCK)

    def choose_port(self) -> int:
        """A free port on loopback for a node that is about to start, told to the runner too."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        write_atomically(self._address, f"127.0.0.1:{port}\n".encode())
        return port

    def address(self) -> str | None:
        """``127.0.0.1:port`` of the present node; another one after each of its starts. None before the first."""
        try:
            match = _ADDRESS.fullmatch(self._address.read_text())
        except FileNotFoundError:
            return None
        return None if match is None else match[1]

    def note_alive(self) -> None:
        """The node's loop does something."""
        self._alive.touch()

    def note_contact(self) -> None:
        """The gateway has answered the node."""
        self._contact.touch()

    def since_alive(self) -> float | None:
        """Seconds since the node's loop last did something; None if it never has."""
        return _age(self._alive)

    def since_contact(self) -> float | None:
        """Seconds since the gateway last answered; None if it never has."""
        return _age(self._contact)

    def note_ended(self, run: int) -> None:
        """A Flower run has ended while this site worked for it."""
        (self._ended / str(run)).touch()

    def has_ended(self, run: int) -> bool:
        """Whether `note_ended` was told so."""
        return (self._ended / str(run)).exists()


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None
