"""Public data sets are read as their makers publish them, and mistakes in their files are told by line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from aiseeme_models.downstream.tasks import downstream_tasks
from aiseeme_models.errors import InputError
from aiseeme_models.images.published import labels_of
from client.walking import walk

REAL = Path(__file__).parents[3] / "shared" / "data"


def put(folder: Path, **files: str) -> Path:
    """A folder with these files; ``__`` in a name stands for a dot, ``___`` for a slash."""
    for name, text in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


ISIC2019 = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"


def test_isic_2019_with_its_lesions(tmp_path: Path) -> None:
    truth = ISIC2019 + "ISIC_0000000,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
    truth += "ISIC_0000002_downsampled,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
    beside = "image,age_approx,anatom_site_general,lesion_id,sex\nISIC_0000000,55.0,anterior torso,,female\n"
    beside += "ISIC_0000002_downsampled,30.0,upper extremity,MSK4_0011169,female\n"
    put(tmp_path, ISIC_2019_Training_GroundTruth__csv=truth, ISIC_2019_Training_Metadata__csv=beside)
    labels = labels_of(tmp_path)
    assert labels is not None
    row = labels.of("ISIC_2019_Training_Input/ISIC_0000002_downsampled.jpg", 0)
    assert row is not None and row.label == "MEL" and row.columns["lesion_id"] == "MSK4_0011169"
    row = labels.of("ISIC_2019_Training_Input/ISIC_0000000.jpg", 0)
    assert row is not None and row.label == "NV" and row.columns["lesion_id"] == ""
    assert labels.of("ISIC_2019_Training_Input/ISIC_0000009.jpg", 0) is None


def test_isic_2017_whose_nevi_are_neither(tmp_path: Path) -> None:
    truth = "image_id,melanoma,seborrheic_keratosis\nISIC_1,1.0,0.0\nISIC_2,0.0,1.0\nISIC_3,0.0,0.0\n"
    labels = labels_of(put(tmp_path, **{"ISIC-2017_Training_Part3_GroundTruth__csv": truth}))
    assert labels is not None
    found = [labels.of(f"ISIC-2017_Training_Data/ISIC_{number}.jpg", 0) for number in (1, 2, 3)]
    assert [row.label for row in found if row] == ["melanoma", "seborrheic_keratosis", "nevus"]
    assert {row.label for row in found if row} == set(downstream_tasks["isic2017"].classes)


@pytest.mark.parametrize("ending", ["", "__csv"])
def test_ham10000(tmp_path: Path, ending: str) -> None:
    table = "lesion_id,image_id,dx,dx_type,age,sex,localization\nHAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp\n"
    labels = labels_of(put(tmp_path, **{f"HAM10000_metadata{ending}": table}))
    assert labels is not None
    row = labels.of("HAM10000_images_part_1/ISIC_0027419.jpg", 0)
    assert row is not None and row.label == "bkl"
    assert row.columns["lesion_id"] == "HAM_0000118" and row.columns["localization"] == "scalp"


def test_covidx_whose_patient_ids_may_hold_spaces(tmp_path: Path) -> None:
    lines = "379 1-s2.0-S0140673620303706-fx1_lrg.jpg COVID-19 cohen\nCOVID 00001 covid1.png positive bimcv\n"
    labels = labels_of(put(tmp_path, train__txt=lines, test__txt="p9 n.png normal rsna\n"))
    assert labels is not None
    row = labels.of("train/covid1.png", 0)
    assert row is not None and (row.label, row.columns["patient_id"]) == ("positive", "COVID 00001")
    row = labels.of("test/n.png", 0)
    assert row is not None and (row.label, row.columns["split"], row.columns["source"]) == ("normal", "test", "rsna")
    assert labels_of(put(tmp_path / "other", train__txt="these are my notes of today\n")) is None


def test_kermany_by_its_folders_and_names(tmp_path: Path) -> None:
    (tmp_path / "chest_xray" / "train" / "NORMAL").mkdir(parents=True)
    labels = labels_of(tmp_path)
    assert labels is not None
    names = {
        "chest_xray/train/PNEUMONIA/person12_bacteria_46.jpeg": ("pneumonia_bacteria", "person12", "train"),
        "chest_xray/test/PNEUMONIA/person1_virus_6.jpeg": ("pneumonia_virus", "person1", "test"),
        "chest_xray/val/NORMAL/NORMAL2-IM-1427-0001.jpeg": ("normal", "NORMAL2-IM-1427", "val"),
        "chest_xray/train/NORMAL/IM-0115-0001-0002.jpeg": ("normal", "IM-0115", "train"),
    }
    for name, (label, patient, split) in names.items():
        row = labels.of(name, 0)
        assert row is not None
        assert (row.label, row.columns["patient_id"], row.columns["split"]) == (label, patient, split)
    assert labels.of("chest_xray/train/NORMAL/desktop.ini", 0) is None
    known = {value for values in downstream_tasks["pneumonia"].classes.values() for value in values}
    assert {"normal", "pneumonia_bacteria", "pneumonia_virus"} <= known


@pytest.mark.skipif(not (REAL / "cxr_kermany").is_dir(), reason="the folder of real images is not here")
def test_kermanys_patients_and_classes_are_those_of_the_prepared_csv(tmp_path: Path) -> None:
    (tmp_path / "train" / "NORMAL").mkdir(parents=True)
    labels = labels_of(tmp_path)
    assert labels is not None
    with (REAL / "cxr_kermany" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 4000
    for row in rows:
        found = labels.of(row["src_path"], 0)
        assert found is not None and found.label == row["label"]
        assert found.columns["patient_id"] == row["patient_id"]


def test_a_labels_csv_counts_before_all_else(tmp_path: Path) -> None:
    put(tmp_path, labels__csv="file,label\na.png,x\n", HAM10000_metadata__csv="image_id,lesion_id,dx\na,l,bkl\n")
    labels = labels_of(tmp_path)
    assert labels is not None
    row = labels.of("a.png", 0)
    assert row is not None and row.label == "x"


def test_an_ordinary_folder_has_no_labels(tmp_path: Path) -> None:
    assert labels_of(put(tmp_path, notes__txt="hello", train__csv="a,b\n1,2\n")) is None


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"ISIC_2019_Training_GroundTruth__csv": "image,MEL\nx,1.0\n"}, "no column 'NV'"),
        ({"ISIC_2019_Training_GroundTruth__csv": ISIC2019 + "x,0,0,0,0,0,0,0,0,0\n"}, "line 2: 0 classes are 1.0"),
        ({"ISIC_2019_Training_GroundTruth__csv": ISIC2019 + "x,1,1,0,0,0,0,0,0,0\n"}, "line 2: 2 classes are 1.0"),
        ({"ISIC_2019_Training_GroundTruth__csv": ISIC2019 + "x,a,1,0,0,0,0,0,0,0\n"}, "MEL is 'a', which is no number"),
        ({"ISIC_2019_Training_GroundTruth__csv": ISIC2019 + "x,1\n"}, "line 2: another number of fields"),
        ({"HAM10000_metadata__csv": "image_id,dx\na,b\n"}, "no column 'lesion_id'"),
        ({"train__txt": "p a.png normal rsna\np b.png\n"}, "line 2: it must be patient id, file, class"),
        (
            {"ISIC_2019_Training_GroundTruth__csv": ISIC2019, "ISIC_2019_Test_GroundTruth__csv": ISIC2019},
            "give each of these sets a folder of its own",
        ),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, files: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        labels_of(put(tmp_path, **files))


def test_masks_that_lie_beside_the_images_are_no_images(tmp_path: Path) -> None:
    put(tmp_path, a___ISIC_1__jpg="", a___ISIC_1_superpixels__png="", b___ISIC_1_segmentation__png="")
    assert [file.name for file in walk(tmp_path)[0]] == ["a/ISIC_1.jpg"]
