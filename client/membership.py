"""The site's place in a federation, as `aiseeme-site join` has installed it: ``membership/`` in the site's home.

``membership/current`` points to a folder that is never changed, so that whoever reads it while a renewed certificate is
installed sees the one or the other, whole.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.errors import InputError
from federation_configs.membership import Membership, parse_membership, read_small
from federation_configs.signatures import public_key
from federation_configs.site_keys import load_certificate, load_private, public_pem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from client.site_home import SiteHome

CURRENT = "current"
FILE, KEY, NODE_KEY = "membership.json", "key.pem", "node.key"
AUTHORITY, CERTIFICATE = "authority.pem", "certificate.pem"


@dataclass(frozen=True)
class SiteMembership:
    """Who the site is in its federation, and with which files it shows that.

    Attributes:
        file: what the coordinator has written, without a private key.
        folder: where the files are.
        expires: when the site's certificate ends; aware, in UTC.
    """

    file: Membership
    folder: Path
    expires: datetime

    @property
    def site(self) -> str:
        """The name under which the site takes part."""
        return self.file.site

    @property
    def federation(self) -> str:
        """The federation's name."""
        return self.file.federation

    @property
    def gateway_host(self) -> str:
        """The one host that the site connects to."""
        return self.file.gateway_host

    @property
    def gateway_port(self) -> int:
        """And its port."""
        return self.file.gateway_port

    @property
    def authority_file(self) -> Path:
        """PEM of the CA of the gateway."""
        return self.folder / AUTHORITY

    @property
    def certificate_file(self) -> Path:
        """PEM of the site's certificate."""
        return self.folder / CERTIFICATE

    @property
    def key_file(self) -> Path:
        """The site's private key as TLS libraries read it (PKCS8 PEM)."""
        return self.folder / KEY

    @property
    def node_key_file(self) -> Path:
        """The same key as ``flower-supernode`` reads it (OpenSSH)."""
        return self.folder / NODE_KEY

    @cached_property
    def signing_key(self) -> Ed25519PublicKey:
        """The coordinator's key: what it asks is signed with it."""
        return public_key(self.file.signing_key)

    @property
    def signing_key_hex(self) -> str:
        """The same, 64 hexadecimal digits."""
        return self.file.signing_key

    @property
    def days_left(self) -> float:
        """Days until the site's certificate ends; negative once it has."""
        return (self.expires - datetime.now(UTC)).total_seconds() / 86_400


def load_membership(home: SiteHome) -> SiteMembership:
    """The membership that is installed.

    Raises:
        InputError: the site has not joined or waits for its admission, files are damaged, or others may read its key.
    """
    found = installed(home.folder)
    if found is not None:
        return found
    if pending_folder(home.folder).is_dir():
        raise InputError(
            f"{home.folder}: this site waits for its admission: send the request to the coordinator, and give what "
            "comes back to `aiseeme-site join`"
        )
    raise InputError(
        f"{home.folder}: this site has not joined a federation: give the invitation or the kit that its coordinator "
        "has sent to `aiseeme-site join`"
    )


def installed(home: Path) -> SiteMembership | None:
    """The membership that is installed in a site's home; None where there is none.

    Raises:
        InputError: its files are damaged, or others may read its key.
    """
    current = membership_folder(home) / CURRENT
    if not current.is_symlink():
        return None
    folder = current.resolve()
    where = folder / FILE
    file = parse_membership(read_small(where), str(where))
    if file.certificate is None:
        raise InputError(f"{where}: the certificate is missing: join again with the admission, and --replace")
    certificate = load_certificate(file.certificate, str(where))
    key = load_private(read_private(folder / KEY), str(folder / KEY))
    check_private(folder / NODE_KEY)
    if public_pem(key.public_key()) != public_pem(certificate.public_key()):  # type: ignore[arg-type]  # checked above
        raise InputError(f"{folder / KEY}: this is not the key of the site's certificate: join again with --replace")
    return SiteMembership(file, folder, certificate.not_valid_after_utc)


def membership_folder(home: Path) -> Path:
    """Where a site keeps its membership."""
    return home / "membership"


def pending_folder(home: Path) -> Path:
    """Where the key of a request waits for its certificate."""
    return membership_folder(home) / "pending"


def read_private(path: Path) -> str:
    """The text of a private file.

    Raises:
        InputError: it is missing, is no text, or others may read it.
    """
    check_private(path)
    try:
        return read_small(path).decode("ascii")
    except UnicodeDecodeError:
        raise InputError(f"{path}: this is no key") from None


def check_private(path: Path) -> None:
    """Check that only its owner may read a file.

    Raises:
        InputError: it is missing, or others may read it; the text says how to change that.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; it belongs to the site's membership: put it back, or join again")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InputError(f"{path}: others may read this private key: chmod 600 {path}")
