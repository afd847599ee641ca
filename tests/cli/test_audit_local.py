"""``aiseeme audit attention`` and ``aiseeme audit sites``: what a person types, and mistakes told in words."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.run_folder import SimulationPlan
from tests.cli.commands import called, site_options
from tests.conftest import write_pictures
from tests.server.finished_runs import finished_run, run_config
from tests.server.test_attention_audit import (
    CLASSES,
    CLASSIFIER,
    HOLDOUT,
    OTHER,
    PRETRAINED,
    give_head,
    write_lesions,
)

GREY = "20261125-120000-dddddd"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished runs, one of them a classifier of stripes and blobs, and one of grey images."""
    import torch

    home = tmp_path_factory.mktemp("audit") / "runs"
    small: dict[str, Any] = {"model": {"backbone": "resnet-tiny"}, "holdout": HOLDOUT}
    finished_run(home, run_config(**small), run=PRETRAINED)
    finished_run(home, run_config(**small, seed=1), run=OTHER)
    finished_run(home, run_config(**small, images={"preset": "chest-xray", "size": 32}), run=GREY)
    stage = {"task": "classification", "rounds": 2, "batch_size": 4, "options": {"classes": CLASSES}}
    made = finished_run(home, run_config(**small, curriculum={"stage": [stage]}), run=CLASSIFIER)
    give_head(made, torch.randn(2, 128, generator=torch.Generator().manual_seed(0)))
    return home


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lesions(tmp_path_factory.mktemp("lesions") / "clinic", 120)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two hospitals of 100 pictures each; the second one's device makes them darker."""
    root = tmp_path_factory.mktemp("hospitals")
    folders = [write_pictures(root / name, 100, seed=i, side=32) for i, name in enumerate(("north", "south"))]
    for file in (folders[1] / "images").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) * 0.5).astype(np.uint8)).save(file)
    return folders


def printed(words: str) -> Any:
    return json.JSONDecoder().raw_decode(words)[0]


def test_attention_is_a_table_for_people_and_json_for_programs(home, lesions, monkeypatch, capsys):
    options = ("--data", lesions, "--runs", home)
    code, said = called(monkeypatch, capsys, "audit", "attention", PRETRAINED[:-4], OTHER, *options, "--random")
    assert code == 0
    for words in (
        "grad-cam",
        "energy in mask",
        PRETRAINED,
        f"less {PRETRAINED}",
        f"untrained {OTHER}",
        "image by image",
    ):
        assert words in said
    assert "a linear probe, fitted to images" in said and "without a mask: 1 of" in said
    assert "the maps have 2 x 2 cells over 32 x 32 px" in said
    code, said = called(monkeypatch, capsys, "audit", "attention", home / CLASSIFIER, *options, "--json", "--images", 9)
    assert code == 0
    audit = printed(said)
    assert audit == json.loads((home / CLASSIFIER / "attention.json").read_text())
    assert audit["rows"][0]["model"] == CLASSIFIER and audit["rows"][0]["images"] + audit["rows"][0]["zero_maps"] == 9
    assert audit["not_looked_at"] > 0


@pytest.mark.parametrize(
    ("models", "options", "says"),
    [
        (
            (PRETRAINED,),
            ("--cam", "gradcam"),
            "unknown kind of class activation map 'gradcam': there are eigen-cam, grad",
        ),
        ((PRETRAINED,), ("--masks", "/nowhere"), "/nowhere: no such folder of masks"),
        ((PRETRAINED, PRETRAINED), (), f"{PRETRAINED} is named twice"),
        ((PRETRAINED, GREY), (), "were trained on images prepared in different ways"),
        (("20990101",), (), "no run"),
        ((PRETRAINED,), ("--images", "0"), "0 is not in the range"),
    ],
)
def test_mistakes_about_attention_are_told_in_words(models, options, says, home, lesions, monkeypatch, capsys):
    code, said = called(monkeypatch, capsys, "audit", "attention", *models, "--data", lesions, "--runs", home, *options)
    assert code == 2 and says in said


def test_masks_that_fit_no_image_are_named(home, lesions, monkeypatch, capsys, tmp_path):
    def ended(masks: Path) -> str:
        options = ("--data", lesions, "--runs", home, "--masks", masks)
        code, said = called(monkeypatch, capsys, "audit", "attention", PRETRAINED, *options, "--cam", "eigen-cam")
        assert code == 2
        return said

    shutil.copytree(lesions / "masks", tmp_path / "wide")
    for file in (tmp_path / "wide").iterdir():
        Image.new("1", (60, 30), 1).save(file)
    said = ended(tmp_path / "wide")
    assert "_segmentation.png: the mask has 60 x 30 px and its image 60 x 48: not the same shape" in said
    for file in (tmp_path / "wide").iterdir():
        file.write_text("no image")
    assert "_segmentation.png: The file is no DICOM, NIfTI, PNG, JPEG or TIFF image" in ended(tmp_path / "wide")
    for file in (tmp_path / "wide").iterdir():
        Image.new("1", (60, 48), 0).save(file)
    assert "masks of the test images are empty" in ended(tmp_path / "wide")
    (tmp_path / "others").mkdir()
    assert "no mask in it" in ended(tmp_path / "others")
    Image.new("1", (60, 48), 1).save(tmp_path / "others" / "somebody.png")
    assert "test images has a mask: a mask is called as its image" in ended(tmp_path / "others")


def test_a_hospital_is_told_by_its_device_whatever_the_class(home, hospitals, monkeypatch, capsys):
    options = (*site_options(hospitals), "--runs", home)
    code, said = called(monkeypatch, capsys, "audit", "sites", PRETRAINED, *options, "--json")
    assert code == 0, said
    audit = printed(said)
    assert audit == json.loads((home / PRETRAINED / "audit-sites.json").read_text())
    assert audit["chance"] == 0.5 and set(audit["sites"]) == {"north", "south"}
    assert audit["classes"] == ["blobs", "stripes"] and audit["left_out"] == {}
    rows = {row["sees"]: row for row in audit["rows"]}
    assert set(rows) == {
        "features",
        "features of the untrained backbone",
        "thumbnail and colours",
        "true class alone",
    }
    for seen in ("features", "thumbnail and colours"):
        for kind in ("all_images", "same_class"):
            assert rows[seen][kind]["balanced_accuracy"] > 0.9 and rows[seen][kind]["p"] < 0.01
    assert rows["true class alone"]["same_class"]["balanced_accuracy"] == pytest.approx(0.5)
    code, said = called(monkeypatch, capsys, "audit", "sites", PRETRAINED, *options)
    assert code == 0 and "chance is 0.500" in said and "test images: north" in said
    assert "of the same class: blobs, stripes" in said


def test_hospitals_dealt_by_chance_are_not_told(home, hospitals, monkeypatch, capsys):
    options = ("--data", hospitals[0], "--sites", 2, "--runs", home, "--json")
    code, said = called(monkeypatch, capsys, "audit", "sites", OTHER, *options)
    assert code == 0, said
    row = printed(said)["rows"][0]["all_images"]
    assert row["low"] <= 0.5 <= row["high"] and row["p"] > 0.05


def test_a_classifier_gives_away_its_probabilities_too(home, lesions, monkeypatch, capsys):
    """And of a simulated run the hospitals are those that it was played with."""
    plan = {"data": (str(lesions),), "sites": 2, "partition": "by:label", "engine": "local", "device": "cpu"}
    SimulationPlan(**plan, images_sha256="", threads=1, versions={}).save(home / CLASSIFIER)
    code, said = called(monkeypatch, capsys, "audit", "sites", CLASSIFIER, "--runs", home, "--json")
    assert code == 0, said
    audit = printed(said)
    rows = {row["sees"]: row for row in audit["rows"]}
    assert set(audit["sites"]) == {"red", "blue"} and rows["class probabilities"]["dimensions"] == 2
    assert rows["true class alone"]["all_images"]["balanced_accuracy"] == 1.0
    assert audit["classes"] == [] and rows["features"]["same_class"] is None, "no class is at both"
    code, said = called(monkeypatch, capsys, "audit", "sites", CLASSIFIER, "--runs", home)
    assert code == 0 and "other classes cannot be told from other devices" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--data: name a folder with images"),
        (("--data", "/nowhere", "--sites", 2), "no such folder"),
        (("--data", "{lesions}"), "--sites: say over how many hospitals"),
        (("--data", "{lesions}", "--sites", 2, "--partition", "by:scanner"), "labels.csv has no such column"),
        (("--data", "{lesions}", "--sites", 20), "give more images, or take a run with a larger holdout.test"),
    ],
)
def test_mistakes_about_sites_are_told_in_words(options, says, home, lesions, monkeypatch, capsys):
    given = [str(option).replace("{lesions}", str(lesions)) for option in options]
    code, said = called(monkeypatch, capsys, "audit", "sites", PRETRAINED, "--runs", home, *given)
    assert code == 2 and says in said


def test_unlabelled_hospitals_are_attacked_and_the_gap_is_said(home, hospitals, monkeypatch, capsys, tmp_path):
    folders = []
    for folder in hospitals:
        shutil.copytree(folder, tmp_path / folder.name)
        with (folder / "labels.csv").open() as source:
            rows = list(csv.DictReader(source))
        with (tmp_path / folder.name / "labels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file", "patient_id"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        folders.append(tmp_path / folder.name)
    options = (*site_options(folders), "--runs", home)
    code, said = called(monkeypatch, capsys, "audit", "sites", PRETRAINED, *options)
    assert code == 0 and "true class alone" not in said and "no class has 10 test patients at every hospital" in said
