"""That something is done by one process at a time: a lock that ends with who holds it, however that ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiseeme_models.errors import InputError


@contextmanager
def holding(lock: Path, busy: str) -> Iterator[None]:
    """Hold ``lock``, a file in a folder that is there, for the block.

    Raises:
        InputError: another process holds it; the text is ``busy``.
    """
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(busy) from None
        yield


def is_held(lock: Path) -> bool:
    """Whether a process holds ``lock``; those who look are not in each other's way."""
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
