"""Which key signs, and which one is pinned: what the command line names, else the federation's that is here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.errors import InputError
from federation_configs.signatures import load_signing_key, public_hex, public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


@dataclass(frozen=True)
class PinnedKey:
    """A public key that was known before anything signed with it was read.

    Attributes:
        key: the key.
        named: whether a person named it, or its federation, for this very command: then nothing may be unsigned.
    """

    key: Ed25519PublicKey
    named: bool

    @property
    def hex(self) -> str:
        """64 hexadecimal digits."""
        return public_hex(self.key)


def pinned_key(given: str | None, signing_key: Path | None) -> PinnedKey | None:
    """The key that signatures are held against.

    Args:
        given: ``--key``, 64 hexadecimal digits.
        signing_key: ``--signing-key``, the coordinator's key file.

    Raises:
        InputError: it is no key, or two were named.
    """
    if given is not None and signing_key is not None:
        raise InputError("--key and --signing-key both name a key: give one of them")
    if given is not None:
        try:
            return PinnedKey(public_key(given.strip().lower()), named=True)
        except InputError as error:
            raise InputError(f"--key {given}: {error}") from None
    if signing_key is not None:
        return PinnedKey(load_signing_key(signing_key).public_key(), named=True)
    return None


def own_key(signing_key: Path | None) -> Ed25519PrivateKey | None:
    """The key that this coordinator signs with; none for a researcher who has none.

    Raises:
        InputError: the file is missing or holds no key.
    """
    return None if signing_key is None else load_signing_key(signing_key)
