"""What is in a hospital's image folder: one row per usable image, and a reason for every other file."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aiseeme_models.errors import InputError
from aiseeme_models.images.cache import ImageCache, content_hash
from aiseeme_models.images.labels import LABELS_FILE, Labels, read_labels
from aiseeme_models.images.rejection import ImageRejected, RejectReason

IMAGES_FOLDER = "images"
MASKS_FOLDER = "masks"


@dataclass(frozen=True)
class CatalogueRow:
    """A usable image.

    Attributes:
        file: path relative to where the images lie, with ``/``.
        content: sha256 of the file, its key in the cache.
        group: what is never divided between splits or sites: patient, else lesion, else the file itself. The
            split follows from it and the configuration's [holdout].
        label: its class, for evaluation only, or None.
        columns: the other columns of its line in labels.csv.
    """

    file: str
    content: str
    group: str
    label: str | None
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Rejection:
    """A file that is not used, or a folder (``name/``) that cannot be listed.

    Attributes:
        file: its name below the catalogue's root.
        reason: why.
        detail: the same as a fixed sentence that quotes nothing from the file.
    """

    file: str
    reason: RejectReason
    detail: str


@dataclass(frozen=True)
class Catalogue:
    """A scanned folder.

    Attributes:
        folder: what was scanned.
        root: where the images lie, ``folder`` or its ``images``; rows name files below it.
        rows: the usable images.
        rejected: the other files.
        missing: files that labels.csv names and that are not there.
    """

    folder: Path
    root: Path
    rows: tuple[CatalogueRow, ...]
    rejected: tuple[Rejection, ...]
    missing: tuple[str, ...]

    def summary(self) -> dict[str, int | dict[str, int]]:
        """Counts that may be shown anywhere: images, groups, labelled images, rejected files per reason, missing."""
        return {
            "images": len(self.rows),
            "groups": len({row.group for row in self.rows}),
            "labelled": sum(row.label is not None for row in self.rows),
            "rejected": dict(sorted(Counter(item.reason.value for item in self.rejected).items())),
            "missing": len(self.missing),
        }


def scan(folder: Path, cache: ImageCache, on_image: Callable[[], None] | None = None) -> Catalogue:
    """Catalogue the images of ``folder`` and make sure that they are in ``cache``.

    Where ``<folder>/images`` exists only that is read; else the folder and everything below it, without folders
    called ``masks``, hidden files and labels.csv. Links to folders are not followed. Of several files with
    identical content the first by name counts.

    Args:
        folder: the hospital's folder, with an optional labels.csv at its top.
        cache: takes the decoded images.
        on_image: called once per file with new content, for a progress bar.

    Raises:
        InputError: no such folder, not one usable image in it, or a mistake in labels.csv.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    labels = read_labels(folder)
    root = folder / IMAGES_FOLDER if (folder / IMAGES_FOLDER).is_dir() else folder
    contents: dict[str, str] = {}
    paths: dict[str, Path] = {}
    reasons: dict[str, RejectReason] = {}
    files, unreadable = _files(root)
    reasons |= dict.fromkeys(unreadable, RejectReason.UNREADABLE)
    for file, path in files:
        try:
            content = content_hash(_regular(path))
        except ImageRejected as error:
            reasons[file] = error.reason
            continue
        if content in paths:
            reasons[file] = RejectReason.DUPLICATE
        else:
            contents[file] = content
            paths[content] = path
    bad = cache.add(paths, on_image)
    reasons |= {file: bad[content] for file, content in contents.items() if content in bad}
    rows = tuple(_row(file, content, labels) for file, content in contents.items() if content not in bad)
    rejected = tuple(Rejection(file, reason, reason.sentence) for file, reason in sorted(reasons.items()))
    catalogue = Catalogue(folder, root, rows, rejected, _missing(labels, contents.keys() | reasons.keys()))
    if not rows:
        counts = ", ".join(f"{count} {reason}" for reason, count in Counter(reasons.values()).most_common())
        found = f"none of its {len(reasons)} files can be used ({counts})" if reasons else "it is empty"
        raise InputError(f"{root}: no usable image: {found}; PNG, JPEG, TIFF and single-frame DICOM are read")
    return catalogue


def _files(root: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """Relative name and path of every file to look at, by name so that every machine sees one order.

    Second the folders that could not be listed: nobody knows how many images are in them.
    """
    found: list[tuple[str, Path]] = []
    unreadable: list[str] = []
    for parent, folders, files in os.walk(
        root, onerror=lambda error: unreadable.append(f"{_name(Path(error.filename), root)}/")
    ):
        folders[:] = [name for name in folders if name != MASKS_FOLDER and not name.startswith(".")]
        for name in files:
            if name == LABELS_FILE or name.startswith("."):
                continue
            path = Path(parent) / name
            found.append((_name(path, root), path))
    return sorted(found), unreadable


def _name(path: Path, root: Path) -> str:
    """``path`` below ``root``; a name that is no valid UTF-8 must not break a log or a JSON file later."""
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()


def _regular(path: Path) -> Path:
    """``path``, unless it is a pipe or a device, which would be waited on for ever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ImageRejected(RejectReason.UNREADABLE) from error
    if not stat.S_ISREG(mode):
        raise ImageRejected(RejectReason.NOT_AN_IMAGE)
    return path


def _row(file: str, content: str, labels: Labels | None) -> CatalogueRow:
    line = None
    if labels is not None:
        line = labels.rows.get(file) or labels.rows.get(f"{IMAGES_FOLDER}/{file}")
    if line is None:
        return CatalogueRow(file, content, file, None, {})
    group = file if line.group == line.file else line.group
    return CatalogueRow(file, content, group, line.label, line.columns)


def _missing(labels: Labels | None, there: set[str]) -> tuple[str, ...]:
    if labels is None:
        return ()
    return tuple(sorted(f for f in labels.rows if f not in there and f.removeprefix(f"{IMAGES_FOLDER}/") not in there))
