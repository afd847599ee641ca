"""``aiseeme compare`` tells how alike models are, and refuses in words what cannot be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aiseeme_models.errors import InputError, RunFailed
from server.compare_at_hospitals import compare_models
from server.model_reference import find_model
from server.progress import Progress
from tests.cli.commands import called, site_options
from tests.conftest import write_pictures
from tests.server.finished_runs import finished_run, run_config

ONE, TWO, WIDE = "20261125-120000-aaaaaa", "20261125-120000-bbbbbb", "20261126-120000-cccccc"
HOLDOUT = {"test": 0.1, "validation": 0.5}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished runs: two of one architecture, and one of another."""
    runs = tmp_path_factory.mktemp("compare") / "runs"
    tiny = {"backbone": "resnet-tiny"}
    finished_run(runs, run_config(holdout=HOLDOUT, model=tiny), run=ONE)
    finished_run(runs, run_config(holdout=HOLDOUT, model=tiny, seed=1), run=TWO)
    finished_run(runs, run_config(holdout=HOLDOUT, model={"backbone": "resnet-small", "norm": "batch"}), run=WIDE)
    return runs


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("hospitals")
    counts = {"north": 150, "south": 150, "small": 30}
    return [write_pictures(root / name, count, seed=i, side=32) for i, (name, count) in enumerate(counts.items())]


def compared(home: Path, references: list[str], data: list[Path], **changes: Any) -> Any:
    settings = {"sites": None, "partition": None, "images": 64, "device": "cpu", "home": home} | changes
    models = [find_model(reference, home) for reference in references]
    return compare_models(models, data, progress=Progress(Console(quiet=True)), **settings)


def test_models_are_compared_in_a_table_in_json_and_in_a_picture(
    home: Path, hospitals: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = home.parent / "cka.png"
    options = [*site_options(hospitals), "--runs", home, "--images", 64]
    code, words = called(monkeypatch, capsys, "compare", ONE, TWO, *options, "--json", "--plot", picture)
    assert code == 0
    pair, rest = json.JSONDecoder().raw_decode(words.removeprefix("[ "))
    assert words[2:][rest:].startswith(" ] reading"), "the JSON alone is on the standard output"
    assert (pair["first"], pair["second"]) == (ONE, TWO)
    assert pair["images"] == {"north": 64, "south": 64}
    assert pair["refused"] == {"small": "the site has fewer than 64 held-out images to compare models on"}
    assert [block["blocks"][0] for block in pair["blocks"]] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert all(-1 <= block["cka"] < 1 and block["ranks"][0] >= 1 for block in pair["blocks"])
    assert picture.read_bytes().startswith(b"\x89PNG")

    monkeypatch.setenv("COLUMNS", "160")
    code, words = called(monkeypatch, capsys, "compare", "20261125-120000-a", home / WIDE, *options)
    assert code == 0
    for text in ("CKA", "SVCCA", "layer4", "effective rank", ONE, WIDE, "held-out images: north 64, south 64"):
        assert text in words
    assert "small does not count: the site has fewer than 64 held-out images" in words


def test_what_is_kept_stands_in_the_first_runs_report(
    home: Path, hospitals: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*site_options(hospitals), "--runs", home, "--images", 64]
    code, words = called(monkeypatch, capsys, "compare", ONE, TWO, *options, "--save")
    kept = home / ONE / "compare.json"
    assert code == 0 and f"figures: {kept}" in words
    (pair,) = json.loads(kept.read_text())
    code, words = called(monkeypatch, capsys, "report", ONE, "--runs", home)
    assert code == 0
    page = (home / ONE / "report.html").read_text()
    assert f"{pair['blocks'][-1]['cka']:.3f}" in page and f"<dd>{TWO}</dd>" in page
    assert not (home / TWO / "compare.json").exists()


def test_exit_codes_tell_a_mistake_from_a_failure(
    home: Path, hospitals: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ("--data", hospitals[0], "--data", hospitals[1])
    code, words = called(monkeypatch, capsys, "compare", ONE, *folders, "--runs", home)
    assert code == 2 and "name two models or more" in words
    few = ("--data", hospitals[2], "--sites", 1)
    code, words = called(monkeypatch, capsys, "compare", ONE, TWO, *few, "--runs", home)
    assert code == 1 and "no site compared" in words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", 100], "--images 100: give a multiple of 64 from 64 to 4096"),
        (["--plot", "cka.bmp"], "--plot cka.bmp: write .png, .svg, .pdf"),
        (["--plot", "nowhere/cka.png"], "--plot nowhere/cka.png: no such folder"),
    ],
)
def test_a_wrong_option_is_said_before_any_work(
    options: list[object],
    words: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = ("--data", home, "--sites", 1)
    code, said = called(monkeypatch, capsys, "compare", ONE, TWO, *folder, "--runs", home, *options)
    assert code == 2 and words in said


def test_a_model_is_found_by_its_id_its_beginning_and_its_folders(home: Path) -> None:
    weights = find_model(ONE, home).backbone.state_dict()
    for reference in ("20261125-120000-a", str(home / ONE), str(home / ONE / "model")):
        found = find_model(reference, home)
        assert found.run == ONE
        assert all((found.backbone.state_dict()[name] == value).all() for name, value in weights.items())


def test_what_is_no_model_is_refused_with_the_reason(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run"):
        find_model("20990101", home)
    with pytest.raises(InputError, match="no model here"):
        find_model(str(tmp_path), home)
    shutil.copytree(home / ONE, tmp_path / "moved")
    (tmp_path / "moved" / "config.toml").unlink()
    with pytest.raises(InputError, match=r"config\.toml: missing"):
        find_model(str(tmp_path / "moved"), home)
    (tmp_path / "moved" / "config.toml").write_bytes((home / TWO / "config.toml").read_bytes())
    with pytest.raises(InputError, match="not the configuration that the model"):
        find_model(str(tmp_path / "moved"), home)
    shutil.copytree(home / ONE, tmp_path / "altered")
    with (tmp_path / "altered" / "model" / "backbone.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(InputError, match="the file was altered"):
        find_model(str(tmp_path / "altered"), home)


def test_models_of_images_prepared_in_other_ways_are_refused(home: Path, hospitals: list[Path], tmp_path: Path) -> None:
    for name, images in (
        ("larger", {"preset": "dermoscopy", "size": 48}),
        ("grey", {"preset": "chest-xray", "size": 32}),
    ):
        finished_run(tmp_path / name, run_config(images=images, model={"backbone": "resnet-tiny"}), run=f"run-{name}")
        with pytest.raises(InputError, match=rf"{ONE} and run-{name} were trained on images prepared in different"):
            compared(home, [ONE, str(tmp_path / name / f"run-{name}")], hospitals)


def test_a_private_run_s_model_is_not_compared(home: Path, hospitals: list[Path], tmp_path: Path) -> None:
    stage = {"task": "rotation", "rounds": 1, "batch_size": 4}
    privacy = {"noise_multiplier": 1.0, "max_grad_norm": 1.0}
    config = run_config(curriculum={"stage": [stage]}, privacy=privacy, model={"backbone": "resnet-tiny"})
    private = finished_run(tmp_path / "runs", config, run="private")
    for references in ([str(private), ONE], [ONE, str(private)]):
        with pytest.raises(InputError, match=r"private was trained under \[privacy\]"):
            compared(home, references, hospitals)


def test_a_comparison_leaves_nothing_behind(home: Path, hospitals: list[Path]) -> None:
    before = sorted(path.name for path in home.iterdir() if path.name.startswith("2026"))
    with pytest.raises(RunFailed, match="site-1: the site has fewer than 64"):
        compared(home, [ONE, ONE], hospitals[2:], sites=1)
    (pair,) = compared(home, [ONE, ONE], hospitals[:1], sites=1)
    assert (pair.first, pair.second) == (f"{ONE} (1)", f"{ONE} (2)")
    assert all(block.cka == 1 for block in pair.blocks)
    assert sorted(path.name for path in home.iterdir() if path.name.startswith("2026")) == before
