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
    assert list(labels.rows) == [("a.png", None), ("b/c.png", None)]
    first, second = labels.of("a.png", 0), labels.of("b/c.png", 3)
    assert first is not None and second is not None
    assert (first.label, second.label) == ("nv", None)
    assert second.columns == {"label": "", "age": "50"}


def test_a_line_may_be_about_one_image_of_a_file_or_of_the_only_patch_set(tmp_path: Path) -> None:
    write(tmp_path, "file,index,label\nscan.nii,2,nodule\nscan.nii,,clear\n")
    labels = read_labels(tmp_path)
    assert labels is not None
    lines = [labels.of("scan.nii", frame) for frame in (2, 3)]
    assert [line.label if line else None for line in lines] == ["nodule", "clear"]
    write(tmp_path, "index,seriesuid,label\n0,1.2.3,benign\n1,1.2.4,malignant\n")
    labels = read_labels(tmp_path)
    assert labels is not None
    line = labels.of("nodules.npz", 1)
    assert line is not None and (line.label, line.columns["seriesuid"]) == ("malignant", "1.2.4")
    assert labels.of("nodules.npz", 2) is None


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
        ("index,label\n0,nv\nx,nv\n", ["line 3", "index 'x'"]),
        ("index,label\n0,nv\n0,mel\n", ["line 3", "index 0", "line 2"]),
        ("index,label\n,nv\n", ["line 2", "'index' is empty"]),
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
