"""The key of a site: one EC P-384 key that is both its TLS key at the gateway and its Flower node key."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from aiseeme_models.errors import InputError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

CURVE = "secp384r1"


def make_site_key() -> EllipticCurvePrivateKey:
    """A new key."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def private_pem(key: EllipticCurvePrivateKey) -> str:
    """PEM (PKCS8, not encrypted), as TLS libraries read it."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def openssh_pem(key: EllipticCurvePrivateKey) -> str:
    """OpenSSH's format, the only one in which ``flower-supernode`` reads its node key."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


def public_pem(key: EllipticCurvePublicKey) -> str:
    """PEM (SubjectPublicKeyInfo), byte for byte what a Flower node sends as its key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def load_private(pem: str, where: str) -> EllipticCurvePrivateKey:
    """Read what `private_pem` made.

    Args:
        pem: the text.
        where: where it was found, for errors.

    Raises:
        InputError: it is no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(f"{where}: this is no private key in PEM without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != CURVE:
        raise InputError(f"{where}: a site's key is an EC key on P-384")
    return key


def p384(key: PublicKeyTypes, where: str) -> EllipticCurvePublicKey:
    """``key``, if it is an EC key on P-384.

    Raises:
        InputError: it is another kind of key.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != CURVE:
        raise InputError(f"{where}: a site's key is an EC key on P-384")
    return key


def load_certificate(pem: str, where: str) -> x509.Certificate:
    """Read one certificate in PEM.

    Raises:
        InputError: there is none, or more than one.
    """
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise InputError(f"{where}: this is no certificate in PEM") from None
    if len(found) != 1:
        raise InputError(f"{where}: {len(found)} certificates; one is expected")
    return found[0]


def serial_text(serial: int) -> str:
    """A certificate's serial number as nginx writes ``$ssl_client_serial``: whole bytes in upper-case hexadecimal."""
    return serial.to_bytes(max(1, (serial.bit_length() + 7) // 8), "big").hex().upper()


def key_fingerprint(public_key_pem: str) -> str:
    """SHA-256 of a public key, to be read out over the telephone."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    key = load_pem_public_key(public_key_pem.encode())
    return spoken(hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest())


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, to be read out over the telephone; ``openssl x509 -fingerprint`` shows the same."""
    from cryptography.hazmat.primitives import hashes

    return spoken(certificate.fingerprint(hashes.SHA256()).hex())


def spoken(digits: str) -> str:
    """Hexadecimal digits in groups of four."""
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))
