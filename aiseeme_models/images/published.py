"""Labels of public data sets as their makers publish them: their own csv files and folders, without a ``labels.csv``.

Where each set is to be had, and how its folder must look, stands in docs/data.md.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from aiseeme_models.errors import InputError
from aiseeme_models.images.labels import LabelRow, Labels, read_labels
from aiseeme_models.registry import Registry

Reader = Callable[[Path], Labels | None]
"""From a folder to its labels; None where it is no folder of this set."""

published_sets: Registry[Reader] = Registry("published data set")

_ISIC2019 = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
_COVIDX = frozenset(("normal", "pneumonia", "COVID-19", "positive", "negative"))
_ISIC2017 = ("melanoma", "seborrheic_keratosis")


def labels_of(folder: Path) -> Labels | None:
    """The labels of a folder: of its ``labels.csv``, else as one of the published sets; None where it has neither.

    Raises:
        InputError: what is wrong in which line, and what would be right.
    """
    if (labels := read_labels(folder)) is not None:
        return labels
    return next((found for name in published_sets if (found := published_sets[name](folder)) is not None), None)


@published_sets.register("isic2019")
def isic2019(folder: Path) -> Labels | None:
    """``ISIC_2019_Training_GroundTruth.csv`` (a column for each class, 1.0 in one of them), and the metadata beside it.

    The metadata's ``lesion_id`` keeps images of one lesion together; where it is empty an image stands for itself.
    """
    truth = _only(folder, "ISIC_2019_*_GroundTruth.csv")
    if truth is None:
        return None
    beside = _beside(_only(folder, "ISIC_2019_*_Metadata.csv"), "image")
    rows = {}
    for line, row in _table(truth, ("image", *_ISIC2019[:-1])):
        chosen = [name for name in _ISIC2019 if _number(row.get(name, "0"), truth, line, name) > 0.5]
        if len(chosen) != 1:
            raise InputError(f"{truth}, line {line}: {len(chosen)} classes are 1.0 where one must be")
        rows[row["image"]] = _row(row["image"], line, chosen[0], beside.get(row["image"], {}))
    return _by_stem(truth, rows)


@published_sets.register("isic2017")
def isic2017(folder: Path) -> Labels | None:
    """``ISIC-2017_*_Part3_GroundTruth.csv`` (melanoma, seborrheic_keratosis, or neither: nevus), and its metadata."""
    truth = _only(folder, "ISIC-2017_*_Part3_GroundTruth.csv")
    if truth is None:
        return None
    beside = _beside(_only(folder, "ISIC-2017_*_metadata.csv"), "image_id")
    rows = {}
    for line, row in _table(truth, ("image_id", *_ISIC2017)):
        chosen = [name for name in _ISIC2017 if _number(row[name], truth, line, name) > 0.5]
        if len(chosen) > 1:
            raise InputError(f"{truth}, line {line}: both {' and '.join(_ISIC2017)} are 1.0")
        rows[row["image_id"]] = _row(row["image_id"], line, (chosen or ["nevus"])[0], beside.get(row["image_id"], {}))
    return _by_stem(truth, rows)


@published_sets.register("ham10000")
def ham10000(folder: Path) -> Labels | None:
    """``HAM10000_metadata`` (or ``.csv``, or ``.tab``): image_id, lesion_id, dx, dx_type, age, sex, localization."""
    table = _only(folder, "HAM10000_metadata*")
    if table is None:
        return None
    rows = {}
    for line, row in _table(table, ("image_id", "lesion_id", "dx")):
        others = {name: value for name, value in row.items() if name not in ("image_id", "dx")}
        rows[row["image_id"]] = _row(row["image_id"], line, row["dx"], others)
    return _by_stem(table, rows)


@published_sets.register("covidx")
def covidx(folder: Path) -> Labels | None:
    """COVIDx' lists ``train*.txt`` and ``test*.txt``: patient id, file, class and source in each line."""
    lists = sorted(path for path in folder.glob("*.txt") if re.match(r"(train|test|val)", path.name))
    rows: dict[str, LabelRow] = {}
    for path in lists:
        for line, text in enumerate(_text(path).splitlines(), start=1):
            parts = text.split()
            if not parts:
                continue
            if len(parts) < 4 or parts[-2] not in _COVIDX:
                if not rows:
                    return None  # another list of that name
                there = ", ".join(sorted(_COVIDX))
                raise InputError(f"{path}, line {line}: it must be patient id, file, class ({there}) and source")
            file, label, source = parts[-3:]
            others = {"patient_id": " ".join(parts[:-3]), "source": source, "split": path.stem}
            rows[PurePosixPath(file).stem] = _row(file, line, label, others)
    return _by_stem(lists[0], rows) if rows else None


@published_sets.register("kermany")
def kermany(folder: Path) -> Labels | None:
    """The folders ``train``, ``val`` and ``test`` with ``NORMAL`` and ``PNEUMONIA`` in each, or in ``chest_xray``.

    Class and patient are in the names: ``person12_bacteria_46``, ``IM-0115-0001``, ``NORMAL2-IM-0173-0001``.
    """
    tops = [folder, folder / "chest_xray", folder / "images"]
    if not any((top / split / "NORMAL").is_dir() for top in tops for split in ("train", "test", "val")):
        return None
    return Labels(folder, ("label", "patient_id", "split"), {}, derived=_kermany_row)


_KERMANY = re.compile(r"(?P<person>person\d+)_(?P<kind>bacteria|virus)_\d+|(?P<normal>(?:NORMAL\d+-)?IM-\d+)-\d+")


def _kermany_row(file: str) -> LabelRow | None:
    place = PurePosixPath(file)
    named = _KERMANY.match(place.stem)
    if named is None:
        return None
    split = next((part for part in place.parts if part in ("train", "val", "test")), "")
    label = "normal" if named["normal"] else f"pneumonia_{named['kind']}"
    return _row(file, 0, label, {"patient_id": named["normal"] or named["person"], "split": split})


def _only(folder: Path, pattern: str) -> Path | None:
    """The file of a folder, or of a folder in it, that is called so.

    Raises:
        InputError: there are several.
    """
    found = sorted(path for one in (pattern, f"*/{pattern}") for path in folder.glob(one) if path.is_file())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{folder}: {names}: give each of these sets a folder of its own")
    return found[0] if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _table(path: Path, needed: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The lines of a csv or tab-separated file with their numbers.

    Raises:
        InputError: a column is missing, or a line has more or fewer fields than the header.
    """
    text = _text(path)
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            there = ", ".join(reader.fieldnames or ()) or "nothing"
            raise InputError(f"{path}: no column {missing[0]!r}; there is {there}")
        lines = []
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{path}, line {reader.line_num}: another number of fields than the header has")
            lines.append((reader.line_num, {name: value.strip() for name, value in row.items()}))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    return lines


def _beside(path: Path | None, key: str) -> Mapping[str, dict[str, str]]:
    """The other columns of a metadata file, by image."""
    if path is None:
        return {}
    return {row.pop(key): row for _, row in _table(path, (key,))}


def _number(text: str, path: Path, line: int, column: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{path}, line {line}: {column} is {text!r}, which is no number") from None


def _row(file: str, line: int, label: str, others: Mapping[str, str]) -> LabelRow:
    return LabelRow(file, None, line, label or None, others)


def _by_stem(path: Path, rows: Mapping[str, LabelRow]) -> Labels:
    """Labels of images that a table names without folder and ending."""
    columns = sorted({name for row in rows.values() for name in row.columns})
    return Labels(path, ("label", *columns), {}, derived=lambda file: rows.get(PurePosixPath(file).stem))
