"""What a coordinator hands a hospital: one JSON file that invites it, admits it, or brings it everything at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError, field_validator

from aiseeme_models.errors import InputError
from aiseeme_models.options import Options
from federation_configs.names import NAME
from federation_configs.signatures import PUBLIC_KEY
from federation_configs.site_keys import load_certificate, load_private, p384, public_pem, serial_text

if TYPE_CHECKING:
    from cryptography import x509

MOST_BYTES = 65_536
WARN_DAYS = 30
"""So long before a certificate ends, whoever looks is told."""
SERIAL = r"^(?:[0-9A-F]{2}){1,20}$"

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
HOSTNAME = rf"^{_LABEL}(?:\.{_LABEL})*$"
_LONGEST_HOSTNAME = 253
_PEM = Field(default=None, max_length=8192)


def check_hostname(name: str) -> str:
    """``name``, if it is a DNS name in lower case or an IPv4 address.

    Raises:
        ValueError: it is not.
    """
    numeric = name.rpartition(".")[2].isdigit()
    fits = bool(re.fullmatch(r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?!$)|$)){4}" if numeric else HOSTNAME, name))
    if len(name) > _LONGEST_HOSTNAME or not fits:
        raise ValueError("a host is a DNS name in lower case or an IPv4 address, such as fl.example.org")
    return name


class Membership(Options):
    """An invitation; with a certificate an admission; with the private key too, a kit.

    Attributes:
        format: of this file.
        federation: its name.
        site: the name under which the hospital takes part.
        gateway: ``host:port``, the one address that the hospital connects to.
        authority: PEM of the CA that signs the gateway's and the sites' certificates.
        signing_key: the coordinator's Ed25519 public key, 64 hexadecimal digits.
        renews: serial number of the certificate that this invitation is to replace, where there was one.
        certificate: PEM of the site's certificate.
        private_key: PEM of its key, in a kit only.
    """

    format: Literal[1] = 1
    federation: str = Field(pattern=NAME)
    site: str = Field(pattern=NAME)
    gateway: str
    authority: str = Field(max_length=8192)
    signing_key: str = Field(pattern=PUBLIC_KEY)
    renews: str | None = Field(default=None, pattern=SERIAL)
    certificate: str | None = _PEM
    private_key: str | None = _PEM

    @field_validator("gateway")
    @classmethod
    def _address(cls, address: str) -> str:
        host, colon, port = address.rpartition(":")
        if not colon or not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65_535:
            raise ValueError("an address is written as host:port, such as fl.example.org:8443")
        check_hostname(host)
        return address

    @property
    def kind(self) -> Literal["invitation", "admission", "kit"]:
        """What the file is."""
        if self.certificate is None:
            return "invitation"
        return "admission" if self.private_key is None else "kit"

    @property
    def gateway_host(self) -> str:
        """The gateway's name or address."""
        return self.gateway.rpartition(":")[0]

    @property
    def gateway_port(self) -> int:
        """The gateway's port."""
        return int(self.gateway.rpartition(":")[2])

    def is_like(self, other: Membership) -> bool:
        """Whether both are for the same site of the same federation under the same keys."""
        return all(
            getattr(self, name) == getattr(other, name) for name in ("federation", "site", "authority", "signing_key")
        )

    def check(self, where: str) -> None:
        """Hold the parts against each other: the certificate is the site's, from this authority, for this key.

        Raises:
            InputError: they do not fit.
        """
        authority = load_authority(self.authority, f"{where}: authority")
        if self.certificate is None:
            if self.private_key is not None:
                raise InputError(f"{where}: a private key without a certificate; a kit has both")
            return
        certificate = load_certificate(self.certificate, f"{where}: certificate")
        check_issued(certificate, authority, f"{where}: certificate")
        if common_name(certificate) != self.site:
            raise InputError(f"{where}: the certificate is not for the site {self.site!r}")
        key = p384(certificate.public_key(), f"{where}: certificate")
        if self.private_key is not None:
            private = load_private(self.private_key, f"{where}: private_key")
            if public_pem(private.public_key()) != public_pem(key):
                raise InputError(f"{where}: the private key does not belong to the certificate")

    @property
    def serial(self) -> str | None:
        """The certificate's serial number, as nginx writes it."""
        if self.certificate is None:
            return None
        return serial_text(load_certificate(self.certificate, "certificate").serial_number)


def parse_membership(text: bytes | str, where: str) -> Membership:
    """Read and check what a coordinator has written.

    Args:
        text: the file's content.
        where: its name, for errors.

    Raises:
        InputError: it is something else, or its parts do not fit.
    """
    try:
        membership = Membership.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{where}: no invitation, admission or kit of a federation: {key + ': ' if key else ''}{said}"
        ) from None
    membership.check(where)
    return membership


def read_membership(path: Path) -> Membership:
    """Read an invitation, admission or kit.

    Raises:
        InputError: there is none at ``path``.
    """
    return parse_membership(read_small(path), str(path))


def read_small(path: Path) -> bytes:
    """A file of at most `MOST_BYTES`.

    Raises:
        InputError: it is not there, larger, or no file.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: this is no file")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"{path}: larger than {MOST_BYTES} bytes; a file of a federation's membership is small")
    return content


def to_json(membership: Membership) -> bytes:
    """The file's content."""
    return (membership.model_dump_json(indent=2, exclude_none=True) + "\n").encode()


def load_authority(pem: str, where: str) -> x509.Certificate:
    """Read the certificate of a federation's CA.

    Raises:
        InputError: it is no certificate, or none of a CA that signs itself.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    certificate = load_certificate(pem, where)
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        certificate.verify_directly_issued_by(certificate)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature):
        is_authority = False
    if not is_authority:
        raise InputError(f"{where}: this is no certificate of an authority")
    return certificate


def check_issued(certificate: x509.Certificate, authority: x509.Certificate, where: str) -> None:
    """Check that ``authority`` has signed ``certificate``.

    Raises:
        InputError: it has not.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise InputError(f"{where}: the federation's authority has not signed it") from None


def common_name(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str | None:
    """The one common name in the subject; None where there is another number of them."""
    from cryptography.x509.oid import NameOID

    names = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return str(names[0]) if len(names) == 1 else None
