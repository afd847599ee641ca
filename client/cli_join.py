"""``aiseeme-site join``: into a federation with what its coordinator has sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from aiseeme_models.printable import LONGEST_LINE, printable
from client.cli_options import Home, Json


def register(app: typer.Typer) -> None:
    """Add the command to ``aiseeme-site``."""
    app.command()(join)


def join(
    file: Annotated[Path, typer.Argument(help="The invitation, admission or kit that the coordinator has sent.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the request is written (default: NAME.request.pem).", show_default=False)
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Leave the federation that this site is in for this one.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Join a federation. An invitation is answered with a request; an admission or a kit is installed."""
    from client.joining import join as take
    from client.membership import load_membership
    from client.site_home import site_home
    from federation_configs.membership import load_authority
    from federation_configs.site_keys import certificate_fingerprint, key_fingerprint, spoken

    site = site_home(home)
    joining = take(site, file, replace=replace)
    given, fingerprint = joining.file, key_fingerprint(joining.public_key)
    authority = certificate_fingerprint(load_authority(given.authority, str(file)))
    facts: dict[str, object] = {"done": joining.done, "federation": given.federation, "site": given.site}
    facts |= {"gateway": given.gateway, "authority": authority, "signing_key": given.signing_key, "key": fingerprint}
    written = None
    if joining.request is not None:
        written = out or Path(f"{given.site}.request.pem")
        _write_request(written, joining.request)
        facts["request"] = str(written)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    _line(f"federation {given.federation}, site {given.site}, gateway {given.gateway}")
    _line(f"  authority     sha256 {authority}")
    _line(f"  signing key   {spoken(given.signing_key)}")
    _line(f"  own key       sha256 {fingerprint}")
    if written is not None:
        _line("Compare these with the coordinator by telephone: nothing else shows that the invitation is genuine.")
        _line(f"wrote {written}: send it to the coordinator; it is no secret. The key stays in {site.folder}")
        _line(f"With what comes back: aiseeme-site join {given.site}.admission.json")
        return
    membership = load_membership(site)
    _line(f"joined; the certificate is good until {membership.expires:%Y-%m-%d} ({membership.days_left:.0f} days)")
    if given.private_key is not None:
        _line(f"The kit holds the site's private key, which is now in {site.folder}: delete {file}")
    _line("next: aiseeme-site scan FOLDER, aiseeme-site check, aiseeme-site run; one that runs takes this up by itself")


def _write_request(path: Path, request: str) -> None:
    """Write the request, or leave the very same one there; another file is not overwritten."""
    from aiseeme_models.errors import InputError

    try:
        with path.open("x", encoding="ascii") as file:
            file.write(request)
    except FileExistsError:
        if not path.is_file() or path.read_bytes() != request.encode():
            raise InputError(
                f"{path}: there is another file already; it is not overwritten: --out names another"
            ) from None


def _line(text: str) -> None:
    typer.echo(printable(text, LONGEST_LINE))
