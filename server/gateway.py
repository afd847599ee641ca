"""The one open door: an nginx that knows every hospital by its certificate and its key, and forwards ten routes."""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError

if TYPE_CHECKING:
    from server.federation_home import FederationHome
    from server.site_registry import SiteRow

_TEMPLATE = "gateway.conf.j2"
_CONFIG = "nginx.conf"
_ELSEWHERE = ("/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/local/nginx/sbin/nginx")
_CHECK_S = 60


def find_nginx() -> str:
    """The path of nginx; Debian keeps it where ordinary users do not look.

    Raises:
        InputError: it is not installed.
    """
    for candidate in ("nginx", *_ELSEWHERE):
        if (found := shutil.which(candidate)) is not None:
            return found
    raise InputError("nginx is not installed, and the gateway needs it: on Debian, `apt-get install nginx-light`")


def write_gateway(
    home: FederationHome,
    rows: Sequence[SiteRow],
    *,
    link_port: int,
    listen: str | None = None,
    port: int | None = None,
) -> Path:
    """Write the gateway's configuration; a running nginx takes it up at SIGHUP.

    Args:
        home: the federation's.
        rows: the sites that may connect.
        link_port: of the SuperLink, on loopback.
        listen: an IP address instead of the one in federation.toml.
        port: instead of the one in federation.toml.

    Returns:
        The path of nginx.conf.
    """
    folder = home.gateway_folder
    for made in (folder, folder / "tmp"):
        made.mkdir(exist_ok=True, mode=0o700)
    path = folder / _CONFIG
    write_atomically(path, render_gateway(home, rows, link_port=link_port, listen=listen, port=port).encode())
    return path


def render_gateway(
    home: FederationHome,
    rows: Sequence[SiteRow],
    *,
    link_port: int,
    listen: str | None = None,
    port: int | None = None,
) -> str:
    """What `write_gateway` writes."""
    import jinja2

    address = listen or home.config.listen
    shown = f"[{address}]" if ":" in address else address
    sites = [
        {
            "name": row.name,
            "serial": row.serial,
            # What a node sends as `flwr-public-key`: see flwr's NodeAuthHttpInterceptor.
            "key": base64.b64encode(row.public_key_pem.encode()).decode(),
        }
        for row in rows
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # no HTML; names, hexadecimal and base64 are all that is filled in
    )
    return environment.get_template(_TEMPLATE).render(
        sites=sites,
        link_port=link_port,
        listen=f"{shown}:{port or home.config.port}",
        user=pwd.getpwuid(0).pw_name if os.geteuid() == 0 else None,
    )


def gateway_command(home: FederationHome) -> list[str]:
    """What starts the gateway in the foreground; SIGTERM or SIGQUIT ends it, SIGHUP has it read its files again.

    Raises:
        InputError: nginx is not installed.
    """
    folder = home.gateway_folder.resolve()
    # -e: before it has read its configuration, nginx would write to a system-wide log.
    return [find_nginx(), "-e", "stderr", "-p", f"{folder}/", "-c", _CONFIG]


def check_gateway(home: FederationHome) -> None:
    """Have nginx check the configuration that `write_gateway` wrote.

    Raises:
        InputError: it is not installed, or refuses it; the text is nginx's own.
    """
    asked = subprocess.run(
        [*gateway_command(home), "-t", "-q"], capture_output=True, text=True, timeout=_CHECK_S, check=False
    )
    if asked.returncode != 0:
        raise InputError(f"{home.gateway_folder / _CONFIG}: nginx refuses it:\n{asked.stderr.strip()}")


def end_leftovers(home: FederationHome) -> None:
    """End the workers of a gateway whose master process was killed: they keep its port, and an old list of sites."""
    import psutil

    try:
        group = int((home.gateway_folder / "nginx.pid").read_text())
    except (FileNotFoundError, ValueError):
        return
    for process in psutil.process_iter(["name", "uids"]):
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            ours = process.info["name"] == "nginx" and process.info["uids"].real == os.getuid()
            if ours and os.getpgid(process.pid) == group:
                process.kill()
                process.wait(_CHECK_S)


def check_port(home: FederationHome) -> None:
    """See that nobody else listens where the gateway is to.

    Raises:
        InputError: somebody does, or this user or machine may not listen there.
    """
    address, port = home.config.listen, home.config.port
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise InputError(
                f"the gateway cannot listen on {address}:{port}: {error.strerror}; federation.toml says where it is to"
            ) from None
