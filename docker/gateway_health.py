#!/usr/bin/env python3
"""The coordinator container's health check: the gateway answers TLS with this federation's certificate."""

from __future__ import annotations

import os
import socket
import ssl
import sys
import tomllib
from pathlib import Path

TIMEOUT_S = 10.0


def main() -> None:
    """Exit code 0 if it answers, 1 with the reason if not."""
    home = Path(os.environ.get("AISEEME_HOME", "federation"))
    try:
        settings = tomllib.loads((home / "federation.toml").read_text(encoding="utf-8"))
        listen = settings["listen"]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)
        context = ssl.create_default_context(cafile=home / "keys" / "authority.pem")
        with (
            socket.create_connection((host, settings["port"]), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=settings["hostname"]) as connection,
        ):
            print(f"the gateway answers: {connection.version()}")  # noqa: T201
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"the gateway does not answer: {error}")


if __name__ == "__main__":
    main()
