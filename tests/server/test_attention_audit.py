"""How much attention lies in masks: masks follow their images, figures are those of plain loops, nothing is silent."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from aiseeme_models.analysis.attention_summary import Looked, summarise
from aiseeme_models.analysis.cam import grad_cam
from aiseeme_models.downstream.intervals import resampled_weights
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.masks import mask_files, mask_of, read_mask
from aiseeme_models.images.pipeline import Fit, Pipeline, square
from aiseeme_models.images.preprocessing import preprocess, preprocessing
from federation_configs.loading import load_config
from server.attention import FILE, PRIOR, AttentionAudit, audit_attention
from server.global_model import load_backbone, load_classifier
from server.progress import Progress
from tests.conftest import DATA
from tests.server.finished_runs import finished_run, run_config

HOLDOUT = {"test": 0.5, "validation": 0.1}
CLASSES = {"red": ["red"], "blue": ["blue"]}
NO_MASK = "lesion-033"  # of a test patient
PRETRAINED, OTHER, CLASSIFIER = "20261125-120000-aaaaaa", "20261125-120000-bbbbbb", "20261125-120000-cccccc"


def write_lesions(folder: Path, count: int, *, seed: int = 0) -> Path:
    """Pictures of 60x48 px with a red or blue disc and its mask, two of each patient, all but one with a mask."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    y, x = np.mgrid[0:48, 0:60]
    rows = []
    for index in range(count):
        label = ("red", "blue")[(index // 2) % 2]
        row, column, radius = random.integers(14, 34), random.integers(16, 44), random.integers(5, 12)
        disc = (y - row) ** 2 + (x - column) ** 2 < radius**2
        picture = random.normal(0.6, 0.05, (48, 60, 3))
        picture[disc] = (0.7, 0.1, 0.1) if label == "red" else (0.1, 0.1, 0.7)
        name = f"lesion-{index:03d}"
        Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8)).save(folder / "images" / f"{name}.png")
        if name != NO_MASK:
            Image.fromarray(disc).save(folder / "masks" / f"{name}_segmentation.png")
        rows.append({"file": f"{name}.png", "label": label, "patient_id": f"p{index // 2}"})
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lesions(tmp_path_factory.mktemp("lesions") / "clinic", 60)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pretrained backbones and a classifier, made without training."""
    home = tmp_path_factory.mktemp("runs")
    small: dict[str, Any] = {"model": {"backbone": "resnet-tiny"}, "holdout": HOLDOUT}
    finished_run(home, run_config(**small), run=PRETRAINED)
    finished_run(home, run_config(**small, seed=1), run=OTHER)
    stage = {"task": "classification", "rounds": 2, "batch_size": 4, "options": {"classes": CLASSES}}
    made = finished_run(home, run_config(**small, curriculum={"stage": [stage]}), run=CLASSIFIER)
    weight = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    give_head(made, weight)
    return home


def give_head(run: Path, weight: torch.Tensor) -> None:
    """A head of these weights to a run's model, as its manifest vouches for it."""
    path, manifest = run / "model" / "head.safetensors", run / "model" / "model.json"
    save_file({"weight": weight, "bias": torch.zeros(2)}, path)
    told = json.loads(manifest.read_text())
    told |= {"head_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "classes": sorted(CLASSES)}
    manifest.write_text(json.dumps(told))


def audited(home: Path, folder: Path, *runs: str, **changes: Any) -> AttentionAudit:
    settings = {"masks": None, "cam": "grad-cam", "images": 1000, "untrained": False, "device": "cpu"} | changes
    return audit_attention(runs, folder, home=home, progress=Progress(Console(quiet=True)), **settings)


def who_tests(home: Path, folder: Path) -> set[str]:
    """The images of the test patients, as the catalogue of an earlier audit has them."""
    from client.scanning import scan
    from client.site_home import SiteHome

    rows = scan(folder, SiteHome(home), run_config().images.pipeline).rows
    return {row.file for row in rows if row.point < HOLDOUT["test"] * 4096}


def loops(
    folder: Path, home: Path, audit: AttentionAudit
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Files, energies and mask shares of the classifier's maps of all images with a mask, one by one."""
    config = load_config(home / CLASSIFIER / "config.toml")
    model = home / CLASSIFIER / "model"
    network = load_classifier(model, load_backbone(model, config)).eval()
    plain = BatchAugmentation.of(config.images.resolved_preset).plain
    names, energies, shares = [], [], []
    with (folder / "labels.csv").open() as file:
        for row in csv.DictReader(file):
            if row["file"] == f"{NO_MASK}.png":
                continue
            image = plain(preprocess(preprocessing(config.images), folder / "images" / row["file"]).unsqueeze(0))
            place = sorted(CLASSES).index(row["label"])
            cam = grad_cam(network.backbone, network.fc, image, torch.tensor([place]))
            cam = torch.nn.functional.interpolate(cam[None], size=(32, 32), mode="bilinear")[0, 0].double().numpy()
            mask = Image.open(folder / "masks" / row["file"].replace(".png", "_segmentation.png"))
            seen = mask.convert("L").crop((6, 0, 54, 48)).resize((32, 32), Image.Resampling.BILINEAR)
            inside = np.asarray(seen) >= 128
            names.append(row["file"])
            shares.append(inside.mean())
            energies.append(cam[inside].sum() / cam.sum() if cam.sum() else np.nan)
    return names, np.array(energies), np.array(shares)


def test_figures_are_those_of_a_loop_over_test_images(home: Path, folder: Path) -> None:
    audit = audited(home, folder, CLASSIFIER)
    names, energies, shares = loops(folder, home, audit)
    tested = who_tests(home, folder) & set(names)
    chosen = np.array([name in tested for name in names]) & ~np.isnan(energies)
    row = audit.rows[0]
    assert row.images == chosen.sum() and row.images + row.zero_maps == len(tested) > 20
    assert row.energy == pytest.approx(energies[chosen].mean(), abs=1e-5)
    assert row.mask_share == pytest.approx(shares[chosen].mean(), abs=1e-6)
    assert row.gain == pytest.approx(row.energy - row.mask_share)
    assert row.energy_low < row.energy < row.energy_high
    assert (row.kind, row.head, row.to_first) == ("classifier", "its own head", None)
    assert audit.followed == {"true class": len(tested), "predicted class": 0}
    assert (audit.without_mask, audit.test_images) == (1, len(tested) + 1)
    assert (audit.size, audit.map_size) == (32, 2)


def test_models_are_compared_on_the_same_images_and_written_down(home: Path, folder: Path) -> None:
    audit = audited(home, folder, OTHER, PRETRAINED, CLASSIFIER, untrained=True)
    assert [row.model for row in audit.rows] == [
        OTHER,
        PRETRAINED,
        CLASSIFIER,
        f"untrained {OTHER}",
        f"untrained {PRETRAINED}",  # of the same seed as the classifier: one start, once
        PRIOR,
    ]
    assert [row.head for row in audit.rows] == [
        "linear probe",
        "linear probe",
        "its own head",
        *2 * ["linear probe"],
        None,
    ]
    first, alone = audit.rows[0], audited(home, folder, PRETRAINED).rows[0]
    assert audit.rows[1].model_copy(update={"to_first": None}) == alone, "who else is there changes nothing"
    for row in audit.rows[1:]:
        between = row.to_first
        assert between.energy_low <= between.energy <= between.energy_high
        if not first.zero_maps and not row.zero_maps:
            assert between.energy == pytest.approx(row.energy - first.energy)
    written = json.loads((home / OTHER / FILE).read_text())
    assert AttentionAudit.model_validate(written) == audit
    assert set(written["rows"][0]) >= {"model", "kind", "images", "energy", "energy_low", "energy_high"}
    assert set(written["rows"][0]) >= {"iou", "iou_low", "iou_high", "mask_share"}
    assert not (home / CLASSIFIER / FILE).exists() or json.loads((home / CLASSIFIER / FILE).read_text()) != written


def test_eigen_cam_needs_neither_labels_nor_a_head(home: Path, folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "images").symlink_to(folder / "images")
    (bare / "masks").symlink_to(folder / "masks")
    audit = audited(home, bare, PRETRAINED, cam="eigen-cam")
    assert audit.rows[0].head is None and audit.rows[0].energy is not None and audit.followed == {}
    with pytest.raises(InputError, match=r"of 0 classes; .* --cam eigen-cam"):
        audited(home, bare, PRETRAINED)
    assert audited(home, bare, CLASSIFIER).followed["true class"] == 0, "a classifier predicts where nobody knows"


def test_what_knows_only_where_masks_lie_is_told_beside_the_models(home: Path, folder: Path) -> None:
    audit = audited(home, folder, PRETRAINED, cam="eigen-cam")
    pipeline = run_config().images.pipeline
    masks = {
        name: read_mask(
            folder / "masks" / name.replace(".png", "_segmentation.png"), folder / "images" / name, pipeline
        )
        for name in who_tests(home, folder) - {f"{NO_MASK}.png"}
    }
    energies = []
    for name, mask in masks.items():
        patient = int(name[7:10]) // 2
        others = sum(one.astype(float) for other, one in masks.items() if int(other[7:10]) // 2 != patient)
        energies.append(others[mask].sum() / others.sum())
    assert audit.rows[-1].model == PRIOR
    assert audit.rows[-1].energy == pytest.approx(np.mean(energies), abs=1e-6)


@pytest.mark.parametrize("runs", [(OTHER, OTHER), (PRETRAINED, OTHER, OTHER), (OTHER, PRETRAINED, OTHER)])
def test_no_run_is_looked_at_twice(runs: tuple[str, ...], home: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=f"{OTHER} is named twice"):
        audited(home, folder, *runs)


def test_maps_of_zeros_are_counted_and_no_figure_is_nan(home: Path, folder: Path, tmp_path: Path) -> None:
    config = load_config(home / CLASSIFIER / "config.toml")
    made = finished_run(tmp_path / "runs", config, run=CLASSIFIER)
    give_head(made, torch.zeros(2, 128))
    audit = audited(tmp_path / "runs", folder, CLASSIFIER)
    row = audit.rows[0]
    assert row.images == 0 and row.zero_maps > 20 and row.energy is None and row.mask_share is None
    assert any(f"0 everywhere, left out: {row.zero_maps} of {CLASSIFIER}" in one for one in audit.sentences)
    assert "NaN" not in (made / FILE).read_text()


def test_means_intervals_and_pairs_are_those_of_plain_resampling() -> None:
    random = np.random.default_rng(0)
    patients = [f"p{index // 2}" for index in range(60)]
    one, two, share = random.random(60), random.random(60), random.random(60)
    two[:5] = np.nan
    first, second = summarise([Looked(one, one), Looked(two, two)], share, patients)
    assert (first.images, second.images, second.zero_maps) == (60, 55, 5)
    assert second.means["share"].value == pytest.approx(share[5:].mean())
    assert second.to_first["energy"].value == pytest.approx((two - one)[5:].mean())
    means = [
        float(np.average((two - one)[5:], weights=row))
        for block in resampled_weights(patients[5:], seed=0)
        for row in block
    ]
    interval = second.to_first["energy"].interval
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(means, [0.025, 0.975]))
    (few,) = summarise([Looked(one[:6], one[:6])], share[:6], patients[:6])
    assert few.means["energy"].interval is None, "three patients"


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(171, 128), (60, 97), (31, 31)])
def test_a_mask_goes_where_its_image_goes(fit: Fit, size: tuple[int, int], tmp_path: Path) -> None:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    inside = (x > size[0] * 0.3) & (y < size[1] * 0.6) & (x + y > 30)
    Image.fromarray(inside).save(tmp_path / "mask.png")
    Image.fromarray((inside[..., None] * np.array([255, 255, 255])).astype(np.uint8)).save(tmp_path / "image.png")
    pipeline = Pipeline(channels=3, fit=fit, size=48)
    picture, _ = square(np.asarray(Image.open(tmp_path / "image.png")), pipeline)
    mask = read_mask(tmp_path / "mask.png", tmp_path / "image.png", pipeline)
    np.testing.assert_array_equal(mask, picture[0] >= 128)


def test_masks_mean_the_same_in_whatever_form_they_are_stored(tmp_path: Path) -> None:
    y, x = np.mgrid[0:64, 0:80]
    left, right = (x < 30) & (y > 20), (x > 50) & (y > 20)
    both = left | right
    Image.fromarray(np.zeros((64, 80, 3), np.uint8)).save(tmp_path / "image.png")
    forms = {
        "bits.png": Image.fromarray(both),
        "ones.png": Image.fromarray(both.astype(np.uint8)),
        "lungs.png": Image.fromarray((left + 2 * right).astype(np.uint8)),
        "colour.png": Image.fromarray((both[..., None] * np.array([0, 255, 0])).astype(np.uint8)),
        "deep.png": Image.fromarray((both * 65535).astype(np.uint16)),
        "noisy.jpg": Image.fromarray((both * 255).astype(np.uint8)),
        "twice.png": Image.fromarray(np.kron(both, np.ones((2, 2), bool))),
    }
    pipeline = Pipeline(channels=1, fit="pad", size=40)
    wanted = np.zeros((40, 40), bool)
    wanted[4:36] = np.asarray(Image.fromarray((both * 255).astype(np.uint8)).resize((40, 32), 2)) >= 128
    for name, form in forms.items():
        form.save(tmp_path / name)
        np.testing.assert_array_equal(read_mask(tmp_path / name, tmp_path / "image.png", pipeline), wanted, name)


def test_a_mask_is_found_by_the_name_of_its_image(tmp_path: Path) -> None:
    for name in (
        "a.png",
        "sub/b_segmentation.png",
        "IMD1_lesion.png",
        "x_superpixels.png",
        ".hidden.png",
        "1.2.840.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = mask_files(tmp_path)
    files = {"a.dcm": "a.png", "sub/b.jpg": "sub/b_segmentation.png", "IMD1.png": "IMD1_lesion.png"}
    files |= {"1.2.840": "1.2.840.png", "1.2.840.dcm": "1.2.840.png"}
    assert {file: mask_of(found, file) for file in files} == {file: tmp_path / name for file, name in files.items()}
    assert mask_of(found, "b.jpg") is None and mask_of(found, "x.png") is None
    (tmp_path / "a_mask.png").touch()
    with pytest.raises(InputError, match=r"a\.png and a_mask\.png are masks of the same image"):
        mask_files(tmp_path)


def test_real_masks_lie_over_their_lesions() -> None:
    folder = DATA / "skin_ph2"
    if not (folder / "masks").is_dir():
        pytest.skip("the images of PH2 are not there: set AISEEME_DATA to the folder of real images")
    pipeline, masks = Pipeline(channels=3, fit="crop", size=64), mask_files(folder / "masks")
    darker = 0
    images = sorted((folder / "images").iterdir())[:60]
    for image in images:
        mask = read_mask(masks[image.stem], image, pipeline)
        picture = square(np.asarray(Image.open(image).convert("RGB")), pipeline)[0].mean(axis=0)
        darker += mask.all() or picture[mask].mean() < picture[~mask].mean()
    assert darker >= 58, "lesions are darker than the skin around them"
