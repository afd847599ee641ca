"""Messages as Flower records: one JSON body, and at most one flat float32 array beside it.

Weights travel as ONE array because every array costs at least two objects and a request per hop.
"""

from __future__ import annotations

from io import BytesIO
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


def unpack_body(content: RecordDict, kind: type[Body]) -> Body:
    """The body of a record that another party sent.

    Raises:
        MalformedRecord: unknown or missing records or fields, wrong types, values outside their limits.
    """
    records = dict(content.items())
    if not set(records) <= {BODY, WEIGHTS} or not isinstance(records.get(BODY), ConfigRecord):
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
    if len(array.data) > 4 * size + _NPY_HEADER_LIMIT:
        raise MalformedRecord("its array has more bytes than its shape says")
    try:
        stream = BytesIO(array.data)
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read_header[version](stream, max_header_size=_NPY_HEADER_LIMIT)
        if shape != (size,) or fortran or dtype != np.dtype("<f4"):
            raise MalformedRecord(f"its array is not float32 of shape ({size},)")
        return np.frombuffer(array.data, dtype="<f4", count=size, offset=stream.tell())
    except MalformedRecord:
        raise
    except (ValueError, KeyError, TypeError, SyntaxError):
        raise MalformedRecord("its array cannot be read") from None
