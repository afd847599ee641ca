"""Authenticated encryption of what lies on a site's disk: AES-256-GCM, a fresh nonce before each ciphertext."""

from __future__ import annotations

import os

_NONCE_BYTES = 12


class WrongKey(Exception):
    """Sealed with another key or for another purpose, or changed since."""


def seal(key: bytes, plain: bytes | memoryview, purpose: bytes = b"") -> bytes:
    """``plain`` encrypted and authenticated.

    Args:
        key: 32 bytes.
        plain: what to hide.
        purpose: authenticated with it, so that sealed things cannot be exchanged for each other.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, purpose)


def unseal(key: bytes, sealed: bytes, purpose: bytes = b"") -> bytes:
    """What was given to `seal` with the same key and purpose.

    Raises:
        WrongKey: it was not, or it was changed.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    view = memoryview(sealed)
    try:
        return AESGCM(key).decrypt(view[:_NONCE_BYTES], view[_NONCE_BYTES:], purpose)
    except InvalidTag:
        raise WrongKey from None
