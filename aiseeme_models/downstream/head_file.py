"""The file of a hospital's own last layer: what of a classifier with personal heads the federation never saw.

A safetensors file with the layer as one vector, in the order in which it would travel, and the run and round that it is
of. It names neither the hospital nor its classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError
from aiseeme_models.options import Options

_TENSOR, _LARGEST = "own/head", 400_000_000


class _Origin(Options):
    run: str = Field(max_length=200)
    round: str = Field(pattern=r"^\d{1,9}$")


@dataclass(frozen=True)
class OwnHead:
    """One site's last layer.

    Attributes:
        run: id of the run that it was trained in.
        round: after which of its rounds.
        values: ``(H,)`` float32.
    """

    run: str
    round: int
    values: NDArray[np.float32]


def write_own_head(path: Path, head: OwnHead) -> None:
    """Write ``head``, readable by its owner only: it was learnt from a hospital's own patients.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.numpy import save

    payload = save({_TENSOR: head.values}, metadata={"run": head.run, "round": str(head.round)})
    write_atomically(path, payload, private=True)


def read_own_head(path: Path) -> OwnHead:
    """What `write_own_head` wrote.

    Raises:
        InputError: there is no such file, or it is something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such file; `aiseeme-site head RUN --out FILE` writes it at its hospital")
    wrong = InputError(f"{path}: not what `aiseeme-site head` writes")
    try:
        with path.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
    except OSError as error:
        raise InputError(f"{path}: it cannot be read: {error.strerror}") from None
    if size > _LARGEST:
        raise wrong
    try:
        with safe_open(path, "np") as tensors:
            origin = _Origin.model_validate(tensors.metadata() or {})
            values = tensors.get_tensor(_TENSOR) if list(tensors.keys()) == [_TENSOR] else None
    except (SafetensorError, ValidationError, OSError, TypeError):
        raise wrong from None
    if values is None or values.ndim != 1 or values.dtype != np.float32 or not np.isfinite(values).all():
        raise wrong
    return OwnHead(origin.run, int(origin.round), values)
