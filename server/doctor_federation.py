"""What `aiseeme doctor` says of a federation's home: its certificates' ends, its private files, and nginx."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aiseeme_models.errors import InputError
from federation_configs.machine_checks import Check
from federation_configs.membership import WARN_DAYS
from federation_configs.site_keys import load_certificate
from server.gateway import find_nginx
from server.provisioning import list_sites

if TYPE_CHECKING:
    from pathlib import Path

    from server.federation_home import FederationHome


def examine_federation(home: FederationHome, now: datetime | None = None) -> list[Check]:
    """Look at a federation's home.

    Args:
        home: one that was made.
        now: aware; the present by default.

    Raises:
        InputError: a mistake in its ``federation.toml``.
    """
    now = now or datetime.now(UTC)
    config = home.config
    findings = [Check(what="federation", ok=True, says=f"{config.name}, gateway {config.gateway}"), _nginx()]
    renew = "`aiseeme gateway renew`"
    findings += [
        _certificate("authority", home.authority_certificate, "a new federation has to be made before that", now),
        _certificate("gateway", home.gateway_certificate, renew, now),
        _certificate("superlink", home.link_certificate, renew, now),
    ]
    for row in list_sites(home):
        if row.status == "active":
            ends = datetime.fromisoformat(row.expires)
            findings.append(_ends(f"site {row.name}", ends, f"`aiseeme site rotate {row.name}`", now))
    return [*findings, *_secrets(home)]


def _certificate(what: str, path: Path, remedy: str, now: datetime) -> Check:
    try:
        certificate = load_certificate(path.read_text(encoding="ascii"), str(path))
    except (InputError, OSError, UnicodeDecodeError) as error:
        return Check(what=what, ok=False, says=f"{path} cannot be read: {error}")
    return _ends(what, certificate.not_valid_after_utc, remedy, now)


def _ends(what: str, ends: datetime, remedy: str, now: datetime) -> Check:
    days = (ends - now).total_seconds() / 86_400
    if days <= 0:
        return Check(what=what, ok=False, says=f"the certificate has ended on {ends:%Y-%m-%d}: {remedy}")
    if days <= WARN_DAYS:
        return Check(what=what, ok=True, says=f"WARNING: the certificate ends in {days:.0f} days: {remedy}")
    return Check(what=what, ok=True, says=f"the certificate is good for {days:.0f} days, until {ends:%Y-%m-%d}")


def _nginx() -> Check:
    try:
        return Check(what="nginx", ok=True, says=find_nginx())
    except InputError as error:
        return Check(what="nginx", ok=False, says=str(error))


def _secrets(home: FederationHome) -> list[Check]:
    """Files that others may read but should not."""
    findings = []
    for path in (home.authority_key, home.gateway_key, home.link_key, home.signing_key, home.superexec_secret):
        if not path.is_file():
            findings.append(Check(what=path.name, ok=False, says=f"{path} is missing: put it back from your copy"))
        elif stat.S_IMODE(path.stat().st_mode) & 0o077:
            findings.append(Check(what=path.name, ok=False, says=f"others may read it: chmod 600 {path}"))
    return findings
