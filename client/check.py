"""``aiseeme-site check``: everything between this site and its first round, looked at before there is one."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import httpx

from aiseeme_models import __version__
from aiseeme_models.errors import InputError
from client.charges import BudgetBroken
from client.flower_adapter import probe_gateway
from client.ledger import Ledger, LedgerBroken
from client.membership import load_membership
from client.node_files import NodeFiles
from client.policy import CLOCK_TOLERANCE_S
from client.privacy import PrivacyBudget
from client.schedule import DAYS
from federation_configs.bundle_file import BUNDLE_SHA256
from federation_configs.machine_checks import Check, disk, library, memory, torch_works, writable
from federation_configs.membership import WARN_DAYS

if TYPE_CHECKING:
    from client.membership import SiteMembership
    from client.site_home import SiteHome

_LIBRARIES = ("torch", "torchvision", "monai", "flwr", "pydicom", "imagecodecs", "nibabel", "opacus", "safetensors")


def look(home: SiteHome) -> Iterator[Check]:
    """Look at one thing after the other; what rests on something that is missing is not looked at.

    Raises:
        InputError: site.toml is wrong.
    """
    config = home.config
    yield Check(what="aiseeme", ok=True, says=__version__)
    yield from map(library, _LIBRARIES)
    yield torch_works()
    yield memory()
    yield disk(home.folder)
    yield writable("home", home.folder)
    yield from _images(home)
    yield _policy(home)
    yield _ledger(home)
    yield _budget(home)
    try:
        membership = load_membership(home)
    except InputError as error:
        yield Check(what="membership", ok=False, says=str(error))
        return
    yield _membership(membership)
    yield from look_at_gateway(membership, config.connection.proxy)
    running = NodeFiles(home.folder).is_held()
    yield Check(what="running", ok=True, says="yes" if running else "no; start it with `aiseeme-site run`")


def _images(home: SiteHome) -> Iterator[Check]:
    sources = home.catalogue.sources()
    if not sources:
        yield Check(what="images", ok=False, says="no folder was scanned yet: `aiseeme-site scan FOLDER`")
        return
    allowed = home.config.policy.allowed_cohorts
    used = [(source, folder) for source, folder, cohort, _ in sources if allowed is None or cohort in allowed]
    if not used:
        yield Check(what="images", ok=False, says="[policy] cohorts leaves no scanned folder in")
    for source, folder in used:
        accepted = sum(row is not None and row.status == "accepted" for _, row in home.catalogue.listing(source))
        there = folder.is_dir()
        says = f"{folder}: {accepted:,} images accepted" if there else f"{folder}: cannot be reached now"
        yield Check(what="images", ok=there and accepted >= home.config.policy.min_images, says=says)


def _policy(home: SiteHome) -> Check:
    config = home.config
    bundle = BUNDLE_SHA256 in config.policy.approved_bundles(BUNDLE_SHA256)
    hours = config.schedule.hours or "all day"
    hours += "" if config.schedule.days == DAYS else f" on {', '.join(config.schedule.days)}"
    if not bundle:
        return Check(what="policy", ok=False, says=f"[policy] bundles lacks this version's own: {BUNDLE_SHA256}")
    now = datetime.now()
    if (opening := config.schedule.next_opening(now)) > now:
        hours += f", next from {opening:%A %H:%M}"
    return Check(what="policy", ok=True, says=f"works {hours}; bundle {BUNDLE_SHA256[:12]} is approved")


def _ledger(home: SiteHome) -> Check:
    try:
        found = Ledger.in_home(home.folder).check()
    except (LedgerBroken, OSError) as error:
        return Check(what="ledger", ok=False, says=str(error))
    broken = "; ".join(found.problems[:3])
    return Check(what="ledger", ok=not found.problems, says=broken or f"{found.entries:,} entries, unbroken")


def _budget(home: SiteHome) -> Check:
    limit = home.config.privacy.epsilon
    try:
        spent = PrivacyBudget(home.folder, Ledger.in_home(home.folder), home.config.privacy).spent()
    except (BudgetBroken, LedgerBroken, OSError) as error:
        return Check(what="privacy", ok=False, says=str(error))
    steps = sum(one.steps for one in spent)
    budget = "no budget" if limit is None else f"a budget of epsilon {limit:g}"
    return Check(what="privacy", ok=True, says=f"{budget}, {steps:,} steps charged (`aiseeme-site budget` says more)")


def _membership(membership: SiteMembership) -> Check:
    days = membership.days_left
    says = f"{membership.site} in {membership.federation}; the certificate is good for {days:.0f} days"
    if days < WARN_DAYS:
        says += ": ask the coordinator for a new one"
    return Check(what="membership", ok=days > 0, says=says)


def _name(host: str) -> Check:
    try:
        found = sorted({str(answer[4][0]) for answer in socket.getaddrinfo(host, None)})
    except OSError as error:
        return Check(what="name", ok=False, says=f"{host} is not found: {error.strerror}; ask who runs your DNS")
    return Check(what="name", ok=True, says=f"{host} is {', '.join(found)}")


def look_at_gateway(membership: SiteMembership, proxy: str | None) -> Iterator[Check]:
    """Look at the way to the gateway, and at whether it lets this site in.

    Args:
        membership: the site's.
        proxy: ``[connection] proxy``.
    """
    if proxy is None or proxy == "none":
        named = _name(membership.gateway_host)
        yield named
        if not named.ok:
            return
    where = f"{membership.gateway_host}:{membership.gateway_port}"
    try:
        answer = probe_gateway(membership, proxy)
    except httpx.ProxyError as error:
        yield Check(what="gateway", ok=False, says=f"the proxy refuses to connect to {where}: {error}")
        return
    except httpx.TransportError as error:
        yield Check(what="gateway", ok=False, says=f"{where}: {_why(error)}")
        return
    yield Check(what="gateway", ok=True, says=f"{where} answers, and its certificate is the federation's")
    yield _clock(answer)
    yield _key(answer)


def _why(error: httpx.TransportError) -> str:
    text = str(error)
    if isinstance(error.__context__, ssl.SSLError) or "SSL" in text or "certificate" in text:
        return f"no TLS with the federation's gateway: {text}; does something on the way open TLS connections?"
    if isinstance(error, httpx.TimeoutException):
        return "no answer: does the firewall let this machine connect there?"
    return f"no connection: {text}; is the gateway running, and does the firewall let this machine connect there?"


def _clock(answer: httpx.Response) -> Check:
    try:
        ahead = time.time() - parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return Check(what="clock", ok=False, says="the gateway's answer has no time")
    says = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the gateway's"
    return Check(what="clock", ok=abs(ahead) < CLOCK_TOLERANCE_S, says=says if abs(ahead) >= 2 else "agrees")


_REFUSALS: dict[int, str] = {
    400: "the gateway refuses this site's certificate: it is expired, or of another federation",
    403: "the gateway does not let this site in: it was revoked, or its admission is not the newest",
    401: "the SuperLink does not accept this site's key yet, or the clocks differ; try again in a minute",
    429: "the gateway is asked too often from here; try again in a minute",
    502: "the gateway runs, but nothing behind it: ask the coordinator",
    504: "the gateway runs, but nothing behind it answers: ask the coordinator",
}


def _key(answer: httpx.Response) -> Check:
    """Whether certificate and key are accepted: then the SuperLink itself answers, in its own format."""
    by_superlink = "json" in answer.headers.get("content-type", "") or answer.is_success
    if by_superlink and answer.status_code != 401:
        return Check(what="key", ok=True, says="certificate and key are accepted")
    return Check(
        what="key", ok=False, says=_REFUSALS.get(answer.status_code, f"the gateway answers HTTP {answer.status_code}")
    )
