"""Which key signs and which one is pinned: the one that the command line names, else that of the federation here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.errors import InputError
from federation_configs.signatures import load_signing_key, public_key
from server.federation_home import FederationHome, federation_home

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


@dataclass(frozen=True)
class OwnKey:
    """The key that a coordinator signs with.

    Attributes:
        key: the key.
        named: whether a person named its federation for this very command: then what it did not sign is refused.
    """

    key: Ed25519PrivateKey
    named: bool


def pinned_key(given: str | None, federation: Path | None, runs: Path) -> PinnedKey | None:
    """The key that signatures are held against; none where no federation is known here.

    Args:
        given: ``--key``, 64 hexadecimal digits; in groups, as `aiseeme init` shows them, or not.
        federation: ``--federation``, a federation's home.
        runs: the folder of runs, which may be a federation's.

    Raises:
        InputError: it is no key or no federation's home, or two were named.
    """
    if given is not None and federation is not None:
        raise InputError("--key and --federation both name a key: give one of them")
    if given is not None:
        try:
            return PinnedKey(public_key("".join(given.split()).lower()), named=True)
        except InputError as error:
            raise InputError(f"--key {given}: {error}") from None
    own = own_key(federation, runs)
    return None if own is None else PinnedKey(own.key.public_key(), own.named)


def own_key(federation: Path | None, runs: Path) -> OwnKey | None:
    """The key that this coordinator signs with; none for a researcher who has no federation.

    Args:
        federation: ``--federation``, a federation's home.
        runs: the folder of runs, which may be a federation's.

    Raises:
        InputError: there is no federation at ``--federation``, or its key is missing or none.
    """
    if federation is not None:
        home = FederationHome(federation)
        _ = home.config  # says what is missing where this is no federation's home
        return OwnKey(load_signing_key(home.signing_key), named=True)
    for home in (FederationHome.of_runs(runs), federation_home(None)):
        if home.settings_file.is_file():
            return OwnKey(load_signing_key(home.signing_key), named=False)
    return None
