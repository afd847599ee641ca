"""Reading weights that may come from anywhere: safetensors or nothing. A pickle is recognised and never opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiseeme_models.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_ZIP, _PICKLE, _GZIP = b"PK\x03\x04", b"\x80", b"\x1f\x8b"
_KINDS = {
    _ZIP: "a zip archive, as torch.save writes it with a pickle inside",
    _PICKLE: "a Python pickle",
    _GZIP: "a gzip archive",
}


def tensors_in(payload: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Args:
        payload: the file's bytes, which were hashed: they are not read from the disk a second time.
        name: what the file is called, for errors.

    Raises:
        InputError: it is something else, whatever its name says. A pickle runs code of its author's when it is
            loaded, so none is: nothing of the file is executed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    # A safetensors file starts with the length of its header: 8 bytes of which the last ones are zero, then "{".
    if payload[8:9] != b"{":
        for start, kind in _KINDS.items():
            if payload.startswith(start):
                raise InputError(
                    f"{name}: this is {kind}, which may run code when it is loaded; it was not opened. Weights are "
                    "safetensors files here"
                )
    try:
        tensors: dict[str, Tensor] = load(payload)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{name}: no safetensors file: {error}") from None
    return tensors


def vector_in(payload: bytes, name: str, tensor: str) -> NDArray[np.float32]:
    """The one vector of a safetensors file; empty where none in it is called ``tensor``.

    Raises:
        InputError: see `tensors_in`.
    """
    import numpy as np

    tensors = tensors_in(payload, name)
    vector: NDArray[np.float32] = tensors[tensor].numpy() if tensor in tensors else np.zeros(0, dtype=np.float32)
    return vector
