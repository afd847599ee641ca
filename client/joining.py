"""Joining a federation. The site's key is made here and stays here; the coordinator signs a request for it.

Whoever an invitation names as the federation's authority and signer is the one that the admission must come from.
"""

from __future__ import annotations

import fcntl
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aiseeme_models.atomic_files import flush_folder, write_atomically
from aiseeme_models.errors import InputError
from client.ledger import Ledger
from client.membership import (
    AUTHORITY,
    CERTIFICATE,
    CURRENT,
    FILE,
    KEY,
    NODE_KEY,
    SiteMembership,
    installed,
    load_membership,
    membership_folder,
    pending_folder,
    read_private,
)
from federation_configs.membership import Membership, parse_membership, read_membership, read_small, to_json
from federation_configs.site_keys import (
    load_certificate,
    load_private,
    make_site_key,
    openssh_pem,
    private_pem,
    public_pem,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from client.site_home import SiteHome

_INVITATION, _REQUEST = "invitation.json", "request.pem"
_INSTALLED = re.compile(r"[0-9A-F]+-[0-9a-f]{8}")


@dataclass(frozen=True)
class Joining:
    """What came of a file that was given to `join`.

    Attributes:
        done: ``requested``: the request is to be sent to the coordinator; ``joined``: the site takes part.
        file: what was given.
        public_key: PEM of the site's key.
        request: the request, PEM, where there is one.
    """

    done: Literal["requested", "joined"]
    file: Membership
    public_key: str
    request: str | None = None


def join(home: SiteHome, path: Path, *, replace: bool = False) -> Joining:
    """Take what a coordinator has sent: an invitation is answered with a request, an admission or a kit is installed.

    Args:
        home: the site's.
        path: the file.
        replace: leave the federation that the site is in, or has applied to, for the one of this invitation or kit.

    Raises:
        InputError: it is no such file, belongs to another federation, site or key, or was changed on its way.
    """
    given = read_membership(path)
    with _alone(home):
        present, asked = _present(home, replace=replace), _pending(home)
        if given.kind == "admission":
            key = _key_for(home, path, given, present, asked)
        else:
            for known in (present.file if present else None, asked):
                if known is not None and not (replace or known.is_like(given)):
                    raise InputError(_differs(path, given, known))
            if given.private_key is None:
                return _apply(home, path, given, present, asked, replace=replace)
            key = load_private(given.private_key, str(path))
        _install(home, given, key)
    return Joining("joined", given, public_pem(key.public_key()))


def _apply(
    home: SiteHome,
    path: Path,
    given: Membership,
    present: SiteMembership | None,
    asked: Membership | None,
    *,
    replace: bool,
) -> Joining:
    if present is not None and given.renews is None and not replace:
        raise InputError(
            f"{path}: this site has joined {given.federation} already; for a new certificate the coordinator makes "
            "an invitation with `aiseeme site rotate`"
        )
    pending = pending_folder(home.folder)
    if asked is None or not asked.is_like(given) or asked.renews != given.renews:
        _make_pending(pending, given)
    elif asked != given:  # the gateway has moved: the request is still good
        write_atomically(pending / _INVITATION, to_json(given))
    request = read_small(pending / _REQUEST).decode("ascii")
    return Joining("requested", given, public_pem(_pending_key(home).public_key()), request)


def _make_pending(pending: Path, given: Membership) -> None:
    """The invitation comes last: where that is, key and request are there too."""
    if pending.exists():
        shutil.rmtree(pending)
    pending.mkdir(mode=0o700)
    key = make_site_key()
    write_atomically(pending / KEY, private_pem(key).encode(), private=True)
    write_atomically(pending / _REQUEST, _request(given.site, key).encode())
    write_atomically(pending / _INVITATION, to_json(given))


def _key_for(
    home: SiteHome, path: Path, given: Membership, present: SiteMembership | None, asked: Membership | None
) -> EllipticCurvePrivateKey:
    """The key for which an admission was made: the one that waits for it, or, once more, the present one.

    What the admission says of the federation must be what was known when the request was made, whatever `replace`.
    """
    sources: list[tuple[Membership, EllipticCurvePrivateKey]] = []
    if asked is not None:
        sources.append((asked, _pending_key(home)))
    if present is not None:
        sources.append((present.file, load_private(read_private(present.key_file), str(present.key_file))))
    if not sources:
        raise InputError(
            f"{path}: this site has not applied to a federation: an admission answers a request, which "
            "`aiseeme-site join` makes from an invitation"
        )
    assert given.certificate is not None
    wanted = load_certificate(given.certificate, str(path)).public_key()
    matching = [known for known, key in sources if key.public_key() == wanted]
    for known in matching or [known for known, _ in sources]:
        if not known.is_like(given):
            raise InputError(_differs(path, given, known))
    for _, key in sources:
        if key.public_key() == wanted:
            return key
    raise InputError(
        f"{path}: this admission is for another key than the one that this site has made: send the coordinator the "
        "request that `aiseeme-site join` writes for the latest invitation"
    )


def _install(home: SiteHome, given: Membership, key: EllipticCurvePrivateKey) -> None:
    assert given.certificate is not None and given.serial is not None
    folder = membership_folder(home.folder)
    target = folder / f"{given.serial}-{secrets.token_hex(4)}"
    target.mkdir(mode=0o700)
    write_atomically(target / KEY, private_pem(key).encode(), private=True)
    write_atomically(target / NODE_KEY, openssh_pem(key).encode(), private=True)
    public = given.model_copy(update={"private_key": None, "renews": None})
    for name, content in (
        (AUTHORITY, given.authority.encode()),
        (CERTIFICATE, given.certificate.encode()),
        (FILE, to_json(public)),
    ):
        write_atomically(target / name, content)
    fields = {"federation": given.federation, "site": given.site, "coordinator": given.signing_key}
    Ledger.in_home(home.folder).append("joined", **fields, certificate=given.serial)
    _point_to(folder, target.name)
    load_membership(home)
    for left in folder.iterdir():  # former keys are of no use to anybody but a thief
        if _INSTALLED.fullmatch(left.name) and left != target:
            shutil.rmtree(left)
    pending = pending_folder(home.folder)
    if given.private_key is not None or _is_key(pending / KEY, key):
        shutil.rmtree(pending, ignore_errors=True)


def _is_key(path: Path, key: EllipticCurvePrivateKey) -> bool:
    return path.exists() and load_private(read_private(path), str(path)).public_key() == key.public_key()


def _point_to(folder: Path, name: str) -> None:
    draft = folder / f"{CURRENT}.new"
    draft.unlink(missing_ok=True)
    draft.symlink_to(name)
    draft.replace(folder / CURRENT)
    flush_folder(folder)


@contextmanager
def _alone(home: SiteHome) -> Iterator[None]:
    """Have no other process join at the same time."""
    folder = membership_folder(home.folder)
    for made in (home.folder, folder):
        made.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _present(home: SiteHome, *, replace: bool) -> SiteMembership | None:
    """What is installed; where it is to be replaced, it may be damaged."""
    try:
        return installed(home.folder)
    except InputError:
        if not replace:
            raise
        return None


def _pending(home: SiteHome) -> Membership | None:
    """The invitation that was answered last, if no admission has come yet."""
    path = pending_folder(home.folder) / _INVITATION
    return parse_membership(read_small(path), str(path)) if path.exists() else None


def _pending_key(home: SiteHome) -> EllipticCurvePrivateKey:
    path = pending_folder(home.folder) / KEY
    return load_private(read_private(path), str(path))


def _request(site: str, key: EllipticCurvePrivateKey) -> str:
    """A certificate signing request in PEM: the site's name, the key, and a signature with it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    built = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA384())
    return built.public_bytes(Encoding.PEM).decode()


def _differs(path: Path, given: Membership, known: Membership) -> str:
    """What of a file contradicts what the site knows already."""
    wrong = {
        "federation": f"it is for the federation {given.federation}, this site's is {known.federation}",
        "site": f"it is for the site {given.site}, this one is {known.site}",
        "authority": "its authority is not the one of the invitation: somebody may have changed it on its way",
        "signing_key": "its signing key is not the one of the invitation: somebody may have changed it on its way",
    }
    said = next(text for name, text in wrong.items() if getattr(given, name) != getattr(known, name))
    return f"{path}: {said}. Ask the coordinator by telephone; --replace leaves {known.federation} for it"
