"""labels.csv is read as people write it; mistakes name the file, the line and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiseeme_models.errors import InputError
from aiseeme_models.images.labels import read_labels


def write(folder: Path, content: str | bytes) -> None:
    (folder / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())


def test_no_file_means_no_labels(tmp_path: Path) -> None:
    assert read_labels(tmp_path) is None


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize(("comma", "end"), [(",", "\n"), (";", "\r\n")])
def test_what_spreadsheets_write_is_read(tmp_path: Path, start: str, comma: str, end: str) -> None:
    lines = ["file,label,age", "a.png, nv ,40", 'b\\c.png,,"50"', "", ",,"]
    write(tmp_path, start + end.join(line.replace(",", comma) for line in lines))
    labels = read_labels(tmp_path)
    assert labels is not None and labels.columns == ("file", "label", "age")
    assert list(labels.rows) == ["a.png", "b/c.png"]
    assert (labels.rows["a.png"].label, labels.rows["b/c.png"].label) == ("nv", None)
    assert labels.rows["b/c.png"].columns == {"label": "", "age": "50"}


def test_the_group_is_the_patient_else_the_lesion_else_the_series_else_the_file(tmp_path: Path) -> None:
    write(tmp_path, "file,seriesuid,lesion_id,patient_id\na,s,l,p\nb,s,l,\nc,s,,\nd,,,\n")
    labels = read_labels(tmp_path)
    assert labels is not None
    assert {name: row.group for name, row in labels.rows.items()} == {"a": "p", "b": "l", "c": "s", "d": "d"}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("name,label\na.png,nv\n", ["line 1", "'file'", "'name'"]),
        ("", ["line 1", "'file'"]),
        ("file,label,label\na,1,2\n", ["line 1", "'label'", "more than once"]),
        ("file,label\na.png,nv\nb.png,nv\n./a.png,mel\n", ["line 4", "'a.png'", "line 2"]),
        ("file,label\na.png,nv,x\n", ["line 2", "3 fields", "2"]),
        ("file,label\na.png\n", ["line 2", "1 fields", "2"]),
        ("file,label\n,nv\n", ["line 2", "'file' is empty"]),
        ("file,label\n", ["no line below the header"]),
        ('file,label\n"a.png,nv\n', ["line"]),
        ("file,label\nä.png,nv\n".encode("latin-1"), ["not UTF-8", "CSV UTF-8"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: str | bytes, parts: list[str]) -> None:
    write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_labels(tmp_path)
    for part in [str(tmp_path / "labels.csv"), *parts]:
        assert part in str(caught.value)
