"""Messages as Flower records: one JSON body, at most one flat array of floats beside it, and a request's signature.

Weights travel as ONE array because every array costs at least two objects and a request per hop. A signature is over
the sha256 of the body's JSON text and of the array's raw little-endian floats.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from pydantic import ValidationError

from aiseeme_models.options import Options
from federation_configs.signatures import SIGNATURE
from federation_configs.transfer import Transfer, widened
from federation_configs.wire import NONCE

BODY, WEIGHTS, FLAT, JSON, SIGNED = "body", "weights", "flat", "json", "signature"
MAX_BODY = 262_144
_NPY_HEADER_LIMIT = 4096
_CODES = {"float32": "<f4", "float16": "<f2"}

Floats = NDArray[np.float32] | NDArray[np.float16]

Body = TypeVar("Body", bound=Options)


class MalformedRecord(ValueError):
    """A message that is not what was agreed; the text holds nothing of its content."""


class Enclosure:
    """Weights that travel beside one or many bodies: packed once and hashed once, however many sites are asked.

    Args:
        weights: ``(P,)`` float32 or float16, and travels as that.
    """

    def __init__(self, weights: Floats) -> None:
        self.record = ArrayRecord({FLAT: Array(np.ascontiguousarray(weights))})
        self.size = weights.size

    @cached_property
    def sha256(self) -> bytes:
        """Digest of the raw floats."""
        return hashlib.sha256(_floats(self.record)).digest()


def pack(
    body: Options,
    weights: Floats | Enclosure | None = None,
    sign: Callable[[bytes], str] | None = None,
) -> RecordDict:
    """A record of ``body`` and, where given, a ``(P,)`` array of floats.

    Args:
        body: becomes one JSON text.
        weights: the array, or one that is packed already and goes to several sites.
        sign: makes a signature of the digest (32 bytes) of both.
    """
    text = body.model_dump_json()
    beside = Enclosure(weights) if isinstance(weights, np.ndarray) else weights
    record: dict[str, str] = {JSON: text}
    if sign is not None:
        record[SIGNED] = sign(_digest(text, None if beside is None else beside.sha256))
    content = RecordDict({BODY: ConfigRecord({**record})})
    if beside is not None:
        content[WEIGHTS] = beside.record
    return content


def unpack_body(content: RecordDict, kind: type[Body], *, weights: bool = False, signed: bool = False) -> Body:
    """The body of a record that another party sent.

    Args:
        content: the record.
        kind: what its body should be.
        weights: whether an array was agreed beside the body; without, there may be none.
        signed: whether there may be a signature, as in requests; whether it is one, `signature_of` and its digest say.

    Raises:
        MalformedRecord: unknown or missing records or fields, wrong types, values outside their limits.
    """
    records = dict(content.items())
    if set(records) != ({BODY, WEIGHTS} if weights else {BODY}) or not isinstance(records.get(BODY), ConfigRecord):
        raise MalformedRecord("it has records other than those agreed")
    record = content.config_records[BODY]
    text = record.get(JSON)
    if set(record) - ({SIGNED} if signed else set()) != {JSON} or not isinstance(text, str) or len(text) > MAX_BODY:
        raise MalformedRecord("its body is not one JSON text of the agreed size")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        # Names of our own fields are safe to repeat; unknown names and all values came from the other party.
        fields = {str(e["loc"][0]) for e in error.errors() if e["loc"] and e["loc"][0] in kind.model_fields}
        extra = any(e["type"] == "extra_forbidden" for e in error.errors())
        what = f"fields {', '.join(sorted(fields))} are not valid" if fields else "it is not valid"
        raise MalformedRecord("it has a field that was not agreed" if extra and not fields else what) from None
    except ValueError:
        raise MalformedRecord("its values are not acceptable here") from None


def nonce_of(content: RecordDict) -> str | None:
    """The nonce in a request's stamp; None without one.

    It is read apart from the rest: also a request that makes no sense here is answered by its nonce.
    """
    record = content.get(BODY)
    text = record.get(JSON) if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str) or len(text) > MAX_BODY:
        return None
    try:
        nonce = json.loads(text)["stamp"]["nonce"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return nonce if isinstance(nonce, str) and re.fullmatch(NONCE, nonce) else None


def signature_of(content: RecordDict) -> tuple[str | None, bytes]:
    """The signature in a record whose body has been unpacked, None without, and the digest that it must be over.

    Raises:
        MalformedRecord: the signature is not text of the agreed form, or the array is not one flat array of floats.
    """
    record = content.config_records[BODY]
    text, signature = record[JSON], record.get(SIGNED)
    if signature is not None and (not isinstance(signature, str) or not re.fullmatch(SIGNATURE, signature)):
        raise MalformedRecord("its signature is not 128 hexadecimal digits")
    assert isinstance(text, str)  # `unpack_body` has seen to it
    beside = content.get(WEIGHTS)
    hashed = None if beside is None else hashlib.sha256(_floats(content.array_records.get(WEIGHTS))).digest()
    return signature, _digest(text, hashed)


def unpack_weights(content: RecordDict, size: int, transfer: Transfer = "float32") -> NDArray[np.float32]:
    """The ``(size,)`` array of a record that another party sent, as float32. Never unpickles.

    Args:
        content: the record.
        size: how many floats were agreed.
        transfer: what they were agreed to travel as.

    Raises:
        MalformedRecord: no such array, or another dtype, shape or length.
    """
    record = content.array_records.get(WEIGHTS)
    floats, code = _floats(record), _CODES[transfer]
    if record is None or record[FLAT].dtype != transfer or len(floats) != np.dtype(code).itemsize * size:
        raise MalformedRecord(f"its array is not {transfer} of shape ({size},)")
    return widened(np.frombuffer(floats, dtype=code))


def left_with(content: RecordDict) -> tuple[int, str]:
    """How many bytes a packed record lets out, and their sha256: its JSON text, then its array as NumPy's file format.

    A message's addresses and TLS come on top of them.
    """
    text = content.config_records[BODY][JSON]
    assert isinstance(text, str)
    digest, length = hashlib.sha256(text.encode()), len(text.encode())
    for record in content.array_records.values():
        for array in record.values():
            digest.update(array.data)
            length += len(array.data)
    return length, digest.hexdigest()


def _digest(text: str, weights_sha256: bytes | None) -> bytes:
    # 32 or 64 bytes: a body without an array cannot stand for one with.
    return hashlib.sha256(hashlib.sha256(text.encode()).digest() + (weights_sha256 or b"")).digest()


def _floats(record: ArrayRecord | None) -> memoryview:
    """The raw bytes of a record's one flat array of floats, not copied.

    Raises:
        MalformedRecord: it is no such record.
    """
    if record is None or set(record) != {FLAT}:
        raise MalformedRecord("it does not carry exactly one flat array")
    array = record[FLAT]
    shape = tuple(array.shape)
    if array.dtype not in _CODES or len(shape) != 1 or not isinstance(shape[0], int) or shape[0] < 1:
        raise MalformedRecord("its array is not floats of one dimension")
    code = _CODES[array.dtype]
    header = len(array.data) - np.dtype(code).itemsize * shape[0]
    if not 0 < header <= _NPY_HEADER_LIMIT or not _is_header(array.data[:header], code, shape[0]):
        raise MalformedRecord("its array cannot be read")
    return memoryview(array.data)[header:]


def _is_header(header: bytes, code: str, size: int) -> bool:
    """Whether ``header`` is the one that NumPy writes for a ``(size,)`` array of floats (format version 1.0).

    It is compared, not parsed: NumPy parses a header as Python, which another party must not feed.
    """
    expected = f"{{'descr': '{code}', 'fortran_order': False, 'shape': ({size},), }}".encode()
    said = int.from_bytes(header[8:10], "little")
    return header[:8] == b"\x93NUMPY\x01\x00" and said == len(header) - 10 and header[10:].strip(b" \n") == expected
