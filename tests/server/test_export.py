"""What leaves `aiseeme export` computes what the backbone computes, says how images are prepared, and runs nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.bundle.utils import DEFAULT_METADATA
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.images import pipeline
from aiseeme_models.images.preprocessing import preprocess, preprocessing
from aiseeme_models.images.presets import ImageOptions
from federation_configs.loading import load_config
from server.cli import app
from server.coordinator_key import OwnKey
from server.export import export_run
from server.exporting import export_formats
from server.exporting.facts import Preprocessing
from server.exporting.monai_bundle import REDUCING_GAP, inference
from server.global_model import load_backbone
from server.lineage import verify
from server.signed_files import MODEL, write_signed
from tests.server.finished_runs import RUN, finished_run, run_config

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
NAMED = OwnKey(KEY, named=True)
FILES = {"safetensors": "backbone.safetensors", "torchscript": "backbone.ts", "torch-export": "backbone.pt2"}
FILES |= {"onnx": "backbone.onnx", "monai": "monai-bundle"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed run of a small ResNet-18 at 32 pixels, exported in every format."""
    home = tmp_path_factory.mktemp("runs")
    finished_run(home, run_config(model={"backbone": "resnet18", "norm": "batch"}), key=KEY)
    for name in FILES:
        made = export_run(RUN, name, home=home, key=NAMED)
        assert made.signed and made.path == home / RUN / "exports" / FILES[name]
    return home


@pytest.fixture
def spoilt(home: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(home, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    finished_run(tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def no_federation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No federation of the person who runs the tests is found."""
    monkeypatch.delenv("AISEEME_HOME", raising=False)
    monkeypatch.delenv("AISEEME_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)


def exported(home: Path, name: str) -> Path:
    return home / RUN / "exports" / FILES[name]


def torchscript(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.jit.load(path)


def torch_export(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.export.load(path).module()


def onnx(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def torchvisions(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The very names and shapes of torchvision's own ResNet: nothing of ours is needed to use them."""
    model = torchvision.models.resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(load_file(path))
    return model.eval()


READERS = {
    "safetensors": torchvisions,
    "torchscript": torchscript,
    "torch-export": torch_export,
    "onnx": onnx,
    "monai": lambda path: torchscript(path / "models" / "model.ts"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_format_gives_the_features_of_the_backbone_for_any_batch(name, batch, home):
    backbone = load_backbone(home / RUN / "model", load_config(home / RUN / "config.toml")).eval()
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected, found = backbone(images), READERS[name](exported(home, name))(images)
    assert found.shape == expected.shape == (batch, 512)
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("norm", ["group", "group-ws", "batch-local"])
@pytest.mark.parametrize("name", ["safetensors", "torchscript", "torch-export"])
def test_backbones_of_every_norm_are_exported(name, norm, tmp_path):
    """`export_run` holds each against the backbone before it writes it, and fails where they differ."""
    finished_run(tmp_path, run_config(model={"backbone": "resnet-small", "norm": norm}))
    assert export_run(RUN, name, home=tmp_path).path.stat().st_size > 0


def test_onnx_has_a_free_batch_size_and_passes_the_checker(home):
    import onnx

    model = onnx.load(exported(home, "onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].name == "images" and model.graph.output[0].name == "features"
    first, *rest = model.graph.input[0].type.tensor_type.shape.dim
    assert first.dim_param and not first.dim_value
    assert [dim.dim_value for dim in rest] == [3, 32, 32]


def facts_in(home: Path, name: str) -> dict[str, Any]:
    path = exported(home, name)
    if name == "safetensors":
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["aiseeme"])
    if name == "onnx":
        import onnx

        return json.loads(next(prop.value for prop in onnx.load(path).metadata_props if prop.key == "aiseeme"))
    if name == "monai":
        return json.loads((path / "configs" / "metadata.json").read_bytes())["aiseeme"]
    extra = {"aiseeme.json": ""}
    if name == "torchscript":
        torch.jit.load(path, _extra_files=extra)
    else:
        torch.export.load(path, extra_files=extra)
    return json.loads(extra["aiseeme.json"])


@pytest.mark.parametrize("name", FILES)
def test_every_format_says_which_model_it_is_and_how_images_are_prepared(name, home):
    facts = facts_in(home, name)
    model = json.loads((home / RUN / "model" / "model.json").read_bytes())
    assert (facts["run"], facts["model_sha256"], facts["config_sha256"]) == (
        RUN,
        model["sha256"],
        model["config_sha256"],
    )
    assert (facts["backbone"], facts["norm"], facts["feature_dim"]) == ("resnet18", "batch", 512)
    prepared = facts["preprocessing"]
    assert prepared["preset"] == "dermoscopy" and prepared["size"] == 32 and prepared["fit"] == "crop"
    assert prepared["mean"] == [0.755, 0.545, 0.570] and prepared["std"] == [0.135, 0.153, 0.169]
    assert prepared["window"] is None and prepared["value_range"] == [0, 1]
    manifest = json.loads(Path(f"{exported(home, name)}.manifest.json").read_bytes())
    assert manifest["facts"] == facts


def test_a_window_in_hounsfield_units_is_written_as_numbers():
    assert Preprocessing.of(ImageOptions(preset="ct-lung", size=32)).window == (-1350, 150)


@pytest.mark.parametrize("name", FILES)
def test_no_folder_of_the_machine_is_in_what_leaves_it(name, home):
    path = exported(home, name)
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_dir():
            continue
        contents = [file.read_bytes()]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                contents = [archive.read(record) for record in archive.namelist()]
        for content in contents:
            for trace in (str(Path(__file__).parents[2]), "site-packages", str(home), os.environ.get("HOME", "/root")):
                assert trace.encode() not in content, f"{trace} in {file.name}"


# The MONAI bundle


def test_the_bundle_has_what_monai_asks_for(home, tmp_path):
    """The keys of MONAI's own template, and its check of the network against what metadata.json says of it."""
    bundle = exported(home, "monai")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_bytes())
    assert set(DEFAULT_METADATA) <= set(metadata)
    assert metadata["schema"].startswith("https://github.com/Project-MONAI/")
    schema = {"type": "object", "required": sorted(DEFAULT_METADATA), "properties": {"version": {"type": "string"}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))  # the real one is on the net
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(tmp_path / "schema.json"))
    verify_net_in_out(
        net_id="network",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(bundle),
    )
    assert (bundle / "docs" / "README.md").read_text().count("## Use of this bundle") == 1


def test_a_backbone_that_learned_labels_is_not_called_pretrained_without(home, tmp_path):
    """Where every site has a head of its own, the run's model has no classes, but it is not self-supervised."""
    options = {"classes": {"mel": ["mel"], "nv": ["nv"]}, "head": "personal"}
    stage = {"task": "classification", "rounds": 1, "batch_size": 4, "choose": "last", "options": options}
    finished_run(tmp_path / "runs", run_config(curriculum={"stage": [stage]}))
    bundle = export_run(RUN, "monai", home=tmp_path / "runs").path
    own, plain = (
        json.loads((folder / "configs" / "metadata.json").read_bytes()) for folder in (bundle, exported(home, "monai"))
    )
    assert own["aiseeme"]["learns_labels"] and own["aiseeme"]["classes"] == []
    assert "without labels" not in own["description"] and "self-supervised" not in own["task"]
    assert "heads stay at the sites" in own["description"]
    assert "pretrained without labels" in plain["description"] and not plain["aiseeme"]["learns_labels"]


def test_the_bundles_weights_need_no_pickle(home):
    bundle = exported(home, "monai")
    assert {path.suffix for path in (bundle / "models").iterdir()} == {".safetensors", ".ts"}
    network, plain = torch.jit.load(bundle / "models" / "model.ts"), load_file(bundle / "models/backbone.safetensors")
    state = network.state_dict()
    assert state.keys() == plain.keys() and all(state[name].equal(plain[name]) for name in plain)


def test_the_bundle_computes_features_of_pictures(home, tmp_path):
    """Played by MONAI alone, from files; against our own pipeline and backbone."""
    rng = np.random.default_rng(0)
    paths = []
    for index, (height, width) in enumerate(((90, 150), (40, 33), (300, 300))):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        paths.append(tmp_path / f"{index}.png")
        coarse.resize((width, height)).save(paths[-1])
    parser = ConfigParser(json.loads((exported(home, "monai") / "configs" / "inference.json").read_bytes()))
    parser.update(
        {"bundle_root": str(exported(home, "monai")), "images": [str(path) for path in paths], "device": "cpu"}
        | {"output": str(tmp_path / "features.npy")}
    )
    parser.parse()
    parser.get_parsed_content("run")
    options = load_config(home / RUN / "config.toml").images
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (options.resolved_preset.mean, options.resolved_preset.std)
    )
    images = torch.stack([preprocess(preprocessing(options), path) / 255 for path in paths])
    backbone = load_backbone(home / RUN / "model", load_config(home / RUN / "config.toml")).eval()
    with torch.no_grad():
        expected = backbone((images - mean) / std).numpy()
    found = np.load(tmp_path / "features.npy")
    assert found.shape == expected.shape == (3, 512)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def prepared(preset: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """An image as the bundle prepares it, and as our pipeline does: normalised, in units of 1 / 255."""
    options = ImageOptions(preset=preset, size=32)
    parser = ConfigParser(inference(Preprocessing.of(options)))
    found = parser.get_parsed_content("preprocessing")(str(path))
    mean, std = (
        np.array(values)[:, None, None] for values in (options.resolved_preset.mean, options.resolved_preset.std)
    )
    expected = preprocess(preprocessing(options), path).numpy()
    assert found.shape == expected.shape
    return found.numpy() * std * 255 + mean * 255, expected.astype(float)


@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (32, 32), (20, 31)])
@pytest.mark.parametrize("preset", ["dermoscopy", "chest-xray"])
def test_the_bundle_prepares_pictures_bit_for_bit(preset, shape, tmp_path):
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    found, expected = prepared(preset, tmp_path / "a.png")
    assert np.abs(found - expected).max() < 0.01


def test_the_bundle_prepares_ct_slices_as_the_federation_did(tmp_path):
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    rng = np.random.default_rng(2)
    values = np.asarray(Image.fromarray(rng.integers(-1400, 400, (9, 12)).astype(np.float32)).resize((60, 44)))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_ = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    slice_.SOPClassUID, slice_.SOPInstanceUID, slice_.Modality = CTImageStorage, meta.MediaStorageSOPInstanceUID, "CT"
    slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = *values.shape, 1
    slice_.PhotometricInterpretation = "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
    slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
    slice_.PixelSpacing, slice_.ImagePositionPatient = [1, 1], [0, 0, 0]
    slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    slice_.PixelData = (values + 1024).round().astype(np.int16).tobytes()
    pydicom.dcmwrite(tmp_path / "a.dcm", slice_)
    found, expected = prepared("ct-lung", tmp_path / "a.dcm")
    assert expected.std() > 20
    assert np.abs(found - expected).max() < 1.01  # Pillow and torch round alike but for the last of 255 levels


def test_the_bundle_shrinks_as_the_cache_does():
    assert pipeline._REDUCING_GAP == REDUCING_GAP


# What is not loaded, and what is not written


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self):
        return (os.mkdir, (str(self.sprung),))


def torch_archive(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(1), "trap": trap}, buffer)
    return buffer.getvalue()


def old_torch_file(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    torch.save({"trap": trap}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (torch_archive, "a zip archive, as torch.save writes it with a pickle inside"),
        (old_torch_file, "a Python pickle"),
        (pickle.dumps, "a Python pickle"),
        (lambda trap: pickle.dumps(trap, protocol=0), "no safetensors file"),
        (lambda trap: b"\x08\0\0\0\0\0\0\0{}      " + torch_archive(trap), "no safetensors file"),
        (lambda trap: b"", "no safetensors file"),
        (lambda trap: b"\xff" * 8 + b"{}", "no safetensors file"),
    ],
)
def test_a_pickle_under_the_name_of_safetensors_is_refused_and_not_opened(content, why, unsigned, tmp_path):
    weights, manifest = (unsigned / RUN / "model" / name for name in ("backbone.safetensors", "model.json"))
    weights.write_bytes(content(Trap(tmp_path / "sprung")))
    facts = json.loads(manifest.read_bytes()) | {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(facts))
    with pytest.raises(InputError, match=why):
        export_run(RUN, "safetensors", home=unsigned)
    assert not (tmp_path / "sprung").exists() and not (unsigned / RUN / "exports").exists()
    results = unsigned / RUN / "results.json"
    results.write_text(json.dumps(json.loads(results.read_bytes()) | {"backbone_sha256": facts["sha256"]}))
    assert [why in problem for problem in verify(RUN, unsigned).problems] == [True]
    assert not (tmp_path / "sprung").exists()


def test_what_does_not_compute_the_same_is_not_written(unsigned, monkeypatch):
    real = torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: lambda images: real(*a, **k)(images) * 1.001)
    with pytest.raises(RunFailed, match="deviates from the model by"):
        export_run(RUN, "torchscript", home=unsigned)
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: lambda images: real(*a, **k)(images) * float("nan"))
    with pytest.raises(RunFailed, match="deviates"):
        export_run(RUN, "torchscript", home=unsigned)
    assert not (unsigned / RUN / "exports").exists()


def test_what_is_there_is_replaced_only_when_that_is_said(unsigned, tmp_path):
    for name in ("safetensors", "monai"):
        target = export_run(RUN, name, home=unsigned).path
        with pytest.raises(InputError, match="--force replaces it"):
            export_run(RUN, name, home=unsigned)
        file = target if target.is_file() else target / "configs" / "metadata.json"
        file.write_bytes(b"")
        export_run(RUN, name, home=unsigned, force=True)
        assert file.stat().st_size > 0
        assert verify(str(target), unsigned).whole
    assert not [path for path in (unsigned / RUN / "exports").iterdir() if path.name.startswith(".")]


def test_a_folder_with_other_peoples_files_is_never_replaced(unsigned, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="cannot be read"):
        export_run(RUN, "monai", home=unsigned, out=tmp_path / "mine", force=True)
    target = export_run(RUN, "monai", home=unsigned).path
    (target / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="files that no export wrote"):
        export_run(RUN, "monai", home=unsigned, force=True)
    assert (tmp_path / "mine" / "thesis.tex").exists() and (target / "thesis.tex").exists()


@pytest.mark.parametrize("out", [".", "..", "/", "folder", "link", "a" * 300])
def test_an_unfit_place_is_refused(out, unsigned, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises((InputError, OSError)):
        export_run(RUN, "safetensors", home=unsigned, out=Path(out), force=True)
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize("run", ["../runs", "..", "/", "", "%", f"../runs/{RUN}", f"{RUN}/../{RUN}"])
def test_no_trick_with_a_runs_id_exports_another_folder(run, unsigned):
    with pytest.raises(InputError):
        export_run(run, "safetensors", home=unsigned)


@pytest.mark.parametrize("folder", ["../runs", "..", ".", "", f"../runs/{RUN}x"])
def test_a_folder_that_is_no_run_s_is_not_exported(folder, unsigned, monkeypatch):
    monkeypatch.chdir(unsigned)
    with pytest.raises(InputError):
        export_run(folder, "safetensors", home=unsigned)


def test_a_run_s_folder_is_exported_and_not_signed_for_nobody_has_signed_its_card(home, tmp_path):
    received = tmp_path / "received"
    shutil.copytree(home / RUN, received, ignore=shutil.ignore_patterns("exports"))
    (received / "model" / "README.md").write_text("what a stranger has to say")
    made = export_run(str(received), "monai", home=home, key=NAMED)
    assert made.path.parent == received.resolve() / "exports" and not made.signed
    assert export_run(RUN, "monai", home=home, key=NAMED, out=tmp_path / "own").signed
    (received / "model" / "README.md").unlink()
    (received / "model" / "README.md").symlink_to(home / RUN / "config.toml")
    linked = export_run(str(received), "monai", home=home, key=NAMED, force=True)
    assert "seed = " not in (linked.path / "docs" / "README.md").read_text()


def test_an_unknown_format_is_told_with_those_that_there_are(unsigned):
    assert sorted(export_formats) == sorted(FILES)
    with pytest.raises(InputError, match="monai, onnx, safetensors, torch-export, torchscript"):
        export_run(RUN, "keras", home=unsigned)


def test_a_model_whose_configuration_was_edited_is_not_exported(unsigned):
    config = unsigned / RUN / "config.toml"
    config.write_text(config.read_text().replace("seed = 0", "seed = 1"))
    model = re.escape(str(unsigned / RUN / "model"))
    with pytest.raises(InputError, match=f"not the configuration that the model in {model} was trained with"):
        export_run(RUN, "safetensors", home=unsigned)


# Who vouches for an export


@pytest.mark.parametrize("name", FILES)
def test_an_export_is_verified_back_to_round_0(name, home):
    for subject in (exported(home, name), f"{exported(home, name)}.manifest.json"):
        found = verify(str(subject), home, KEY.public_key(), demanded=True)
        assert found.problems == [] and found.signed
        assert any("5 checkpoints, round 0 to 4" in line for line in found.verified)
        assert any("7 signatures" in line for line in found.verified)


def test_what_was_changed_in_an_export_is_named(spoilt):
    def problems(name: str) -> str:
        return "\n".join(verify(str(exported(spoilt, name)), spoilt, KEY.public_key(), demanded=True).problems)

    content = bytearray(exported(spoilt, "onnx").read_bytes())
    content[-1] ^= 1
    exported(spoilt, "onnx").write_bytes(content)
    assert "backbone.onnx is not the file that its manifest was written for" in problems("onnx")
    bundle = exported(spoilt, "monai")
    (bundle / "models" / "model.pt").write_bytes(b"")
    (bundle / "configs" / "inference.json").unlink()
    assert "monai-bundle/models/model.pt: no export wrote this file" in problems("monai")
    assert "configs/inference.json is not there" in problems("monai")
    manifest = Path(f"{exported(spoilt, 'torchscript')}.manifest.json")
    manifest.write_text(manifest.read_text().replace('"crop"', '"pad"'))
    assert "backbone.ts.manifest.json is not what its signature was made for" in problems("torchscript")
    (spoilt / RUN / "exports" / "backbone.pt2.manifest.sig").unlink()
    assert "not signed: the export backbone.pt2.manifest.json" in problems("torch-export")


def test_an_export_of_another_model_is_found_out(spoilt):
    """All is signed, but the run was given another model since."""
    model = spoilt / RUN / "model"
    shutil.rmtree(spoilt / RUN / "exports" / "monai-bundle")
    facts = json.loads((model / "model.json").read_bytes()) | {"version": "9"}
    write_signed(model / "model.json", json.dumps(facts).encode(), MODEL, KEY)
    found = verify(str(exported(spoilt, "safetensors")), spoilt, KEY.public_key(), demanded=True)
    assert found.problems == [f"the export was not made from the model that run {RUN} has now"]


def test_an_export_without_its_run_is_verified_for_itself(home, tmp_path):
    for file in exported(home, "safetensors").parent.glob("backbone.safetensors*"):
        shutil.copy(file, tmp_path / file.name)
    found = verify(str(tmp_path / "backbone.safetensors"), tmp_path / "none", KEY.public_key(), demanded=True)
    assert found.whole and found.signed
    assert any("nothing before the export was looked at" in note for note in found.notes)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "..", "./a", "a//b", "", "a\\b"])
def test_an_exports_manifest_cannot_point_at_other_files(path, unsigned, tmp_path):
    target = export_run(RUN, "safetensors", home=unsigned).path
    manifest = Path(f"{target}.manifest.json")
    facts = json.loads(manifest.read_bytes())
    for change in ({"files": {path: "0" * 64}}, {"folder": path}, {"facts": facts["facts"] | {"run": path}}):
        manifest.write_text(json.dumps(facts | change))
        with pytest.raises(InputError, match="not an export's manifest"):
            verify(str(manifest), unsigned)


def test_a_key_signs_exports_only_of_models_that_it_signed(home, unsigned, tmp_path):
    with pytest.raises(InputError, match="model.json is not signed"):
        export_run(RUN, "safetensors", home=unsigned, key=NAMED)
    with pytest.raises(InputError, match="signed by another key"):
        export_run(RUN, "safetensors", home=home, key=OwnKey(OTHER, named=False), out=tmp_path / "a")
    made = export_run(RUN, "safetensors", home=unsigned, key=replace(NAMED, named=False))
    assert not made.signed and verify(str(made.path), unsigned).whole, "a simulation beside a federation"
    model = unsigned / RUN / "model"
    shutil.copy(home / RUN / "model" / "model.sig", model)
    with pytest.raises(InputError, match="not what its signature was made for"):
        export_run(RUN, "torchscript", home=unsigned)


def test_the_command_says_what_it_wrote(home, tmp_path):
    called = ["export", RUN, "--runs", str(home), "--format", "safetensors", "--out", str(tmp_path / "b.safetensors")]
    done = CliRunner().invoke(app, called)
    assert done.exit_code == 0, done.output
    assert f"wrote {tmp_path / 'b.safetensors'}" in done.output and "(not signed)" in done.output
    assert "crop to 32 px" in done.output
    done = CliRunner().invoke(app, [*called, "--force", "--json"])
    told = json.loads(done.stdout)
    assert told["path"] == str(tmp_path / "b.safetensors") and told["signed"] is False
    assert told["facts"]["preprocessing"]["size"] == 32
    assert len(load_file(tmp_path / "b.safetensors")) > 60
