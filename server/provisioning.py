"""Making a federation and letting hospitals into it.

A hospital makes its own key: it is sent an invitation, answers with a request that its key has signed, and is sent an
admission. A kit is all of that in one file, for small federations: then the coordinator has seen the key.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from aiseeme_models.atomic_files import flush_folder, write_atomically
from aiseeme_models.errors import InputError
from federation_configs.membership import Membership, read_small, to_json
from federation_configs.signatures import create_signing_key, load_signing_key, public_hex
from federation_configs.site_keys import (
    key_fingerprint,
    load_certificate,
    load_private,
    make_site_key,
    private_pem,
    public_pem,
    serial_text,
)
from server.certificates import Authority, certificate_pem, read_request
from server.federation_home import FederationHome, FederationSettings, to_toml
from server.service_files import ServiceFiles
from server.site_registry import SiteRegistry, SiteRow, check_site_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

_UNFINISHED = "init.unfinished"
_LOOPBACK = ["localhost", "127.0.0.1"]


def init_federation(folder: Path, settings: FederationSettings) -> FederationHome:
    """Make a federation's home: authority, certificates, keys, secret and databases. What was interrupted is redone.

    Args:
        folder: a new or empty folder.
        settings: what becomes its ``federation.toml``.

    Raises:
        InputError: there is a federation already, or something else.
    """
    home = FederationHome(folder)
    if home.settings_file.exists():
        raise InputError(f"{folder}: there is a federation already; it is not touched")
    mark = folder / _UNFINISHED
    if folder.is_dir() and not mark.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: this folder is not empty and holds no federation: name a new one")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    with mark.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is making this federation") from None
        for made in (home.authority_key.parent, home.gateway_folder, home.logs, home.runs):
            made.mkdir(exist_ok=True, mode=0o700)
        for left in home.authority_key.parent.iterdir():  # of an init that was interrupted: nothing has used them
            left.unlink()
        authority = Authority.make(f"{settings.name} authority")
        _secret(home.authority_key, private_pem(authority.key))
        home.authority_certificate.write_text(certificate_pem(authority.certificate))
        _certify_gateway(home, settings, authority)
        _certify_link(home)
        create_signing_key(home.signing_key)
        _secret(home.superexec_secret, secrets.token_hex(32))
        SiteRegistry(home.sites_url).close()
        flush_folder(home.authority_key.parent)
        write_atomically(home.settings_file, to_toml(settings))
        mark.unlink()
    return home


def renew_servers(home: FederationHome) -> None:
    """Give gateway and SuperLink new keys and certificates; hospitals need nothing new.

    Raises:
        InputError: there is no federation, or it is being served.
    """
    settings = home.config
    if ServiceFiles(home.folder).is_held():  # its SuperLink would go on under an authority that is gone
        raise InputError(f"{home.folder}: `aiseeme serve` is running: stop it, renew, and start it again")
    _certify_gateway(home, settings, authority_of(home))
    _certify_link(home)


def invite(home: FederationHome, name: str) -> Membership:
    """Let a hospital apply, under a name.

    Raises:
        InputError: no federation, no name of a site, or the site is active.
    """
    return _invitation(home, _registry(home).invite(name))


def rotate(home: FederationHome, name: str) -> Membership:
    """An invitation to an active site to apply for its next certificate, with a new key.

    Raises:
        InputError: there is no such active site.
    """
    return _invitation(home, _registry(home).rotate(name))


def revoke(home: FederationHome, name: str) -> SiteRow:
    """Shut a site out.

    Raises:
        InputError: there is no such site.
    """
    return _registry(home).revoke(name)


def list_sites(home: FederationHome) -> list[SiteRow]:
    """All sites of a federation, by name."""
    return _registry(home).list()


def sign_request(home: FederationHome, content: bytes, where: str) -> tuple[Membership, str]:
    """Admit the site whose request this is; gives the admission and the fingerprint of the site's key.

    Args:
        home: the federation's.
        content: the request, PEM.
        where: its name, for errors.

    Raises:
        InputError: it is no request of a site that was invited or is rotating, or its key may not be used.
    """
    name, key = read_request(content, where)
    try:
        check_site_name(name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return _admit(home, name, key), key_fingerprint(public_pem(key))


def make_kit(home: FederationHome, name: str) -> Membership:
    """Admit a site with a key that is made here.

    Raises:
        InputError: the site was not invited and is not rotating.
    """
    key = make_site_key()
    admission = _admit(home, name, key.public_key())
    return admission.model_copy(update={"private_key": private_pem(key)})


def authority_of(home: FederationHome) -> Authority:
    """The federation's authority, with its key.

    Raises:
        InputError: its files are missing or damaged.
    """
    return Authority(
        load_certificate(_text(home.authority_certificate), str(home.authority_certificate)),
        load_private(_text(home.authority_key), str(home.authority_key)),
    )


@contextmanager
def new_file(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """A file that did not exist; it is gone again where writing it, or what goes with it, fails.

    Args:
        path: where.
        private: whether only its owner may read it.

    Raises:
        InputError: there is a file already.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    except FileExistsError:
        raise InputError(f"{path}: there is such a file already; it is not overwritten: --out names another") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    flush_folder(path.absolute().parent)


def write_membership(file: IO[bytes], membership: Membership) -> None:
    """Write an invitation, admission or kit into a `new_file`."""
    file.write(to_json(membership))


def _admit(home: FederationHome, name: str, key: EllipticCurvePublicKey) -> Membership:
    certificate = authority_of(home).certify_site(name, key, home.config.site_days)
    row = _registry(home).admit(
        name, public_pem(key), serial_text(certificate.serial_number), certificate.not_valid_after_utc
    )
    return _membership(home, row).model_copy(update={"certificate": certificate_pem(certificate)})


def _invitation(home: FederationHome, row: SiteRow) -> Membership:
    """For a site that has or had a certificate, it says which: the hospital then makes a new key."""
    return _membership(home, row).model_copy(update={"renews": row.serial or None})


def _membership(home: FederationHome, row: SiteRow) -> Membership:
    return Membership(
        federation=home.config.name,
        site=row.name,
        gateway=home.config.gateway,
        authority=_text(home.authority_certificate),
        signing_key=public_hex(load_signing_key(home.signing_key).public_key()),
    )


def _registry(home: FederationHome) -> SiteRegistry:
    _ = home.config  # raises where there is no federation, before a database is made there
    return SiteRegistry(home.sites_url)


def _certify_gateway(home: FederationHome, settings: FederationSettings, authority: Authority) -> None:
    key = make_site_key()
    certificate = authority.certify_server([settings.hostname], key.public_key())
    _replace_pair(home.gateway_key, key, home.gateway_certificate, certificate_pem(certificate))


def _certify_link(home: FederationHome) -> None:
    """The SuperLink's certificate, from an authority of its own whose key is forgotten at once.

    So nothing else can pose as the SuperLink to the gateway or the coordinator, no site's certificate least of all.
    """
    inner, key = Authority.make("AISEEME SuperLink"), make_site_key()
    certificate = certificate_pem(inner.certify_server(_LOOPBACK, key.public_key()))
    _replace_pair(home.link_key, key, home.link_certificate, certificate)
    write_atomically(home.link_authority, certificate_pem(inner.certificate).encode())


def _replace_pair(key_file: Path, key: EllipticCurvePrivateKey, certificate_file: Path, certificate: str) -> None:
    draft = key_file.with_name(key_file.name + ".new")
    draft.unlink(missing_ok=True)
    _secret(draft, private_pem(key))
    draft.replace(key_file)
    write_atomically(certificate_file, certificate.encode())


def _secret(path: Path, text: str) -> None:
    with new_file(path, private=True) as file:
        file.write(text.encode())


def _text(path: Path) -> str:
    with contextlib.suppress(UnicodeDecodeError):
        return read_small(path).decode("ascii")
    raise InputError(f"{path}: this is no text")
