"""What `aiseeme predict` says of a file is what the model says of the very array that training would have cached."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from aiseeme_models.analysis.cam import grad_cam
from aiseeme_models.analysis.overlay import overlay
from aiseeme_models.downstream.classification import Classification, predicted
from aiseeme_models.images import decode_pool
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.cache import ImageCache
from aiseeme_models.images.preprocessing import preprocess, preprocessing
from client.scanning import scan
from client.site_home import SiteHome
from federation_configs.loading import load_config
from server import predicting
from server.export import export_run
from server.global_model import load_backbone, load_classifier
from tests.images.dicom_files import write_dicom_file as dicom
from tests.server.classifier_runs import (
    CHEST,
    CLASSES,
    COLD,
    NODULES,
    PHOTO,
    RUN,
    TEMPERATURE,
    drawn,
    frames_in,
    png,
)

BANNER = "research use only; not for diagnosis"


def figures(one: dict[str, Any]) -> list[float]:
    return [one["probabilities"][name] for name in CLASSES]


def network_of(home: Path, run: str) -> Any:
    config = load_config(home / run / "config.toml")
    return config, load_classifier(home / run / "model", load_backbone(home / run / "model", config)).eval()


def normalised(config: Any, path: Path) -> torch.Tensor:
    images = preprocess(preprocessing(config.images), path)[None]
    return BatchAugmentation.of(config.images.resolved_preset).plain(images)


# Probabilities


@pytest.mark.parametrize("run", [RUN, COLD])
def test_they_are_those_of_the_cached_images_of_training(run, classifier_home, told, tmp_path, monkeypatch):
    """Read by a hospital's scan into its cache on the one side, by the command on the other."""
    folder = tmp_path / "hospital"
    files = [png(folder / f"{seed}.png", seed, height=40 + 9 * seed, width=90 - 7 * seed) for seed in range(4)]
    files.append(dicom(folder / "z.dcm", drawn(9), **PHOTO))
    Image.fromarray(drawn(5)).save(folder / "5.jpg")
    Image.fromarray(drawn(6)[..., 0].astype(np.uint16) * 200).save(folder / "6.tif")
    files += [folder / "5.jpg", folder / "6.tif"]
    config, network = network_of(classifier_home, run)
    site = SiteHome(tmp_path / "home")
    rows = {row.file: row.content for row in scan(folder, site, config.images.pipeline).rows}
    cached = ImageCache(site.store, config.images.pipeline).open([rows[path.name] for path in files])
    normalise = BatchAugmentation.of(config.images.resolved_preset).plain

    seen: list[torch.Tensor] = []
    load = predicting.load_classifier

    def watched(*arguments: Any) -> Any:
        loaded = load(*arguments)
        loaded.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        return loaded

    monkeypatch.setattr(predicting, "load_classifier", watched)
    code, said = told(run, *files)
    assert code == 0 and [one["file"] for one in said["images"]] == [str(path) for path in files]
    found = np.array([figures(one) for one in said["images"]])

    network_saw = torch.cat(seen)
    given = normalise(cached.batch(torch.arange(len(files))))
    by_bytes = {one.numpy().tobytes() for one in given}
    assert {one.numpy().tobytes() for one in network_saw} == by_bytes and len(by_bytes) == len(files)

    task = Classification(network.backbone, config.curriculum.stage[0].options)
    task.head.load_state_dict(network.fc.state_dict())
    plain = predicted(task, cached, normalise, device="cpu")
    with torch.no_grad():
        logits = (network.backbone(given) @ network.fc.weight.T + network.fc.bias).double().numpy()
    temperature = TEMPERATURE if run == RUN else 1.0
    np.testing.assert_allclose(found, softmax(logits / temperature, axis=1), atol=1e-5)
    np.testing.assert_allclose(found.argmax(1), plain.argmax(1))
    if run == COLD:
        np.testing.assert_allclose(found, plain, atol=1e-5)
    assert [one["predicted"] for one in said["images"]] == [CLASSES[place] for place in found.argmax(1)]
    assert len(set(found.argmax(1))) > 1, "a model that always says the same would show little"
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_they_are_those_of_the_exported_model(classifier_home, told, tmp_path):
    path = png(tmp_path / "lesion.png", 3)
    config, _ = network_of(classifier_home, RUN)
    made = export_run(RUN, "onnx", home=classifier_home, out=tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(["probabilities"], {"images": normalised(config, path).numpy()})
    _, said = told(RUN, path)
    np.testing.assert_allclose(figures(said["images"][0]), expected[0], atol=1e-5)


def test_a_dicom_file_and_the_picture_of_its_pixels_give_the_same(told, tmp_path):
    grey = drawn(2)[..., 1]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    pairs = [(dicom(tmp_path / "image.dcm", drawn(2), **PHOTO), png(tmp_path / "a.png", 2))]
    pairs += [(dicom(tmp_path / "grey.dcm", grey, **PHOTO), tmp_path / "grey.png")]
    for pair in pairs:
        code, said = told(RUN, *pair)
        first, second = said["images"]
        assert code == 0 and first["predicted"] == second["predicted"]
        np.testing.assert_allclose(figures(first), figures(second), atol=1e-6)


@pytest.mark.parametrize("kind", ["DICOM", "npz", "tif"])
@pytest.mark.parametrize("slots", [2, 512])
def test_each_frame_has_a_prediction_of_its_own(kind, slots, told, tmp_path, monkeypatch):
    """With 2 slots the file comes in parts, as one of thousands of frames does."""
    monkeypatch.setattr(decode_pool, "_MOST_SLOTS", slots)
    seeds = range(20, 25)
    many = frames_in(kind, tmp_path, [drawn(seed) for seed in seeds])
    single = [png(tmp_path / f"{seed}.png", seed) for seed in seeds]
    code, said = told(RUN, many, *single, "--overlay", tmp_path / "look")
    assert code == 0 and not said["left_out"]
    assert [(one["position"], one["frame"]) for one in said["images"]] == [
        *((1, frame) for frame in range(5)),
        *((place, 0) for place in range(2, 7)),
    ]
    together, apart = said["images"][:5], said["images"][5:]
    np.testing.assert_allclose([figures(one) for one in together], [figures(one) for one in apart], atol=1e-6)
    assert len({tuple(figures(one)) for one in together}) == 5
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == sorted(
        one["overlay"]["file"] for one in said["images"]
    )


def test_slices_of_a_volume_are_predicted_one_by_one(told, tmp_path):
    import nibabel

    volume = np.random.default_rng(0).normal(-600, 300, (20, 22, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "ct.nii.gz")
    code, said = told(CHEST, tmp_path / "ct.nii.gz")
    assert code == 0 and [one["frame"] for one in said["images"]] == [0, 1, 2, 3]


def test_how_sure_a_model_is_is_said_with_whether_it_is_calibrated(told, call, classifier_home, tmp_path):
    path = png(tmp_path / "a.png", 1)
    for run, temperature in ((RUN, TEMPERATURE), (COLD, None)):
        _, said = told(run, path)
        (one,) = said["images"]
        assert (one["calibrated"], one["temperature"]) == (temperature is not None, temperature)
        assert one["research_use_only"] is said["research_use_only"] is True
        weights = (classifier_home / run / "model" / "backbone.safetensors").read_bytes()
        assert one["model_sha256"] == hashlib.sha256(weights).hexdigest()
    assert "not calibrated" in call(COLD, path)[1]
    code, words = call(RUN, path)
    assert code == 0 and "calibrated: logits divided by 1.700" in words and "not calibrated" not in words
    assert words.endswith(BANNER)


def test_a_model_is_named_by_id_beginning_or_folder(told, classifier_home, tmp_path):
    path = png(tmp_path / "a.png", 1)
    found = [told(name, path)[1] for name in (RUN, RUN[:-3], classifier_home / RUN, classifier_home / RUN / "model")]
    assert all(one == found[0] for one in found) and found[0]["run"] == RUN


# Overlays


def test_an_overlay_shows_the_class_and_the_image_as_the_network_saw_it(classifier_home, told, tmp_path):
    path = png(tmp_path / "lesion.png", 4)
    config, network = network_of(classifier_home, RUN)
    square = preprocess(preprocessing(config.images), path).numpy()
    for options, wanted in (((), None), (("--class", "akiec"), "akiec")):
        code, said = told(RUN, path, "--overlay", tmp_path / "look", "--force", *options)
        (one,) = said["images"]
        wanted = wanted or one["predicted"]
        assert code == 0
        assert one["overlay"] == {"file": "001-lesion-0.png", "cam": "grad-cam", "of_class": wanted}
        heat = grad_cam(network.backbone, network.fc, normalised(config, path), torch.tensor([CLASSES.index(wanted)]))
        expected = overlay(square, heat[0].numpy())
        with Image.open(tmp_path / "look" / "001-lesion-0.png") as picture:
            shown = np.asarray(picture)
            assert picture.info == {} and picture.mode == "RGB"
        np.testing.assert_allclose(shown[: len(expected)].astype(int), expected, atol=1)
        assert len(shown) > len(expected), "the banner is below it"


def test_eigen_cam_is_of_no_class(told, call, tmp_path):
    path = png(tmp_path / "a.png", 4)
    _, said = told(RUN, path, "--overlay", tmp_path / "look", "--cam", "eigen-cam")
    assert said["images"][0]["overlay"] == {"file": "001-a-0.png", "cam": "eigen-cam", "of_class": None}
    code, words = call(RUN, path, "--overlay", tmp_path / "other", "--cam", "eigen-cam", "--class", "nv")
    assert code == 2 and "the same for every class" in words


def test_planes_of_a_nodule_stand_side_by_side(told, tmp_path):
    cubes = np.random.default_rng(1).integers(0, 256, (2, 24, 24, 24), dtype=np.uint8)
    np.savez(tmp_path / "nodules.npz", images=cubes)
    code, said = told(NODULES, tmp_path / "nodules.npz", "--overlay", tmp_path / "look")
    assert code == 0 and len(said["images"]) == 2 and not said["images"][0]["warnings"]
    with Image.open(tmp_path / "look" / "001-nodules-1.png") as picture:
        assert picture.width == 3 * 448
    Image.fromarray(cubes[0, 0]).save(tmp_path / "flat.png")
    _, said = told(NODULES, tmp_path / "flat.png")
    assert "one plane, not three orthogonal ones" in said["images"][0]["warnings"][0]


def test_overlays_of_equal_names_are_kept_apart_and_nothing_is_replaced_unasked(call, tmp_path):
    files = [png(tmp_path / folder / "scan.png", seed) for seed, folder in enumerate(("a", "b"))]
    hostile = png(tmp_path / "c" / "\x1b[31m..:*ä -7.png", 5)
    look = tmp_path / "new" / "look"
    assert call(RUN, *files, hostile, "--overlay", look)[0] == 0
    names = sorted(path.name for path in look.iterdir())
    assert names == ["001-scan-0.png", "002-scan-0.png", "003-_31m.._-7-0.png"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in look.iterdir())
    before = {path.name: path.read_bytes() for path in look.iterdir()}
    second = np.asarray(Image.open(look / "002-scan-0.png")).astype(int)
    assert np.abs(second - np.asarray(Image.open(look / "001-scan-0.png"))).max() > 50
    code, words = call(RUN, files[1], "--overlay", look)
    assert code == 2 and "001-scan-0.png: it is there already; --force replaces it" in words
    assert {path.name: path.read_bytes() for path in look.iterdir()} == before
    assert call(RUN, files[1], "--overlay", look, "--force")[0] == 0
    replaced = np.asarray(Image.open(look / "001-scan-0.png"))
    np.testing.assert_allclose(replaced[:448], second[:448], atol=2)


def test_an_overlay_never_takes_the_place_of_an_input(call, tmp_path):
    second = png(tmp_path / "001-a-0.png", 2)
    first, before = png(tmp_path / "a.png", 1), second.read_bytes()
    code, words = call(RUN, first, second, "--overlay", tmp_path, "--force")
    assert code == 2 and "take the place of this input" in words and second.read_bytes() == before
