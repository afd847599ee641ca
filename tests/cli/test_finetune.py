"""``aiseeme finetune`` trains a classifier over the run's hospitals, tests it, and refuses in words what cannot be."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from aiseeme_models.downstream.head_file import read_own_head, write_own_head
from aiseeme_models.images.augmentation import BatchAugmentation
from federation_configs.loading import load_config
from server import assessment
from server.cli import main
from server.global_model import load_backbone, load_classifier
from server.progress import Progress
from server.results import Results
from server.run_folder import SimulationPlan
from server.simulation import hospitals_of
from tests.cli.commands import called, site_options
from tests.conftest import write_pictures

CONFIG = """
name = "small"
seed = 5
[images]
preset = "dermoscopy"
size = 48
[model]
backbone = "resnet-tiny"
norm = "batch"
[[curriculum.stage]]
task = "rotation"
rounds = 1
batch_size = 8
[federation]
min_sites = 2
[holdout]
test = 0.3
validation = 0.4
[downstream.pattern]
classes = { stripes = ["stripes"], blobs = ["blobs"] }
rounds = 3
batch_size = 8
[downstream.own]
classes = { stripes = ["stripes"], blobs = ["blobs"] }
head = "personal"
choose = "last"
rounds = 5
lr = 3e-3
batch_size = 8
[downstream.device]
classes = { first = ["d0"], others = ["d1", "d2"] }
column = "device"
mode = "linear"
rounds = 1
batch_size = 8
"""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished pretraining run of two hospitals: the folder of runs, and its id."""
    root = tmp_path_factory.mktemp("finetune")
    folders = [write_pictures(root / name, 80, seed=i) for i, name in enumerate(("north", "south"))]
    (root / "small.toml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["aiseeme", "simulate", str(root / "small.toml"), *map(str, site_options(folders)),
                                   "--runs", str(root / "runs")])  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    (run,) = [path.name for path in (root / "runs").iterdir() if (path / "results.json").exists()]
    return root / "runs", run


def printed(words: str) -> Any:
    """The JSON at the beginning of what was said."""
    return json.JSONDecoder().raw_decode(words)[0]


def finetuned(monkeypatch: Any, capsys: Any, home: Path, run: str, *options: object) -> tuple[Results, Path]:
    code, out = called(monkeypatch, capsys, "finetune", run, *options, "--runs", home, "--json")
    assert code == 0, out
    results = Results.model_validate(printed(out))
    return results, home / results.run


def test_a_classifier_is_trained_tested_and_kept(pretrained, monkeypatch, capsys):
    home, run = pretrained
    results, folder = finetuned(monkeypatch, capsys, home, run, "--task", "pattern")
    assert results.status == "done" and results.rounds_done == 3 and results.probe is None
    assert run in results.initial
    classifier = results.downstream
    assert classifier.classes == ["blobs", "stripes"] and set(classifier.sites) == {"north", "south"}
    pooled = classifier.pooled
    assert pooled.n_test == sum(one.n_test for one in classifier.sites.values()) > 20
    assert sum(map(sum, pooled.confusion)) == pooled.n_test
    truth = [name for name, row in zip(pooled.per_class, pooled.confusion, strict=True) for _ in range(sum(row))]
    guess = [
        name
        for row in pooled.confusion
        for name, count in zip(pooled.per_class, row, strict=True)
        for _ in range(count)
    ]
    assert pooled.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, guess))
    low, high = pooled.intervals["balanced_accuracy"].low, pooled.intervals["balanced_accuracy"].high
    assert low <= pooled.balanced_accuracy <= high
    assert pooled.n_patients < pooled.n_test
    assert classifier.floor.n_test == pooled.n_test and classifier.floor.n_train == pooled.n_train
    best = results.stages[0].best_round
    assert best in (1, 2, 3)
    manifest = json.loads((folder / "model" / "model.json").read_text())
    assert manifest["classes"] == ["blobs", "stripes"]
    assert manifest["head_sha256"] == hashlib.sha256((folder / "model" / "head.safetensors").read_bytes()).hexdigest()
    assert load_file(folder / "model" / "head.safetensors")["weight"].shape[0] == 2
    page, card = (folder / "report.html").read_text(), (folder / "model" / "README.md").read_text()
    assert "What the classifier does" in page and f"{pooled.balanced_accuracy:.3f}" in page
    assert "blobs, stripes" in card and "pretrained without labels" not in card


def test_the_whole_classifier_is_exported_and_gives_its_probabilities(pretrained, monkeypatch, capsys, tmp_path):
    home, run = pretrained
    results, folder = finetuned(monkeypatch, capsys, home, run, "--task", "pattern")
    config = load_config(folder / "config.toml")
    network = load_classifier(folder / "model", load_backbone(folder / "model", config)).eval()
    assert network.temperature == results.downstream.pooled.calibration.temperature
    images = torch.randn(5, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images)
    for name, suffix in (("torchscript", ".ts"), ("onnx", ".onnx"), ("safetensors", ".safetensors")):
        code, said = called(monkeypatch, capsys, "export", results.run, "--format", name, "--runs", home,
                            "--out", tmp_path / f"model{suffix}")  # fmt: skip
        assert code == 0, said
    found = torch.jit.load(tmp_path / "model.ts")(images)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(5))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (ran,) = session.run(["probabilities"], {"images": images.numpy()})
    np.testing.assert_allclose(ran, expected.numpy(), atol=1e-5)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["aiseeme"])
    assert facts["classes"] == ["blobs", "stripes"] and facts["temperature"] == network.temperature
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["fc.weight"].shape[0] == 2 and "conv1.weight" in weights
    code, said = called(monkeypatch, capsys, "verify", results.run, "--runs", home)
    assert code == 0, said
    (folder / "model" / "head.safetensors").write_bytes(b"something else")
    code, said = called(monkeypatch, capsys, "verify", results.run, "--runs", home)
    assert code == 1 and "head.safetensors is not the file that its manifest was written for" in said
    code, said = called(monkeypatch, capsys, "export", results.run, "--format", "onnx", "--runs", home)
    assert code == 2 and "the file was altered" in said


def test_linear_mode_leaves_the_backbone_as_it_was_pretrained(pretrained, monkeypatch, capsys):
    home, run = pretrained
    results, folder = finetuned(monkeypatch, capsys, home, run, "--task", "device")
    before, after = (load_file(one / "model" / "backbone.safetensors") for one in (home / run, folder))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    assert results.backbone_sha256 == Results.load(home / run).backbone_sha256


def test_personal_heads_stay_at_the_sites_and_the_run_has_a_backbone(pretrained, monkeypatch, capsys):
    home, run = pretrained
    results, folder = finetuned(monkeypatch, capsys, home, run, "--task", "own")
    assert results.downstream.head == "personal" and set(results.downstream.sites) == {"north", "south"}
    assert results.downstream.pooled.n_test == sum(one.n_test for one in results.downstream.sites.values())
    assert not (folder / "model" / "head.safetensors").exists()
    manifest = json.loads((folder / "model" / "model.json").read_text())
    assert manifest["head_sha256"] is None and manifest["classes"] == []
    code, said = called(monkeypatch, capsys, "verify", results.run, "--runs", home)
    assert code == 0, said


def test_a_hospital_s_own_classifier_is_put_together_and_is_the_one_that_was_tested(
    pretrained, monkeypatch, capsys, tmp_path
):
    home, run = pretrained
    results, folder = finetuned(monkeypatch, capsys, home, run, "--task", "own")
    plan = SimulationPlan.load(folder)
    config = load_config(folder / "config.toml")
    data, quiet = [Path(one) for one in plan.data], Progress(Console(quiet=True))
    sites = hospitals_of(config, data, None, None, "cpu", home, folder, quiet).sites
    tested = assessment.tested_images(config, sites, sites)
    plain = BatchAugmentation.of(config.images.resolved_preset).plain
    for site in ("north", "south"):
        joined = tmp_path / site
        code, said = called(monkeypatch, capsys, "personal", results.run, "--runs", home, "--out", joined,
                            "--head", folder / "sites" / site / "own-head.safetensors")  # fmt: skip
        assert code == 0 and "a classifier of blobs, stripes" in said, said
        assert joined.stat().st_mode & 0o777 == 0o700
        assert "One hospital's own classifier" in (joined / "model" / "README.md").read_text()
        assert results.downstream.sites[site].balanced_accuracy > 0.8
        network = load_classifier(joined / "model", load_backbone(joined / "model", config)).eval()
        images = tested[site]
        with torch.no_grad():
            guess = network(plain(images.images.batch(torch.arange(len(images.images))))).argmax(dim=1)
        assert confusion_matrix(images.targets, guess).tolist() == [
            *map(list, results.downstream.sites[site].confusion)
        ]
    image = next(data[0].rglob("*.png"))
    code, said = called(monkeypatch, capsys, "predict", tmp_path / "north", image, "--json")
    assert code == 0 and set(printed(said)["images"][0]["probabilities"]) == {"blobs", "stripes"}
    code, said = called(monkeypatch, capsys, "export", tmp_path / "north", "--format", "onnx")
    assert code == 0, said
    session = onnxruntime.InferenceSession(tmp_path / "north" / "exports" / "backbone.onnx")
    assert [one.name for one in session.get_outputs()] == ["probabilities"]
    exported = tmp_path / "north" / "exports" / "backbone.onnx"
    assert exported.stat().st_mode & 0o777 == 0o600
    for subject in (tmp_path / "north", tmp_path / "north" / "model", exported):
        code, said = called(monkeypatch, capsys, "verify", subject, "--runs", home)
        assert code == 0 and "NOT SIGNED" in said and "one hospital's own" in said, said
    # An export with that layer over another backbone is no export of this run.
    beside = exported.with_name("backbone.onnx.manifest.json")
    beside.write_text(beside.read_text().replace(results.backbone_sha256, "0" * 64))
    code, said = called(monkeypatch, capsys, "verify", exported, "--runs", home)
    assert code == 1 and "was not made from the model" in said


def test_what_is_no_hospital_s_own_head_is_refused(pretrained, monkeypatch, capsys, tmp_path):
    home, run = pretrained
    results, folder = finetuned(monkeypatch, capsys, home, run, "--task", "own")
    head, out = folder / "sites" / "north" / "own-head.safetensors", tmp_path / "joined"

    def refused(reference: object, file: Path, target: Path = out) -> str:
        code, said = called(monkeypatch, capsys, "personal", reference, "--runs", home, "--head", file, "--out", target)
        assert code == 2 and not out.exists(), said
        return said

    own = read_own_head(head)
    bad = tmp_path / "bad.safetensors"
    assert "its hospitals have no heads of their own" in refused(run, head)
    assert "it is there already" in refused(results.run, head, tmp_path)
    assert "it is there already" in refused(results.run, head, tmp_path / "new" / "..")
    join = ("personal", results.run, "--runs", home, "--head")
    assert called(monkeypatch, capsys, *join, head, "--out", tmp_path / "a")[0] == 0
    assert "a hospital's own classifier already" in refused(tmp_path / "a", head)
    assert "no such file; `aiseeme-site head RUN" in refused(results.run, tmp_path / "none")
    write_own_head(bad, replace(own, run="another"))
    assert f"a head of run another, not of {results.run}" in refused(results.run, bad)
    write_own_head(bad, replace(own, round=6))
    assert "after round 6, and the model is that of round 5" in refused(results.run, bad)
    write_own_head(bad, replace(own, round=4))
    code, said = called(monkeypatch, capsys, *join, bad, "--out", tmp_path / "b")
    assert code == 0 and "its last layer is that of round 4, its backbone that of round 5" in said
    write_own_head(bad, replace(own, values=own.values[:-1]))
    assert "it does not fit the 2 classes" in refused(results.run, bad)
    for content in (b"\x80\x04pickle", (folder / "model" / "backbone.safetensors").read_bytes(), b""):
        bad.write_bytes(content)
        assert "not what `aiseeme-site head` writes" in refused(results.run, bad)


def test_a_run_that_is_killed_at_its_very_end_still_has_its_heads(pretrained, monkeypatch, capsys):
    home, run = pretrained
    whole, _ = finetuned(monkeypatch, capsys, home, run, "--task", "own")

    def killed(registry: object, results: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("server.registry.RunRegistry.finish", killed)
        code, _ = called(monkeypatch, capsys, "finetune", run, "--task", "own", "--runs", home)
    assert code != 0
    (cut,) = [path.name for path in home.iterdir() if path.name > whole.run and (path / "checkpoints").is_dir()]
    code, out = called(monkeypatch, capsys, "resume", cut, "--runs", home, "--json")
    assert code == 0, out
    assert Results.model_validate(printed(out)).downstream == whole.downstream


def test_from_scratch_it_begins_with_the_untrained_backbone(pretrained, monkeypatch, capsys):
    home, run = pretrained
    results, _ = finetuned(monkeypatch, capsys, home, run, "--task", "pattern", "--scratch", "--labels", "0.5")
    assert results.initial is None and results.downstream.labels == 0.5
    whole, _ = finetuned(monkeypatch, capsys, home, run, "--task", "pattern", "--scratch")
    assert results.downstream.pooled.n_train < whole.downstream.pooled.n_train
    assert results.downstream.pooled.n_test == whole.downstream.pooled.n_test


def test_another_seed_leaves_every_patient_at_his_hospital(monkeypatch, capsys, tmp_path):
    config = tmp_path / "dealt.toml"
    config.write_text(CONFIG)
    pictures = write_pictures(tmp_path / "all", 100, seed=5)
    code, out = called(monkeypatch, capsys, "simulate", config, "--data", pictures, "--sites", "2", "--partition",
                       "dirichlet:0.5", "--runs", tmp_path / "runs", "--json")  # fmt: skip
    assert code == 0, out
    first = printed(out)
    results, folder = finetuned(
        monkeypatch, capsys, tmp_path / "runs", first["run"], "--task", "device", "--seed", "99"
    )
    assert [site.classes for site in results.sites] == [site["classes"] for site in first["sites"]]
    assert "seed = 99" in (folder / "config.toml").read_text()


def test_the_table_is_for_people(pretrained, monkeypatch, capsys):
    home, run = pretrained
    code, said = called(monkeypatch, capsys, "finetune", run, "--task", "device", "--runs", home)
    assert code == 0 and "all sites" in said and "95 % interval" in said and "north" in said


def test_another_clinic_s_folder_tests_the_classifier_on_all_its_images(pretrained, monkeypatch, capsys, tmp_path):
    home, run = pretrained
    results, folder = finetuned(monkeypatch, capsys, home, run, "--task", "pattern")
    clinic = write_pictures(tmp_path / "clinic", 40, seed=9)
    labels = (clinic / "labels.csv").read_text().splitlines()
    place = labels[0].split(",").index("label")
    fields = [line.split(",") for line in labels]
    fields[1][place], fields[2][place], fields[3][place] = "", "warts", "warts"
    (clinic / "labels.csv").write_text("\n".join(",".join(line) for line in fields) + "\n")
    code, out = called(monkeypatch, capsys, "evaluate", results.run, "--data", clinic, "--runs", home, "--json")
    assert code == 0, out
    found = printed(out)
    assert found["images"] == found["score"]["n_test"] == 37
    assert found["unknown"] == {"warts": 2} and found["unlabelled"] == 1 and found["trained"] == 0
    assert not found["unchecked"]
    config = load_config(folder / "config.toml")
    network = load_classifier(folder / "model", load_backbone(folder / "model", config)).eval()
    plain = BatchAugmentation.of(config.images.resolved_preset).plain
    truth = {line[fields[0].index("file")]: line[place] for line in fields[4:]}
    hits: dict[str, list[bool]] = {"blobs": [], "stripes": []}
    for file, label in truth.items():
        pixels = np.array(Image.open(clinic / "images" / file)).transpose(2, 0, 1)  # of the working size already
        with torch.no_grad():
            answer = int(network(plain(torch.from_numpy(pixels)[None])).argmax())
        hits[label].append(["blobs", "stripes"][answer] == label)
    expected = sum(sum(one) / len(one) for one in hits.values()) / 2
    assert found["score"]["balanced_accuracy"] == pytest.approx(expected)
    code, out = called(monkeypatch, capsys, "evaluate", results.run, "--data", clinic, "--runs", home)
    assert code == 0 and "2 images have labels that the classifier does not know: warts (2)" in out


def test_what_trained_the_classifier_tests_nothing(pretrained, monkeypatch, capsys):
    home, run = pretrained
    results, folder = finetuned(monkeypatch, capsys, home, run, "--task", "pattern")
    north = json.loads((folder / "simulation.json").read_text())["data"][0]
    code, out = called(monkeypatch, capsys, "evaluate", results.run, "--data", north, "--runs", home, "--json")
    found = printed(out)
    assert code == 0 and found["trained"] > 0
    score = results.downstream.sites["north"]
    assert found["images"] == score.n_test
    assert found["score"]["balanced_accuracy"] == pytest.approx(score.balanced_accuracy)
    assert found["score"]["n_train"] == results.downstream.pooled.n_train


def test_where_the_training_images_are_gone_it_is_said(monkeypatch, capsys, tmp_path):
    folders = [write_pictures(tmp_path / name, 60, seed=i) for i, name in enumerate(("north", "south"))]
    (tmp_path / "small.toml").write_text(CONFIG)
    code, out = called(monkeypatch, capsys, "simulate", tmp_path / "small.toml", *site_options(folders),
                       "--runs", tmp_path / "runs", "--json")  # fmt: skip
    assert code == 0, out
    results, _ = finetuned(monkeypatch, capsys, tmp_path / "runs", printed(out)["run"], "--task", "pattern")
    moved = folders[0].rename(tmp_path / "moved")
    code, out = called(monkeypatch, capsys, "evaluate", results.run, "--data", moved, "--runs", tmp_path / "runs")
    assert code == 0 and "nobody can say whether it is among these images" in out


def test_a_folder_of_other_classes_is_refused_with_what_it_has(pretrained, monkeypatch, capsys, tmp_path):
    home, run = pretrained
    results, _ = finetuned(monkeypatch, capsys, home, run, "--task", "pattern")
    clinic = write_pictures(tmp_path / "clinic", 12, seed=9)
    table = (clinic / "labels.csv").read_text().replace("stripes", "melanoma").replace("blobs", "nevus")
    (clinic / "labels.csv").write_text(table)
    code, out = called(monkeypatch, capsys, "evaluate", results.run, "--data", clinic, "--runs", home)
    assert code == 2 and "melanoma" in out and "the classifier knows blobs, stripes" in out
    code, out = called(monkeypatch, capsys, "evaluate", results.run, "--data", clinic, "--task", "ph2", "--runs", home)
    assert code == 2 and "its classes are melanoma, nevus; the classifier's are blobs, stripes" in out
    code, out = called(monkeypatch, capsys, "evaluate", run, "--data", clinic, "--task", "ph2", "--runs", home)
    assert code == 2 and "is no classifier" in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "say which of the [downstream.*] tables of small is meant; there are device, own, pattern"),
        (("--task", "patern"), "no [downstream.patern] in small: there are device, own, pattern"),
        (("--task", "pattern", "--labels", "1.5"), "downstream.pattern.labels"),
        (("--task", "pattern", "--data", "/nowhere"), "no such folder"),
        (("--config", "demo"), "there are none: add a [downstream.NAME] table"),
    ],
)
def test_mistakes_are_told_in_words(pretrained, monkeypatch, capsys, options, says):
    home, run = pretrained
    code, said = called(monkeypatch, capsys, "finetune", run, *options, "--runs", home)
    assert code == 2 and says in said


def test_a_classifier_is_no_backbone_to_begin_with(pretrained, monkeypatch, capsys):
    home, run = pretrained
    results, _ = finetuned(monkeypatch, capsys, home, run, "--task", "device")
    code, said = called(monkeypatch, capsys, "finetune", results.run, "--runs", home)
    assert code == 2 and "has trained a classifier already" in said
