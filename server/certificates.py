"""The federation's authority: what it certifies, for how long, and for what use only."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aiseeme_models.errors import InputError
from aiseeme_models.printable import printable
from federation_configs.membership import common_name
from federation_configs.site_keys import make_site_key, p384

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

AUTHORITY_DAYS = 3653
SERVER_DAYS = 825  # what the strictest verifiers accept of a server
SITE_DAYS = 365
_BACKDATED = timedelta(hours=1)  # a hospital's clock may be a little behind


@dataclass(frozen=True)
class Authority:
    """A certificate that signs others, and its key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str) -> Authority:
        """A new one, good for ten years, that may sign certificates of hosts and sites but of no other authority."""
        key = make_site_key()
        subject = _named(name)
        use = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        built = (
            _begun(subject, subject, key.public_key(), AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(use, critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA384())
        )
        return cls(built, key)

    def certify_server(self, names: list[str], key: EllipticCurvePublicKey) -> x509.Certificate:
        """A certificate for a server, and for nothing else.

        Args:
            names: DNS names and IP addresses under which it is reached; the first one is its common name.
            key: its public key.
        """
        alternatives = x509.SubjectAlternativeName([_host(name) for name in names])
        begun = _begun(_named(names[0][:64]), self.certificate.subject, key, SERVER_DAYS, self._end)
        return self._finish(begun.add_extension(alternatives, critical=False), ExtendedKeyUsageOID.SERVER_AUTH, key)

    def certify_site(self, site: str, key: EllipticCurvePublicKey, days: int = SITE_DAYS) -> x509.Certificate:
        """A certificate with which a site shows who it is, and which is good for nothing else.

        Args:
            site: its name, the certificate's common name.
            key: its public key.
            days: how long it is good.
        """
        begun = _begun(_named(site), self.certificate.subject, key, days, self._end)
        return self._finish(begun, ExtendedKeyUsageOID.CLIENT_AUTH, key)

    @property
    def _end(self) -> datetime:
        return self.certificate.not_valid_after_utc

    def _finish(
        self, begun: x509.CertificateBuilder, use: x509.ObjectIdentifier, key: EllipticCurvePublicKey
    ) -> x509.Certificate:
        signature_only = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=False,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            begun.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(signature_only, critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA384())
        )


def certificate_pem(certificate: x509.Certificate) -> str:
    """A certificate as text."""
    return certificate.public_bytes(Encoding.PEM).decode()


def read_request(content: bytes, where: str) -> tuple[str, EllipticCurvePublicKey]:
    """Who asks for a certificate, and for which key. Whatever else a request asks for is ignored.

    Args:
        content: a PEM certificate signing request.
        where: its name, for errors.

    Raises:
        InputError: it is no such request, or who made it does not have the key that it names.
    """
    try:
        request = x509.load_pem_x509_csr(content)
        genuine = request.is_signature_valid
        key = request.public_key()
    except (ValueError, InvalidSignature):
        raise InputError(f"{where}: this is no certificate request in PEM, as `aiseeme-site join` writes it") from None
    if not genuine:
        raise InputError(f"{where}: the request is not signed with the key that it names")
    name = common_name(request)
    if name is None:
        raise InputError(f"{where}: the request does not name one site")
    return printable(name, 64), p384(key, where)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePublicKey, days: int, latest: datetime | None = None
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    end = now + timedelta(days=days) - _BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(end if latest is None else min(end, latest))
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
