"""Messages as Flower records: one JSON body, and at most one flat float32 array beside it.

Weights travel as ONE array because every array costs at least two objects and a request per hop.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from pydantic import ValidationError

from aiseeme_models.options import Options

BODY, WEIGHTS, FLAT, JSON = "body", "weights", "flat", "json"
MAX_BODY = 262_144
_NPY_HEADER_LIMIT = 4096

Body = TypeVar("Body", bound=Options)


class MalformedRecord(ValueError):
    """A message that is not what was agreed; the text holds nothing of its content."""


def pack(body: Options, weights: NDArray[np.float32] | None = None) -> RecordDict:
    """A record of ``body`` and, where given, a ``(P,)`` float32 array."""
    content = RecordDict({BODY: ConfigRecord({JSON: body.model_dump_json()})})
    if weights is not None:
        content[WEIGHTS] = ArrayRecord({FLAT: Array(np.ascontiguousarray(weights, dtype=np.float32))})
    return content


def unpack_body(content: RecordDict, kind: type[Body], *, weights: bool = False) -> Body:
    """The body of a record that another party sent.

    Args:
        content: the record.
        kind: what its body should be.
        weights: whether an array was agreed beside the body; without, there may be none.

    Raises:
        MalformedRecord: unknown or missing records or fields, wrong types, values outside their limits.
    """
    records = dict(content.items())
    if set(records) != ({BODY, WEIGHTS} if weights else {BODY}) or not isinstance(records.get(BODY), ConfigRecord):
        raise MalformedRecord("it has records other than those agreed")
    record = content.config_records[BODY]
    text = record.get(JSON)
    if set(record) != {JSON} or not isinstance(text, str) or len(text) > MAX_BODY:
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


def unpack_weights(content: RecordDict, size: int) -> NDArray[np.float32]:
    """The ``(size,)`` float32 array of a record that another party sent. Never unpickles.

    Raises:
        MalformedRecord: no such array, or another dtype, shape or length.
    """
    record = content.array_records.get(WEIGHTS)
    if record is None or set(record) != {FLAT}:
        raise MalformedRecord("it does not carry exactly one flat array")
    array = record[FLAT]
    if array.dtype != "float32" or tuple(array.shape) != (size,):
        raise MalformedRecord(f"its array is not float32 of shape ({size},)")
    header = len(array.data) - 4 * size
    if not 0 < header <= _NPY_HEADER_LIMIT or not _is_header(array.data[:header], size):
        raise MalformedRecord("its array cannot be read")
    return np.frombuffer(array.data, dtype="<f4", count=size, offset=header)


def _is_header(header: bytes, size: int) -> bool:
    """Whether ``header`` is the one that NumPy writes for a ``(size,)`` float32 array (format version 1.0).

    It is compared, not parsed: NumPy parses a header as Python, which another party must not feed.
    """
    expected = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size},), }}".encode()
    said = int.from_bytes(header[8:10], "little")
    return header[:8] == b"\x93NUMPY\x01\x00" and said == len(header) - 10 and header[10:].strip(b" \n") == expected
