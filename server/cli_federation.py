"""``aiseeme init``, ``aiseeme site`` and ``aiseeme gateway``: making a federation and letting hospitals into it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aiseeme_models.printable import LONGEST_LINE, printable
from federation_configs.command_line import console, shown
from server.cli_options import Federation, Json

if TYPE_CHECKING:
    from federation_configs.membership import Membership
    from server.site_registry import SiteRow

Name = Annotated[str, typer.Argument(help="The hospital's name: small letters, digits and hyphens.")]
Kit = Annotated[
    bool, typer.Option("--kit", help="Make the hospital's private key here, and one file that holds everything.")
]
Out = Annotated[Path | None, typer.Option(help="The file to write (default: here, by the name).", show_default=False)]

site_app = typer.Typer(no_args_is_help=True, help="Let hospitals in, and shut them out.")
gateway_app = typer.Typer(no_args_is_help=True, help="The door through which hospitals connect.")


def register(app: typer.Typer) -> None:
    """Add the commands to ``aiseeme``."""
    app.command()(init)
    app.add_typer(site_app, name="site")
    app.add_typer(gateway_app, name="gateway")


def init(
    home: Annotated[Path, typer.Argument(help="The federation's folder: new or empty.")],
    hostname: Annotated[str, typer.Option(help="The name or IPv4 address under which hospitals reach this machine.")],
    port: Annotated[int, typer.Option(min=1, max=65_535, help="The one port that must be open to them.")] = 8443,
    listen: Annotated[str, typer.Option(help="The address of this machine to listen on.")] = "0.0.0.0",
    name: Annotated[
        str | None, typer.Option(help="The federation's name (default: made of the hostname).", show_default=False)
    ] = None,
) -> None:
    """Make a federation: its authority, keys, certificates, database and gateway."""
    from federation_configs.signatures import load_signing_key, public_hex
    from federation_configs.site_keys import certificate_fingerprint, spoken
    from server.federation_home import check_settings
    from server.provisioning import authority_of, init_federation

    default = hostname.replace(".", "-")[:48].strip("-")
    given = {"name": default if name is None else name, "hostname": hostname, "port": port, "listen": listen}
    made = init_federation(home, check_settings(given, "aiseeme init"))
    authority = authority_of(made).certificate
    _line(f"made the federation {made.config.name} in {home}")
    _line(f"  settings      {made.settings_file}")
    _line(f"  authority     sha256 {certificate_fingerprint(authority)}")
    _line(f"                until {authority.not_valid_after_utc:%Y-%m-%d}; its key never leaves {home}")
    _line(f"  signing key   {spoken(public_hex(load_signing_key(made.signing_key).public_key()))}")
    _line(f"  gateway       {made.config.gateway}, the one port that must be open, for TLS with client certificates")
    _line("Keep a copy of the folder in a safe place: whoever has it is the federation, and without it there is none.")
    _line(f"next: aiseeme site add NAME --federation {home}    then: aiseeme serve --federation {home}")


@site_app.command()
def add(name: Name, kit: Kit = False, out: Out = None, federation: Federation = None) -> None:
    """Invite a hospital, or make it a kit. One that was revoked may apply again, with a new key."""
    from server.federation_home import federation_home
    from server.provisioning import invite

    home = federation_home(federation)
    _hand_out(home, name, invite, kit=kit, out=out)


@site_app.command()
def rotate(name: Name, kit: Kit = False, out: Out = None, federation: Federation = None) -> None:
    """Let a hospital have its next certificate, for a new key; the present one is good until that is signed."""
    from server.federation_home import federation_home
    from server.provisioning import rotate as start

    home = federation_home(federation)
    _hand_out(home, name, start, kit=kit, out=out)


@site_app.command()
def sign(
    request: Annotated[Path, typer.Argument(help="What `aiseeme-site join` has written at the hospital.")],
    out: Out = None,
    federation: Federation = None,
) -> None:
    """Admit the hospital whose request this is."""
    from federation_configs.membership import read_small
    from server.certificates import read_request
    from server.federation_home import federation_home
    from server.provisioning import new_file, sign_request, write_membership
    from server.site_registry import check_site_name

    home, content = federation_home(federation), read_small(request)
    name, _ = read_request(content, str(request))
    check_site_name(name)  # it becomes the name of a file
    path = out or Path(f"{name}.admission.json")
    with new_file(path) as file:
        admission, fingerprint = sign_request(home, content, str(request))
        write_membership(file, admission)
    _line(f"{name} is admitted until {_until(admission):%Y-%m-%d}: send it {path}, which is no secret")
    _line(f"its key: sha256 {fingerprint}")
    _line(
        "Have the hospital read that out by telephone: `aiseeme-site join` has shown it there. If it differs, somebody"
    )
    _line(f"else has sent the request: aiseeme site revoke {name}")


@site_app.command("list")
def list_(federation: Federation = None, as_json: Json = False) -> None:
    """List the hospitals, and until when their certificates are good."""
    from rich.table import Table

    from federation_configs.membership import WARN_DAYS
    from server.federation_home import federation_home
    from server.provisioning import list_sites
    from server.service_files import sites_online

    home = federation_home(federation)
    rows, online = list_sites(home), sites_online(home)
    if as_json:
        listed = [_facts(row) | {"connected": None if online is None else row.name in online} for row in rows]
        typer.echo(json.dumps(listed, indent=2))
        return
    if not rows:
        _line(f"no hospitals in {home.config.name} yet; `aiseeme site add NAME` invites one")
        return
    table = Table()
    for title in ("site", "status", "connected", "certificate until", "days left", "serial"):
        table.add_column(title, overflow="fold")
    for row in rows:
        facts = _facts(row)
        days = facts["days_left"] if row.status == "active" else None
        warning = "" if days is None or days > WARN_DAYS else ": expired" if days <= 0 else ": rotate it"
        status = f"{row.status}, rotating" if row.rotating else row.status
        left = "" if days is None else f"{days:.0f}{warning}"
        there = "" if online is None or row.status != "active" else "yes" if row.name in online else "no"
        table.add_row(*(shown(text) for text in (row.name, status, there, row.expires[:10], left, row.serial)))
    console().print(table)


@site_app.command()
def revoke(name: Name, federation: Federation = None) -> None:
    """Shut a hospital out. Where `aiseeme serve` runs, within seconds; its key is never accepted again."""
    from server.federation_home import federation_home
    from server.provisioning import revoke as shut_out

    row = shut_out(federation_home(federation), name)
    _line(f"{row.name} is revoked; where `aiseeme serve` runs, gateway and SuperLink refuse it within seconds")


@gateway_app.command()
def renew(federation: Federation = None) -> None:
    """Give gateway and SuperLink new keys and certificates. Hospitals need nothing new."""
    from federation_configs.site_keys import load_certificate
    from server.federation_home import federation_home
    from server.provisioning import renew_servers

    home = federation_home(federation)
    renew_servers(home)
    until = load_certificate(home.gateway_certificate.read_text(), str(home.gateway_certificate)).not_valid_after_utc
    _line(f"the certificates of gateway and SuperLink are good until {until:%Y-%m-%d}; start `aiseeme serve` again")


def _hand_out(home: Any, name: str, begin: Any, *, kit: bool, out: Path | None) -> None:
    """Write an invitation or a kit, where there is no such file yet."""
    from federation_configs.site_keys import certificate_fingerprint, load_certificate, spoken
    from server.provisioning import make_kit, new_file, write_membership
    from server.site_registry import check_site_name

    check_site_name(name)
    path = out or Path(f"{name}.{'kit' if kit else 'invitation'}.json")
    with new_file(path, private=kit) as file:
        membership: Membership = begin(home, name)
        if kit:
            membership = make_kit(home, name)
        write_membership(file, membership)
    if kit:
        _line(f"wrote {path}: the kit of {name}, good until {_until(membership):%Y-%m-%d}")
        _line(
            "It holds the hospital's private key. Hand it over in person or encrypted, and delete it here: who has it"
        )
        _line(f"can act as {name}. At the hospital: aiseeme-site join {path.name}")
        return
    authority = load_certificate(membership.authority, "authority")
    _line(f"wrote {path}: send it to {name}; it is no secret")
    _line(f"At the hospital: aiseeme-site join {path.name}    and read out by telephone what it shows there:")
    _line(f"  authority     sha256 {certificate_fingerprint(authority)}")
    _line(f"  signing key   {spoken(membership.signing_key)}")
    _line(f"It writes {name}.request.pem; here then: aiseeme site sign {name}.request.pem")


def _facts(row: SiteRow) -> dict[str, Any]:
    facts = row.model_dump(mode="json", exclude={"public_key_pem"})
    left = datetime.fromisoformat(row.expires) - datetime.now(UTC) if row.expires else None
    return facts | {"days_left": None if left is None else round(left.total_seconds() / 86_400, 1)}


def _until(membership: Membership) -> datetime:
    from federation_configs.site_keys import load_certificate

    return load_certificate(membership.certificate or "", "certificate").not_valid_after_utc


def _line(text: str) -> None:
    typer.echo(printable(text, LONGEST_LINE))
