"""``aiseeme audit bias`` tells what a model ties together and how a classifier does by subgroup, or what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from federation_configs.command_line import console
from server.bias_report import BiasReport
from server.bias_tables import sites_table
from server.bias_tables import tests_table as associations_table
from server.report.audits import read_audits
from tests.cli.commands import called, site_options
from tests.server.finished_runs import finished_run, run_config
from tests.tied_phantoms import SIDE, write_tied

RUN, GREY, PRIVATE = "20261125-120000-aaaaaa", "20261125-120000-bbbbbb", "20261125-120000-cccccc"
HOLDOUT = {"test": 0.6, "validation": 0.1}
SEX = ("--groups", "sex=f:sex=m", "--attributes", "label=mel:label=nv")
CONFIG = f"""
name = "small"
seed = 5
[images]
preset = "dermoscopy"
size = {SIDE}
[model]
backbone = "resnet-tiny"
[[curriculum.stage]]
task = "rotation"
rounds = 1
batch_size = 8
[federation]
min_sites = 2
[holdout]
test = 0.6
validation = 0.1
[downstream.lesion]
classes = {{ malignant = ["mel"], benign = ["nv"] }}
mode = "linear"
rounds = 1
batch_size = 8
"""


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("hospitals")
    return [write_tied(root / name, count, seed=count, tied=True) for name, count in (("north", 150), ("south", 140))]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("audit") / "runs"
    tiny = {"holdout": HOLDOUT, "model": {"backbone": "resnet-tiny"}, "images": {"preset": "dermoscopy", "size": SIDE}}
    finished_run(runs, run_config(**tiny), run=RUN)
    stage = {"task": "rotation", "rounds": 1, "batch_size": 4}
    privacy = {"noise_multiplier": 1.0, "max_grad_norm": 1.0}
    finished_run(runs, run_config(**(tiny | {"curriculum": {"stage": [stage]}, "privacy": privacy})), run=PRIVATE)
    return runs


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, hospitals: list[Path]) -> tuple[Path, str]:
    """A fine-tuned run of both hospitals: the folder of runs, and its id."""
    from server.cli import main

    root = tmp_path_factory.mktemp("classifier")
    (root / "small.toml").write_text(CONFIG)
    runs = root / "runs"
    for command in (["simulate", root / "small.toml", *site_options(hospitals)], ["finetune"]):
        done = [path.name for path in runs.iterdir() if (path / "results.json").exists()] if runs.exists() else []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["aiseeme", *map(str, [*command, *done, "--runs", runs])])
            with pytest.raises(SystemExit) as ended:
                main()
        assert not ended.value.code
    (run,) = [path.name for path in runs.iterdir() if (path / "model" / "head.safetensors").exists()]
    return runs, run


def printed(words: str) -> Any:
    """The JSON at the beginning of what was said."""
    return json.JSONDecoder().raw_decode(words)[0]


def test_associations_are_told_in_json_in_tables_and_in_the_run_s_folder(
    home: Path, hospitals: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SEX, "--groups", "age=..50:age=51..", *site_options(hospitals), "--runs", home, "--layers", "layer4"]
    code, words = called(monkeypatch, capsys, "audit", "bias", RUN, *options, "--layers", "stem/map", "--json")
    assert code == 0, words
    told = printed(words)
    assert told == json.loads((home / RUN / "audit-bias.json").read_text())
    report = BiasReport.model_validate(told)
    assert report.run == RUN and set(report.images) == {"north", "south"} and not report.refused
    tests = ["sex=f : sex=m / label=mel : label=nv", "age=..50 : age=51.. / label=mel : label=nv"]
    layers = ["stem/map", "layer4/map", "layer4/pooled"]
    assert [(one.test, one.layer) for one in report.tests] == [(test, layer) for test in tests for layer in layers]
    for one in report.tests:
        assert set(one.sites) == {"north", "south"} and len(one.untrained) == 8
        assert one.corrected >= max(one.p_value, one.beyond) and -2 <= one.effect <= 2
        assert one.sizes.x == sum(site.sizes.x for site in one.sites.values())
    assert len(read_audits(home / RUN).bias.tests) == 6

    code, words = called(monkeypatch, capsys, "audit", "bias", RUN, *options)
    assert code == 0
    for text in ("what the model ties together", "at each site", "layer4/pooled", "test patients: north", "corrected",
                 "of 4 (each layer counts)", "audit-bias.json"):  # fmt: skip
        assert text in words


def test_a_classifier_is_told_by_subgroup_with_gaps(
    classifier: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, run = classifier
    options = ["--subgroups", "sex", "--subgroups", "age=..50,51..", "--runs", runs]
    code, words = called(monkeypatch, capsys, "audit", "bias", run, *options, "--json")
    assert code == 0, words
    report = BiasReport.model_validate(printed(words))
    assert [(one.column, one.value) for one in report.subgroups] == [
        ("sex", "f"), ("sex", "m"), ("age", "..50"), ("age", "51..")
    ]  # fmt: skip
    results = json.loads((runs / run / "results.json").read_text())["downstream"]["pooled"]
    sexes = report.subgroups[:2]
    assert sum(one.n_images for one in sexes) == results["n_test"]
    for name, pooled in results["per_class"].items():
        entries = [one.per_class[name] for one in sexes]
        hits = sum(entry.recall * entry.n_test for entry in entries)
        assert hits / sum(entry.n_test for entry in entries) == pytest.approx(pooled["recall"])
    assert sum(one.n_images for one in report.subgroups[2:]) < results["n_test"]  # the age of some is not known
    assert [gap.column for gap in report.gaps] == ["sex", "age"]
    assert all(one.low <= one.balanced_accuracy <= one.high for one in report.subgroups)
    code, words = called(monkeypatch, capsys, "audit", "bias", run, *options)
    assert code == 0
    for text in ("the classifier by subgroup", "largest gap", "51..", "every subgroup has: benign, malignant"):
        assert text in words


def test_both_kinds_of_audit_go_together_on_the_run_s_own_hospitals(
    classifier: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, run = classifier
    options = [*SEX, "--layers", "layer4/pooled", "--untrained", 5, "--images", 64, "--subgroups", "sex"]
    code, words = called(monkeypatch, capsys, "audit", "bias", run, *options, "--runs", runs, "--json")
    assert code == 0, words
    report = BiasReport.model_validate(printed(words))
    assert len(report.tests) == 1 and len(report.subgroups) == 2 and report.images == {"north": 60, "south": 60}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "say what to audit"),
        (["--groups", "sex=f:sex=m"], "--groups and --attributes belong together"),
        (["--attributes", "label=mel:label=nv"], "--groups and --attributes belong together"),
        (["--groups", "sex=f", "--attributes", "label=mel:label=nv"], "--groups sex=f: write two sets with a colon"),
        (["--groups", "sex=f:sex=f", "--attributes", "label=mel:label=nv"], "an image can be in both"),
        (["--groups", "sex:age", "--attributes", "label=mel:label=nv"], "--groups sex:age: 'sex': write it as COLUMN"),
        (["--groups", "age=9..1:age=2..", "--attributes", "label=mel:label=nv"], "age=9..1: no number is within"),
        (["--groups", "patient_id=a:sex=f", "--attributes", "label=mel:label=nv"], "says whose an image is"),
        ([*SEX, "--groups", "sex=f:sex=m"], "asked for twice"),
        ([*SEX, "--layers", "layer9"], "--layers layer9: there are stem, layer1"),
        ([*SEX, "--images", "100"], "--images 100: give a multiple of 64 from 64 to 1024"),
        ([*SEX, "--untrained", "3"], "--untrained 3: give 5 to 32"),
        (["--groups", "skin=1:skin=2", "--attributes", "label=mel:label=nv"],
         "--groups skin=1: no image has a column 'skin'; labels.csv has age, label, sex"),
        (["--groups", "sex=f:sex=x", "--attributes", "label=mel:label=nv"],
         "--groups sex=x: no image has 'x'; there are f, m"),
        (["--groups", "age=..40:age=200..", "--attributes", "label=mel:label=nv"],
         "--groups age=200..: no image has a number within; there are 20 to 89"),
        (["--groups", "sex=1..2:sex=f", "--attributes", "label=mel:label=nv"],
         "--groups sex=1..2: no image has a number within; there are f, m"),
        (["--subgroups", "skin"], "--subgroups skin: no image has a column 'skin'"),
        (["--subgroups", "sex"], f"--subgroups: {RUN} has no classifier to test"),
        (["--subgroups", "patient_id"], "none that says whose an image is"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    options: list[str],
    words: str,
    home: Path,
    hospitals: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = called(monkeypatch, capsys, "audit", "bias", RUN, *site_options(hospitals), "--runs", home, *options)
    assert code == 2 and words in said, said


def test_runs_that_cannot_be_audited_are_refused(
    home: Path, hospitals: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (*SEX, *site_options(hospitals), "--runs", home)
    code, said = called(monkeypatch, capsys, "audit", "bias", PRIVATE, *given)
    assert code == 2 and "was trained under [privacy]" in said
    code, said = called(monkeypatch, capsys, "audit", "bias", "20990101", *given)
    assert code == 2 and "no run" in said
    code, said = called(monkeypatch, capsys, "audit", "bias", RUN, *SEX, "--runs", home)
    assert code == 2 and "--data" in said
    rare = ("--groups", "age=89..:age=..88", "--attributes", "label=mel:label=nv")
    code, said = called(monkeypatch, capsys, "audit", "bias", RUN, *rare, *given[len(SEX) :])
    assert code == 1 and "fewer than 5 patients for one of the sets" in said


FIGURES = {"effect": 0.5, "p_value": 0.1, "beyond": 0.1, "corrected": 0.1, "control": 0.1, "untrained": [0.1] * 5,
           "verdict": "not found", "sizes": {"x": 5, "y": 5, "a": 5, "b": 5}}  # fmt: skip


def test_sites_that_are_missing_are_told_with_the_reason() -> None:
    one = FIGURES | {"test": "sex", "layer": "stem", "sites": {"north": FIGURES}}
    told = {"run": "r", "seed": 0, "images": {"north": 50, "south": 50, "east": 50}, "tests": [one]}
    told |= {"omitted": {"sex": {"south": "too few patients"}}, "refused": {"west": "no answer"}}
    report = BiasReport.model_validate(told)
    assert (
        "without west: no answer" in report.sentences and "sex: not made at south: too few patients" in report.sentences
    )
    screen = console()
    with screen.capture() as said:
        screen.print(sites_table(report))
    table = " ".join(said.get().split())
    assert table.count("too few") == 1 and "some image nothing" in table
    south, east = (next(iter(column.cells)) for column in sites_table(report).columns[3:])
    assert (south, east) == ("too few", "empty layer")


def test_text_of_a_file_steers_no_terminal() -> None:
    one = FIGURES | {"test": "[red]\x1b[31msex", "layer": "l", "sites": {}}
    report = BiasReport.model_validate({"run": "r", "seed": 0, "tests": [one]})
    screen = console()
    with screen.capture() as said:
        screen.print(associations_table(report))
    assert "\x1b[31m" not in said.get() and "[red]" in said.get()
