"""Ed25519 signatures over digests, each bound to what it is for, so that one cannot be used as another."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from aiseeme_models.errors import InputError

PUBLIC_KEY = r"^[0-9a-f]{64}$"
SIGNATURE = r"^[0-9a-f]{128}$"


def sign(key: Ed25519PrivateKey, purpose: str, digest: bytes) -> str:
    """A signature over ``digest`` (32 bytes) for ``purpose``, as 128 hexadecimal digits."""
    return key.sign(_message(purpose, digest)).hex()


def is_signed(key: Ed25519PublicKey, purpose: str, digest: bytes, signature: str) -> bool:
    """Whether ``signature`` is one by ``key`` over ``digest`` for ``purpose``; a malformed one is not."""
    try:
        key.verify(bytes.fromhex(signature), _message(purpose, digest))
    except (InvalidSignature, ValueError):
        return False
    return True


def public_hex(key: Ed25519PublicKey) -> str:
    """A public key as 64 hexadecimal digits."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def public_key(text: str) -> Ed25519PublicKey:
    """The public key that `public_hex` wrote.

    Raises:
        InputError: it is not 64 hexadecimal digits.
    """
    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    except ValueError:
        raise InputError("a signing key is 64 hexadecimal digits") from None


def create_signing_key(path: Path) -> Ed25519PrivateKey:
    """Make a key and write it as PEM to ``path``, which must not exist, readable by its owner only.

    Raises:
        InputError: there is such a file already.
    """
    key = Ed25519PrivateKey.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InputError(f"{path}: there is a signing key already; it is not replaced") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.flush()
        os.fsync(file.fileno())
    return key


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read what `create_signing_key` wrote.

    Raises:
        InputError: there is no such file, or it holds no Ed25519 key.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise InputError(f"{path}: no signing key here; `aiseeme init` makes one") from None
    except ValueError:
        raise InputError(f"{path}: this is no private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: this is no Ed25519 key")
    return key


def _message(purpose: str, digest: bytes) -> bytes:
    if len(digest) != 32:
        raise ValueError("a digest of 32 bytes is signed")
    return b"aiseeme:" + purpose.encode() + b":" + digest
