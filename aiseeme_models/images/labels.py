"""``labels.csv``: what is known about the images of a folder, for evaluation and for grouping only."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aiseeme_models.errors import InputError
from aiseeme_models.images.splits import POINTS

LABELS_FILE = "labels.csv"
PHANTOM_COLUMN = "phantom"
"""A column that says ``yes`` for every phantom, so that no report can take one for a patient."""
GROUP_COLUMNS = ("patient_id", "lesion_id", "seriesuid")
"""Images that share a value of one of these are never divided between splits, folds or sites."""


POINT_COLUMN = "split_point"
"""Where a pseudonymised set says at which split point its patients lie (0 to 4095)."""

OF_NO_CLASS = frozenset((*GROUP_COLUMNS, POINT_COLUMN, "file", "index"))
"""Columns that say whose an image is, or which: nobody learns or compares these."""


@dataclass(frozen=True)
class LabelRow:
    """One line of ``labels.csv``.

    Attributes:
        file: the image, relative to the folder, with ``/``; "" for the folder's only patch set.
        index: number of an image in its file, from 0, or None: the line is about the whole file.
        line: of the csv, from 1.
        label: its class, or None.
        columns: every other column, as text.
    """

    file: str
    index: int | None
    line: int
    label: str | None
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Labels:
    """What is known of a folder's images: the lines of its ``labels.csv``, by file and index, or what their names tell.

    Attributes:
        path: the file, or the folder whose names tell.
        columns: what is known.
        rows: the lines; none where ``derived`` tells.
        derived: from a file's name to what is known of it, in a data set that has its own form.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Mapping[tuple[str, int | None], LabelRow]
    derived: Callable[[str], LabelRow | None] | None = None

    def of(self, file: str, frame: int) -> LabelRow | None:
        """The line about one image: the one that gives its index, else the one about its file."""
        if self.derived is not None:
            return self.derived(file)
        return self.rows.get((file, frame)) or self.rows.get((file, None)) or self.rows.get(("", frame))


def read_labels(folder: Path) -> Labels | None:
    """The ``labels.csv`` in ``folder``, or None where there is none.

    UTF-8 with or without a byte order mark, comma or semicolon. The column ``file`` names an image, ``index`` one of
    several in a file; a folder whose only image file is a patch set needs ``index`` alone. ``label`` and the columns
    of `GROUP_COLUMNS` have a meaning, all others are kept as they are.

    Raises:
        InputError: what is wrong in which line, and what would be right.
    """
    path = folder / LABELS_FILE
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}): save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    first = text.partition("\n")[0]
    delimiter = ";" if ";" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: dict[tuple[str, int | None], LabelRow] = {}
    try:
        header = _checked_header(next(reader, []), path)
        for fields in reader:
            if not any(value.strip() for value in fields):
                continue
            row = _checked_row(header, fields, path, reader.line_num)
            place = (row.file, row.index)
            if place in rows:
                what = repr(row.file) if row.index is None else f"index {row.index}"
                raise InputError(
                    f"{path}, line {row.line}: {what} is there already in line {rows[place].line}: one line per image"
                )
            rows[place] = row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    if not rows:
        raise InputError(f"{path}: no line below the header: one line per file, or no labels.csv at all")
    return Labels(path, tuple(header), rows)


def _checked_header(fields: list[str], path: Path) -> list[str]:
    header = [name.strip() for name in fields]
    if "file" not in header and "index" not in header:
        there = ", ".join(repr(name) for name in header) or "nothing"
        raise InputError(f"{path}, line 1: no column 'file' (or 'index', of a patch set); there is {there}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(f"{path}, line 1: column {twice[0]!r} is there more than once")
    return header


def _checked_row(header: list[str], fields: list[str], path: Path, line: int) -> LabelRow:
    if len(fields) != len(header):
        raise InputError(f"{path}, line {line}: {len(fields)} fields where the header has {len(header)}")
    columns = {name: value.strip() for name, value in zip(header, fields, strict=True)}
    point = columns.get(POINT_COLUMN)
    if point and not (point.isascii() and point.isdigit() and len(point) < 6 and int(point) < POINTS):
        raise InputError(f"{path}, line {line}: {POINT_COLUMN} {point!r} is no number from 0 to {POINTS - 1}")
    index = _checked_index(columns.pop("index"), path, line) if "index" in columns else None
    if "file" not in columns:
        if index is None:
            raise InputError(f"{path}, line {line}: 'index' is empty")
        return LabelRow("", index, line, columns.get("label") or None, columns)
    file = columns.pop("file").replace("\\", "/").removeprefix("./")
    if not file:
        raise InputError(f"{path}, line {line}: 'file' is empty")
    return LabelRow(file, index, line, columns.get("label") or None, columns)


def _checked_index(text: str, path: Path, line: int) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InputError(f"{path}, line {line}: index {text!r} is no number from 0")
    return int(text)
