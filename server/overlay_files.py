"""The PNG files of overlays: named by the place and stem of their input, never by what is in it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.atomic_files import replacing
from aiseeme_models.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LONGEST_STEM = 60
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_FRAME = re.compile(r"-[0-9]+\.png\Z")


class OverlayFiles:
    """The folder that overlays are written to; it and its files are made for their owner alone.

    Args:
        folder: made when the first one is written.
        inputs: what is predicted.
        force: replace overlays that an earlier command left.

    Raises:
        InputError: it is no folder, or an overlay that may be written is there already.
    """

    def __init__(self, folder: Path, inputs: Sequence[Path], *, force: bool) -> None:
        self.folder = folder
        self._stems = [f"{place:03d}-{_safe(path.stem)}" for place, path in enumerate(inputs, start=1)]
        if not folder.exists():
            return
        if not folder.is_dir():
            raise InputError(f"--overlay {folder}: there is a file of that name; name a folder")
        stems = frozenset(self._stems)
        there = [path for path in sorted(folder.iterdir()) if _stem_of(path.name) in stems]
        if there and not force:
            raise InputError(f"{there[0]}: it is there already; --force replaces it, --overlay names another folder")
        originals = {path.resolve() for path in inputs}
        if mixed := [path for path in there if path.resolve() in originals]:
            raise InputError(f"{mixed[0]}: an overlay would take the place of this input; name another folder")

    def write(self, place: int, frame: int, picture: NDArray[np.uint8]) -> str:
        """Write an overlay ``(H, W, 3)`` RGB; gives its name in the folder.

        Args:
            place: of the input among the inputs, from 0.
            frame: which image of the input.
            picture: what it shows.

        Raises:
            OSError: it cannot be written.
        """
        from PIL import Image

        self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        name = f"{self._stems[place]}-{frame}.png"
        with replacing(self.folder / name) as temporary:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "wb") as file:
                Image.fromarray(picture).save(file, format="PNG")
        return name

    def remove(self, name: str) -> None:
        """Take back an overlay that was written: its input turned out to be damaged."""
        (self.folder / name).unlink(missing_ok=True)


def _safe(stem: str) -> str:
    return _UNSAFE.sub("_", stem)[:_LONGEST_STEM]


def _stem_of(name: str) -> str:
    """What stands before the frame in an overlay's name; of any other file the whole name."""
    return _FRAME.sub("", name)
