"""``labels.csv``: what is known about the images of a folder, for evaluation and for grouping only."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiseeme_models.errors import InputError

LABELS_FILE = "labels.csv"
PHANTOM_COLUMN = "phantom"
"""A column that says ``yes`` for every phantom, so that no report can take one for a patient."""
# Images that share the first of these that is given are never divided between splits or sites.
GROUP_COLUMNS = ("patient_id", "lesion_id", "seriesuid")


@dataclass(frozen=True)
class LabelRow:
    """One line of ``labels.csv``.

    Attributes:
        file: the image, relative to the folder, with ``/``.
        line: of the csv, from 1.
        label: its class, or None.
        group: patient, else lesion, else series, else the file itself.
        columns: every column but ``file``, as text.
    """

    file: str
    line: int
    label: str | None
    group: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Labels:
    """All lines of a ``labels.csv``, by file."""

    path: Path
    columns: tuple[str, ...]
    rows: Mapping[str, LabelRow]


def read_labels(folder: Path) -> Labels | None:
    """The ``labels.csv`` in ``folder``, or None where there is none.

    UTF-8 with or without a byte order mark, comma or semicolon. The column ``file`` is required; ``label`` and the
    columns of `GROUP_COLUMNS` have a meaning, all others are kept as they are.

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
    rows: dict[str, LabelRow] = {}
    try:
        header = _checked_header(next(reader, []), path)
        for fields in reader:
            if not any(value.strip() for value in fields):
                continue
            row = _checked_row(header, fields, path, reader.line_num)
            if row.file in rows:
                raise InputError(
                    f"{path}, line {row.line}: {row.file!r} is there already in line {rows[row.file].line}: "
                    "one line per file"
                )
            rows[row.file] = row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    if not rows:
        raise InputError(f"{path}: no line below the header: one line per file, or no labels.csv at all")
    return Labels(path, tuple(header), rows)


def _checked_header(fields: list[str], path: Path) -> list[str]:
    header = [name.strip() for name in fields]
    if "file" not in header:
        there = ", ".join(repr(name) for name in header) or "nothing"
        raise InputError(f"{path}, line 1: no column 'file'; there is {there}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(f"{path}, line 1: column {twice[0]!r} is there more than once")
    return header


def _checked_row(header: list[str], fields: list[str], path: Path, line: int) -> LabelRow:
    if len(fields) != len(header):
        raise InputError(f"{path}, line {line}: {len(fields)} fields where the header has {len(header)}")
    columns = {name: value.strip() for name, value in zip(header, fields, strict=True)}
    file = columns.pop("file").replace("\\", "/").removeprefix("./")
    if not file:
        raise InputError(f"{path}, line {line}: 'file' is empty")
    group = next((columns[name] for name in GROUP_COLUMNS if columns.get(name)), file)
    return LabelRow(file, line, columns.get("label") or None, group, columns)
