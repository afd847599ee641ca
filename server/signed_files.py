"""A manifest and the coordinator's signature of it: ``round-0007.json`` is vouched for by ``round-0007.sig`` beside it.

The signature is over the SHA-256 of the manifest's bytes. Its file is one line, ``ed25519 KEY SIGNATURE`` in
hexadecimal: the key is named so that a reader who has pinned none can say which one it was. A manifest without such a
file is a manifest that nobody signed, as a researcher's simulations leave them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from aiseeme_models.atomic_files import Watch, replacing, unwatched
from aiseeme_models.errors import InputError
from aiseeme_models.options import Options
from federation_configs.signatures import is_signed, public_hex, public_key, sign

CHECKPOINT, MODEL, EXPORT = "manifest", "model-manifest", "export-manifest"
"""What a signature is for: none of them can be shown as another."""

SUFFIX = ".sig"
LARGEST_MANIFEST = 1_000_000

Manifest = TypeVar("Manifest", bound=Options)

_LINE = re.compile(r"ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})\n?")


@dataclass(frozen=True)
class Signature:
    """What a signature's file says.

    Attributes:
        key: the public key that is said to have made it, 64 hexadecimal digits.
        value: the signature, 128 hexadecimal digits.
    """

    key: str
    value: str

    def vouches(self, content: bytes, purpose: str) -> bool:
        """Whether it is a signature of ``content`` for ``purpose`` by the key that it names."""
        return is_signed(public_key(self.key), purpose, hashlib.sha256(content).digest(), self.value)


def signature_file(manifest: Path) -> Path:
    """Where the signature of a manifest is."""
    return manifest.with_suffix(SUFFIX)


def write_signature(
    manifest: Path, content: bytes, purpose: str, key: Ed25519PrivateKey, watch: Watch = unwatched
) -> None:
    """Sign what will be the bytes of ``manifest``.

    Written before the manifest, whose coming into place is what counts: a process that is killed between the two
    leaves a signature of nothing, which the next one replaces.
    """
    line = f"ed25519 {public_hex(key.public_key())} {sign(key, purpose, hashlib.sha256(content).digest())}\n"
    with replacing(signature_file(manifest), watch) as temporary:
        temporary.write_text(line, encoding="ascii")


def write_signed(manifest: Path, content: bytes, purpose: str, key: Ed25519PrivateKey | None) -> None:
    """Write a manifest, signed where there is a key; a signature that no longer belongs to it goes first.

    Raises:
        OSError: it could not be written.
    """
    if key is None:
        signature_file(manifest).unlink(missing_ok=True)
    else:
        write_signature(manifest, content, purpose, key)
    with replacing(manifest) as temporary:
        temporary.write_bytes(content)


def read_signature(manifest: Path) -> Signature | None:
    """The signature beside a manifest; none where there is none.

    Raises:
        InputError: there is a file that is no signature.
    """
    file = signature_file(manifest)
    try:
        with file.open("rb") as opened:
            raw = opened.read(300)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{file.name} cannot be read: {error.strerror}") from None
    found = _LINE.fullmatch(raw.decode("latin-1"))
    if not found:
        raise InputError(f"{file.name} is no signature: one line `ed25519 KEY SIGNATURE` was expected")
    return Signature(found[1], found[2])


def distrust(manifest: Path, content: bytes, purpose: str, key: Ed25519PublicKey) -> str | None:
    """Why ``content``, read from ``manifest``, is not vouched for by ``key``; None if it is."""
    try:
        signature = read_signature(manifest)
    except InputError as error:
        return str(error)
    if signature is None:
        return f"{manifest.name} is not signed"
    if signature.key != public_hex(key):
        return f"{manifest.name} is signed by another key ({signature.key[:16]}…), not by {public_hex(key)[:16]}…"
    if not signature.vouches(content, purpose):
        return f"{manifest.name} is not what its signature was made for: one of the two was changed"
    return None


def is_vouched_for(
    manifest: Path, content: bytes, purpose: str, key: Ed25519PublicKey | None, *, demanded: bool
) -> bool:
    """Whether a manifest is signed, as it should be before what it names is used.

    Args:
        manifest: where it is.
        content: its bytes.
        purpose: what its signature must be for.
        key: whose signature alone counts; None: nobody knows one, but a signature must still belong to the bytes.
        demanded: whether that key must have signed; else a manifest may also be one that nobody signed.

    Raises:
        InputError: its signature was made for something else, or not by ``key``.
    """
    signature = read_signature(manifest)
    if signature is not None and not signature.vouches(content, purpose):
        raise InputError(f"{manifest}: it is not what its signature was made for: one of the two was changed")
    if key is None or (signature is None and not demanded):
        return signature is not None
    doubt = distrust(manifest, content, purpose, key)
    if doubt is not None:
        raise InputError(f"{manifest.parent}: {doubt}; only what this key has signed is trusted here")
    return True


def read_manifest_as(path: Path, kind: type[Manifest], what: str) -> tuple[Manifest, bytes]:
    """A manifest that may come from anywhere, and its bytes.

    Args:
        path: the file.
        kind: what it must be.
        what: that in words, as "a model's manifest".

    Raises:
        InputError: it is missing or something else; the text says where it is wrong.
    """
    raw = read_manifest(path)
    try:
        return kind.model_validate_json(raw), raw
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise InputError(f"{path}: not {what}: {where}: {fault['msg']}") from None


def read_manifest(path: Path) -> bytes:
    """The bytes of a manifest that may come from anywhere.

    Raises:
        InputError: it is not there, not readable, or far larger than any manifest.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_MANIFEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > LARGEST_MANIFEST:
        raise InputError(f"{path}: larger than {LARGEST_MANIFEST:,} bytes; no manifest is")
    return raw
