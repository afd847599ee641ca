"""What a scan found: the images that may be used, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiseeme_models.images.rejection import RejectReason


@dataclass(frozen=True)
class CatalogueRow:
    """An accepted image.

    Attributes:
        file: path relative to where the images lie, with ``/``.
        frame: its number in the file.
        content: its key in the cache, which follows from the content of the file and the frame.
        group: pseudonym of what is never divided between splits, folds or sites: patient, else lesion, else series.
        point: split point of the group; the split follows from it and the configuration's [holdout].
        label: its class, for evaluation only, or None.
        columns: the other columns of its line in labels.csv.
    """

    file: str
    frame: int
    content: str
    group: str
    point: int
    label: str | None
    columns: Mapping[str, str]

    def told(self, column: str) -> str | None:
        """What a column of labels.csv says of it, ``label`` too; None: nothing."""
        return self.label if column == "label" else self.columns.get(column)


@dataclass(frozen=True)
class LeftOut:
    """A file or image that is not used, or a folder (``name/``) that cannot be listed.

    Attributes:
        file: its name below the scan's root.
        frame: the image in it, or None: the whole file.
        reason: why.
    """

    file: str
    frame: int | None
    reason: RejectReason


@dataclass(frozen=True)
class Scan:
    """A scanned folder.

    Attributes:
        folder: what was scanned.
        root: where the images lie, ``folder`` or its ``images``; rows name files below it.
        rows: the accepted images, by name of their file.
        left_out: files that were rejected and images that are in quarantine or copies of others.
        missing: files that labels.csv names and that are not there.
        vanished: how many files of an earlier scan are no longer there.
        saturated: how many accepted images are mostly as bright as can be.
        decoded: how many files were decoded in this scan.
        images_decoded: how many images they held.
        seconds: how long it took.
    """

    folder: Path
    root: Path
    rows: tuple[CatalogueRow, ...]
    left_out: tuple[LeftOut, ...]
    missing: tuple[str, ...]
    vanished: int
    saturated: int
    decoded: int
    images_decoded: int
    seconds: float

    @property
    def reasons(self) -> dict[str, int]:
        """How many files and images were left out, by reason, the most frequent first."""
        return dict(Counter(item.reason.value for item in self.left_out).most_common())

    def summary(self) -> dict[str, int | dict[str, int]]:
        """Counts that the site may show to anybody in its house."""
        return {
            "images": len(self.rows),
            "groups": len({row.group for row in self.rows}),
            "labelled": sum(row.label is not None for row in self.rows),
            "rejected": {word: n for word, n in self.reasons.items() if not RejectReason(word).is_policy},
            "quarantined": {word: n for word, n in self.reasons.items() if RejectReason(word).is_policy},
            "saturated": self.saturated,
            "missing": len(self.missing),
            "vanished": self.vanished,
            "decoded": self.decoded,
        }
