"""What `aiseeme predict` refuses, what it warns of, and what of a file it never tells."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import CTImageStorage, RLELossless, VLPhotographicImageStorage

from aiseeme_models.images import decode_pool
from server import predicting
from server.model_manifest import ModelManifest
from server.signed_files import MODEL, write_signed
from tests.cli.commands import called
from tests.images.dicom_files import write_dicom_file as dicom
from tests.server.classifier_runs import (
    CHEST,
    CLASSES,
    COLD,
    KEY,
    PHOTO,
    PLAIN,
    RUN,
    drawn,
    frames_in,
    png,
)

BANNER = "research use only; not for diagnosis"
SECRETS = {"PatientName": "Surname^Verysecret", "PatientID": "id-9041", "StudyDescription": "hush-hush"}


def test_nothing_of_a_header_is_in_what_comes_out(call, tmp_path):
    path = dicom(tmp_path / "image.dcm", drawn(1), **PHOTO, **SECRETS)
    refused = dicom(tmp_path / "capture.dcm", drawn(2), **SECRETS)
    said = [call(RUN, path, refused, "--overlay", tmp_path / name, *options)[1] for name, options in
            (("a", ()), ("b", ("--json",)), ("c", ("--admit", "secondary-capture")))]  # fmt: skip
    written = [file for name in "abc" for file in (tmp_path / name).iterdir()]
    assert len(written) == 1 + 1 + 2
    uid = str(pydicom.dcmread(path).SOPInstanceUID)
    for secret in (*SECRETS.values(), "Verysecret", uid):
        for words in (*said, *map(str, written)):
            assert secret.lower() not in words.lower()
        assert all(secret.encode() not in file.read_bytes() for file in written)


def test_an_image_in_quarantine_is_predicted_only_where_that_is_admitted(told, call, tmp_path):
    good, capture = png(tmp_path / "good.png", 1), dicom(tmp_path / "image.dcm", drawn(2), BurnedInAnnotation="YES")
    code, said = told(RUN, capture, good, "--overlay", tmp_path / "look")
    assert code == 1 and [one["position"] for one in said["images"]] == [2]
    (refused,) = said["left_out"]
    assert refused["reasons"] == ["burned-in-text", "secondary-capture"] and refused["quarantined"]
    assert [path.name for path in (tmp_path / "look").iterdir()] == ["002-good-0.png"]
    code, words = call(RUN, capture, good)
    assert code == 1 and words.endswith(BANNER)
    assert "`--admit burned-in-text --admit secondary-capture` lets them in" in words
    assert told(RUN, capture, "--admit", "secondary-capture")[0] == 1, "the other reason stands"
    code, said = told(RUN, capture, "--admit", "burned-in-text", "--admit", "secondary-capture")
    (one,) = said["images"]
    assert code == 0 and one["findings"] == refused["reasons"] and len(one["warnings"]) == 2


def test_images_of_another_kind_are_predicted_with_a_warning(told, call, tmp_path):
    ct = dicom(tmp_path / "image.dcm", drawn(3)[..., 0], SOPClassUID=CTImageStorage, Modality="CT")
    _, said = told(RUN, ct)
    assert (
        "its modality is CT; the model was trained on dermoscopy images (ES, GM, XC)" in said["images"][0]["warnings"]
    )
    assert "it has no colour; the model was trained on dermoscopy images" in said["images"][0]["warnings"]
    assert "warning: 1 of 2 images: its modality is CT" in call(RUN, ct, png(tmp_path / "a.png", 1))[1]
    chest = dicom(tmp_path / "image.dcm", drawn(3)[..., 0], SOPClassUID=CTImageStorage, Modality="DX")
    assert told(CHEST, chest)[1]["images"][0]["warnings"] == []
    unknown = dicom(tmp_path / "image.dcm", drawn(3), SOPClassUID=VLPhotographicImageStorage, Modality="my own word")
    assert told(RUN, unknown)[1]["images"][0]["warnings"] == []


def test_a_file_that_cannot_be_read_costs_one_line(call, told, tmp_path):
    good = png(tmp_path / "good.png", 1)
    cut, text, empty = (tmp_path / name for name in ("cut.png", "text.png", "empty.dcm"))
    cut.write_bytes(good.read_bytes()[:200])
    text.write_text("no image")
    empty.touch()
    code, words = call(RUN, cut, good, text, empty)
    assert code == 1 and words.endswith(BANNER)
    for path, why in ((cut, "ends before its image"), (text, "no DICOM, NIfTI"), (empty, "no content")):
        assert words.count(f"{path}: not read: ") == 1 and why in words
    code, said = told(RUN, cut, good, text, empty)
    assert code == 1 and [one["file"] for one in said["images"]] == [str(good)]
    assert [(one["position"], one["frame"], one["reasons"], one["quarantined"]) for one in said["left_out"]] == [
        (1, None, ["truncated"], False),
        (3, None, ["not-an-image"], False),
        (4, None, ["empty"], False),
    ]
    code, words = call(RUN, text)
    assert code == 1 and words.endswith(BANNER)


def test_nothing_stays_of_a_file_that_turns_out_to_be_damaged(told, tmp_path, monkeypatch):
    """Its first frames were predicted and drawn before the last one could not be decoded."""
    monkeypatch.setattr(decode_pool, "_MOST_SLOTS", 1)
    monkeypatch.setattr(predicting, "_MOST_IMAGES", 1)
    path = frames_in("DICOM", tmp_path, [drawn(seed) for seed in range(4)])
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=4))
    dataset.PixelData = encapsulate([*frames[:3], frames[3][: len(frames[3]) // 8]])
    dataset.save_as(path)
    written: list[str] = []
    write = predicting.OverlayFiles.write
    monkeypatch.setattr(predicting.OverlayFiles, "write", lambda *given: written.append(write(*given)) or written[-1])
    good = png(tmp_path / "good.png", 9)
    code, said = told(RUN, path, good, "--overlay", tmp_path / "look")
    assert code == 1 and [one["position"] for one in said["images"]] == [2]
    assert len(said["left_out"]) == 1 and said["left_out"][0]["frame"] is None
    assert "001-image-0.png" in written, "else this test shows nothing"
    assert [file.name for file in (tmp_path / "look").iterdir()] == ["002-good-0.png"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((RUN, "a.png", "gone.png"), "gone.png: no such file"),
        ((RUN, "a.png", "."), "a folder; name the image files in it"),
        ((PLAIN, "a.png"), f"{PLAIN}: a backbone without classes; `aiseeme finetune` makes a classifier"),
        (("20990101", "a.png"), "no run"),
        ((RUN, "a.png", "--class", "mel"), "say with --overlay FOLDER"),
        ((RUN, "a.png", "--overlay", "look", "--class", "melanoma"), "--class melanoma: there are akiec, mel, nv"),
        ((RUN, "a.png", "--overlay", "look", "--cam", "gradcam"), "did you mean 'grad-cam'?"),
        ((RUN, "a.png", "--overlay", "a.png"), "there is a file of that name"),
        (
            (RUN, "a.png", "--admit", "truncated"),
            "--admit truncated: no reason of quarantine: there are burned-in-text",
        ),
        ((RUN, "a.png", "--device", "tpu"), "--device tpu: not a device"),
        ((RUN, "a.png", "--key", "00"), "--key 00"),
    ],
)
def test_wrong_input_is_told_in_words_before_anything_is_written(arguments, says, call, tmp_path):
    png(tmp_path / "a.png", 1)
    code, words = call(*arguments)
    assert code == 2 and says in words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


def changed(folder: Path, key: Any = None, **values: Any) -> None:
    manifest = folder / "model.json"
    told = ModelManifest.model_validate_json(manifest.read_bytes()).model_copy(update=values).to_bytes()
    manifest.write_bytes(told) if key is None else write_signed(manifest, told, MODEL, key)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "the head": (lambda run: (run / "model" / "head.safetensors").write_bytes(b"x"), "the file was altered"),
    "the backbone": (lambda run: (run / "model" / "backbone.safetensors").write_bytes(b"x"), "the file was altered"),
    "the head is gone": (lambda run: (run / "model" / "head.safetensors").unlink(), "cannot be read"),
    "the temperature": (lambda run: changed(run / "model", temperature=0.1), "not what its signature was made for"),
    "the configuration": (lambda run: (run / "config.toml").open("a").write("\n"), "not the configuration that"),
    "the classes": (lambda run: changed(run / "model", KEY, classes=CLASSES[::-1]), "not those of the run's conf"),
    "the run": (lambda run: changed(run / "model", KEY, run=COLD), f"it is the model of run {COLD}"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_model_whose_parts_do_not_belong_together_predicts_nothing(
    what, classifier_home, tmp_path, monkeypatch, capsys
):
    shutil.copytree(classifier_home, tmp_path / "runs")
    spoil, says = SPOILT[what]
    spoil(tmp_path / "runs" / RUN)
    code, words = called(
        monkeypatch, capsys, "predict", RUN, png(tmp_path / "a.png", 1), "--runs", tmp_path / "runs", "--json"
    )
    assert code == 2 and says in words


def test_with_a_key_only_what_it_signed_predicts(call, tmp_path):
    path, own = png(tmp_path / "a.png", 1), KEY.public_key().public_bytes_raw().hex()
    other = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))).public_key().public_bytes_raw().hex()
    assert call(RUN, path, "--key", own)[0] == 0
    code, words = call(RUN, path, "--key", other)
    assert code == 2 and "signed by another key" in words
    code, words = call(COLD, path, "--key", own)
    assert code == 2 and "is not signed" in words
