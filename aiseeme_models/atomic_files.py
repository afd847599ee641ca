"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"
_NUMBER = re.compile(r"\(os error (\d+)\)")

Watch = Callable[[str], None]
"""Is told the name of each step just before it is taken."""


def unwatched(step: str) -> None:
    """Takes no notice of a step."""


@contextmanager
def replacing(path: Path, watch: Watch = unwatched) -> Iterator[Path]:
    """Write ``path`` anew: the caller fills the temporary file that this gives, in the same folder.

    On leaving, the temporary file is flushed to the disk, takes the place of ``path``, and the folder is flushed too.
    When anything fails, ``path`` is as it was before and the temporary file is gone.

    Raises:
        OSError: as the system reports it, for instance when the disk is full.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        watch(f"write {path.suffix}")
        yield temporary
        watch(f"flush {path.suffix}")
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        watch(f"rename {path.suffix}")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
    watch(f"renamed {path.suffix}")


def flush_folder(folder: Path) -> None:
    """Make the names in ``folder`` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a whole file, or leave what was there.

    Args:
        path: the file.
        content: its bytes.
        private: only its owner may read it, from its first byte on.
    """
    with replacing(path) as temporary:
        if private:
            temporary.unlink(missing_ok=True)
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
                opened.write(content)
        else:
            temporary.write_bytes(content)


def as_system_error(error: Exception) -> OSError:
    """The system's error, such as a full disk, that a library of another language (safetensors) tells in words only."""
    match = _NUMBER.search(str(error))
    return OSError(str(error)) if match is None else OSError(int(match[1]), os.strerror(int(match[1])))
