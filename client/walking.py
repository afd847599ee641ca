"""Which files a hospital's folder holds."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from aiseeme_models.images.labels import LABELS_FILE
from aiseeme_models.images.rejection import RejectReason

IMAGES_FOLDER = "images"
MASKS_FOLDER = "masks"
_MASK = re.compile(r"_(segmentation|superpixels)\.[A-Za-z]+$")

Stamp = tuple[int, int, int, int]
"""Size, modification and change time in ns, and inode: what tells that a file is as it was."""


@dataclass(frozen=True)
class FoundFile:
    """A file below a folder.

    Attributes:
        name: its path below the folder, with ``/``.
        stamp: see `Stamp`.
        reason: why it is not even opened, or None.
    """

    name: str
    stamp: Stamp
    reason: RejectReason | None = None


def image_root(folder: Path) -> Path:
    """Where the images of a folder lie: its ``images`` where there is one, else the folder."""
    return folder / IMAGES_FOLDER if (folder / IMAGES_FOLDER).is_dir() else folder


def walk(root: Path, *own: Path) -> tuple[list[FoundFile], list[str]]:
    """Every file to look at, by name so that every machine sees one order.

    Left out are folders called ``masks``, files that end in ``_segmentation`` or ``_superpixels`` (as ISIC calls its
    masks), hidden files and folders, labels.csv, and the site's ``own`` folders where they lie below. Links to folders
    are not followed. Second the folders that could not be listed: nobody knows how many images are in them.
    """
    skipped = {_below(root, folder) for folder in own} - {None}
    found: list[FoundFile] = []
    unreadable: list[str] = []
    folders = [""]
    while folders:
        below = folders.pop()
        try:
            with os.scandir(root / below) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{below}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name != MASKS_FOLDER and name not in skipped:
                            folders.append(f"{name}/")
                    elif entry.name != LABELS_FILE and not _MASK.search(entry.name) and not _links_to_folder(entry):
                        found.append(_look(name, entry))
        except OSError:
            unreadable.append(below)
    return sorted(found, key=lambda file: file.name), sorted(unreadable)


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a loop, or a target that may not be looked at: `_look` says that it is unreadable
        return False


def _below(root: Path, home: Path) -> str | None:
    if not home.resolve().is_relative_to(root.resolve()):
        return None
    return home.resolve().relative_to(root.resolve()).as_posix()


def _look(name: str, entry: os.DirEntry[str]) -> FoundFile:
    try:
        status = entry.stat()
    except OSError:
        return FoundFile(name, (0, 0, 0, 0), RejectReason.UNREADABLE)
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    # A pipe or a device would be waited on for ever.
    return FoundFile(name, stamp, None if stat.S_ISREG(status.st_mode) else RejectReason.NOT_AN_IMAGE)
