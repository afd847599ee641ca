"""The site's secret: pseudonyms of patients, encryption of file names and of the cache. It never leaves the site."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from functools import cached_property
from pathlib import Path

from aiseeme_models.atomic_files import flush_folder
from aiseeme_models.errors import InputError
from aiseeme_models.sealing import WrongKey, seal, unseal

_BYTES = 32
_PSEUDONYM_DIGITS = 32


class SiteKey:
    """Keys for different purposes, all derived from one secret (HKDF-SHA256).

    Args:
        secret: 32 random bytes.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _BYTES:
            raise ValueError(f"a site's secret has {_BYTES} bytes")
        self._secret = secret

    @classmethod
    def load_or_create(cls, path: Path) -> SiteKey:
        """The key in ``path``, a file of 64 hex digits that only its owner may read; made if it is not there.

        Raises:
            InputError: it holds something else.
        """
        if not path.exists():
            cls._create(path)
        try:
            return cls(bytes.fromhex(path.read_text(encoding="ascii").strip()))
        except ValueError:
            raise InputError(
                f"{path}: not a site's key (64 hexadecimal digits): put the right file back; without it the catalogue "
                "cannot be read, and a new key needs a new scan"
            ) from None

    @staticmethod
    def _create(path: Path) -> None:
        """Written aside and linked into place: whole or not at all, and the first of two processes wins."""
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(_BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
            flush_folder(path.parent)
        finally:
            draft.unlink(missing_ok=True)

    def pseudonym(self, kind: str, name: str) -> str:
        """128 bits of HMAC-SHA256 of an identifier, in hex: equal names get equal pseudonyms, and nobody without the
        key can tell or test a name from one.

        Args:
            kind: what ``name`` names (patient, study, path, …); names of different kinds never meet.
            name: as the file says it.
        """
        text = f"{kind}\x1f{name}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._pseudonym_key, text, "sha256").hex()[:_PSEUDONYM_DIGITS]

    def seal(self, text: str) -> bytes:
        """``text`` encrypted and authenticated."""
        return seal(self._names_key, text.encode("utf-8", "surrogatepass"))

    def unseal(self, sealed: bytes) -> str:
        """What was given to `seal`.

        Raises:
            InputError: sealed with another key, or changed.
        """
        try:
            return unseal(self._names_key, sealed).decode("utf-8", "surrogatepass")
        except WrongKey:
            raise InputError("the catalogue was written with another site key: put the right key back") from None

    @cached_property
    def cache_key(self) -> bytes:
        """32 bytes for the cache."""
        return self._derived("cache")

    @cached_property
    def _pseudonym_key(self) -> bytes:
        return self._derived("pseudonyms")

    @cached_property
    def _names_key(self) -> bytes:
        return self._derived("names")

    def _derived(self, purpose: str) -> bytes:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(SHA256(), _BYTES, salt=None, info=f"aiseeme site {purpose}".encode()).derive(self._secret)
