"""``aiseeme report`` writes a run's page anew, with plots as files, and shows only images that may be shown."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from aiseeme_models.images.phantoms import write_phantoms
from aiseeme_models.images.splits import split_at
from client.scanning import scan
from client.site_home import SiteHome
from federation_configs.command_line import console
from server.cli import main
from server.probing import ready_backbone
from server.progress import Progress
from server.report import panels
from tests.cli.commands import called, site_options
from tests.server.finished_runs import finished_run, run_config

CONFIG = """
name = "told"
seed = 5
[images]
preset = "dermoscopy"
size = 32
[model]
backbone = "resnet-tiny"
norm = "batch"
[[curriculum.stage]]
task = "simclr"
rounds = 2
batch_size = 8
[federation]
min_sites = 2
[holdout]
test = 0.4
validation = 0.2
[downstream.pattern]
classes = { network = ["network"], other = ["globular", "parallel", "structureless"] }
rounds = 2
batch_size = 8
"""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Two hospitals of phantoms: the folder of runs, a pretraining's id, and a classifier's."""
    root = tmp_path_factory.mktemp("report")
    phantoms = write_phantoms(root / "phantoms", kind="dermoscopy", sites=2, images_per_site=60, seed=3)
    (root / "told.toml").write_text(CONFIG)
    runs = root / "runs"
    ids: list[str] = []
    for command in (["simulate", str(root / "told.toml"), *map(str, site_options(phantoms))], ["finetune"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["aiseeme", *command, *ids, "--runs", str(runs), "--device", "cpu"])
            with pytest.raises(SystemExit) as ended:
                main()
        assert not ended.value.code
        ids += [path.name for path in runs.iterdir() if (path / "results.json").exists() and path.name not in ids]
    return runs, ids[0], ids[1]


@pytest.fixture
def copied(played: tuple[Path, str, str], tmp_path: Path) -> tuple[Path, str]:
    """The classifier's run, in a folder that a test may change."""
    shutil.copytree(played[0], tmp_path / "runs")
    return tmp_path / "runs", played[2]


class Figures(HTMLParser):
    """The figures that a page shows: in cells of tables and in the titles of plots."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.titles: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("td", "figcaption"):
            self.open.append(tag)
            (self.titles if tag == "figcaption" else self.cells).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "figcaption"):
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            (self.titles if self.open[-1] == "figcaption" else self.cells)[-1] += data


def numbers(value: Any) -> Iterator[float]:
    """Every number in what a JSON file holds, and how many entries its lists and tables have."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, int | float):
        yield float(value)
        return
    yield float(len(value))
    for one in value.values() if isinstance(value, dict) else value:
        yield from numbers(one)


def shown(text: str) -> list[str]:
    return re.findall(r"(?<![\w.-])-?\d[\d,]*(?:\.\d+)?(?![\w-])", text)


@pytest.mark.parametrize("which", [1, 2], ids=["pretraining", "classifier"])
def test_every_figure_in_the_page_is_in_the_json_files_too(played: Any, which: int) -> None:
    folder = played[0] / played[which]
    page, results = (folder / "report.html").read_text(), json.loads((folder / "results.json").read_text())
    known = list(numbers(results))
    found = Figures(page)
    names = {site["name"] for site in results["sites"]}
    cells = [cell.replace("95 %", "") for cell in [*found.cells, *found.titles] if cell not in names]
    figures = [text for cell in cells for text in shown(cell)]
    # What stands in sentences: all that has three decimals.
    figures += re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)", re.sub(r"(?s)<(svg|pre|style).*?</\1>", "", page))
    assert len(figures) > 60
    for text in figures:
        decimals = len(text.partition(".")[2])
        told = float(text.replace(",", ""))
        assert any(abs(round(value, decimals) - told) < 1e-9 for value in known), f"{text} is in no file"


def test_the_weights_that_travelled_are_counted_there_and_back(played: Any) -> None:
    folder = played[0] / played[1]
    results = json.loads((folder / "results.json").read_text())
    size = max(tensor.size for tensor in load_file(folder / "checkpoints" / "round-0002.safetensors").values())
    assert results["weights_bytes"] == 2 * 2 * 2 * 4 * size  # rounds, sites, ways, bytes of a float
    assert f"{results['weights_bytes'] / 1e6:.1f} MB" in (folder / "report.html").read_text()


def test_the_confusion_in_the_page_is_that_of_the_results(played: Any) -> None:
    folder = played[0] / played[2]
    confusion = json.loads((folder / "results.json").read_text())["downstream"]["pooled"]["confusion"]
    svg = next(part for part in (folder / "report.html").read_text().split("<figure") if "Confusion" in part)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    cells = [text for text in texts if re.fullmatch(r"[\d,]+", text)]
    assert sorted(cells) == sorted(f"{count:,}" for row in confusion for count in row)


def test_page_card_and_plots_are_written_anew(copied: Any, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    home, run = copied
    before = (home / run / "report.html").read_text()
    for name in ("report.html", "model/README.md"):
        (home / run / name).unlink()
    code, words = called(monkeypatch, capsys, "report", run, "--runs", home, "--plots", tmp_path / "plots", "--json",
                         "--format", "svg")  # fmt: skip
    assert code == 0
    told = json.JSONDecoder().raw_decode(words[words.index("{") :])[0]
    assert told["report"] == str(home / run / "report.html") and Path(told["model_card"]).is_file()
    names = {Path(path).name for path in told["plots"]}
    assert {"confusion.svg", "reliability.svg", "balanced-accuracy.svg", "stage1.svg", "timeline.svg"} <= names
    assert all(Path(path).read_text().startswith("<?xml") for path in told["plots"])
    page = (home / run / "report.html").read_text()
    assert told["images"] == 8 == page.count('src="data:image/png;base64,') / 2
    without = re.sub(r"(?s)<h2>Audits</h2>.*?(?=<h2>Curriculum)", "", page)
    assert " ".join(without.split()) == " ".join(before.split()), "but for the phantoms it is the page of the run's end"
    assert "They are of test patients." in page and "grad-cam" in page and "The images are phantoms." in page


def test_a_backbone_is_shown_without_a_classs_map(played: Any, monkeypatch: Any, capsys: Any) -> None:
    home, run = played[:2]
    code, words = called(monkeypatch, capsys, "report", run, "--runs", home)
    assert code == 0 and "it shows 8 phantoms" in words and "model card:" in words
    page = (home / run / "report.html").read_text()
    assert "eigen-cam" in page and "→" not in page


def test_a_norm_without_statistics_is_shown_with_those_of_the_training_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (phantoms,) = write_phantoms(tmp_path / "phantoms", kind="dermoscopy", sites=1, images_per_site=40, seed=3)
    home, model = tmp_path / "runs", {"backbone": "resnet-tiny", "norm": "batch-local"}
    folder = finished_run(home, run_config(model=model, holdout={"test": 0.4, "validation": 0.2}))
    given: list[int] = []

    def shown_with(ready: Any) -> Any:
        def noted(config: Any, backbone: Any, training: Any, *, device: str) -> Any:
            given.append(len(training))
            return ready(config, backbone, training, device=device)

        monkeypatch.setattr(panels, "ready_backbone", noted)
        found = panels.panels_of(folder, home, phantoms, Progress(console(stderr=True)))
        assert found is not None and found.cam == "eigen-cam" and found.held_out
        return found.panels

    ready = shown_with(ready_backbone)
    rows = scan(phantoms, SiteHome(home), run_config(model=model).images.pipeline).rows
    training = [row for row in rows if split_at(row.point, test=0.4, validation=0.2) == "train"]
    assert given == [len({row.content for row in training})] and 2 <= given[0] < 40
    bare = shown_with(lambda config, backbone, training, device: backbone)
    assert [one.image for one in ready] == [one.image for one in bare]
    assert [one.looked for one in ready] != [one.looked for one in bare]


def changed(home: Path, run: str, **changes: Any) -> None:
    path = home / run / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_no_patients_image_is_shown_unless_somebody_says_that_it_may(
    copied: Any, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    home, run = copied
    folder = Path(json.loads((home / run / "simulation.json").read_text())["data"][0])
    patients = tmp_path / "patients"
    shutil.copytree(folder, patients)
    labels = (patients / "labels.csv").read_text()
    (patients / "labels.csv").write_text(labels.replace(",yes\n", ",\n"))

    def page(*options: object) -> str:
        code, words = called(monkeypatch, capsys, "report", run, "--runs", home, *options)
        assert code == 0, words
        return (home / run / "report.html").read_text()

    changed(home, run, phantom=False)
    assert "<img" not in page()
    shown = page("--consented-images", patients)
    assert 4 < shown.count("<img") <= 16 and "said that these images may be shown" in shown
    assert "The images are phantoms." not in shown
    assert "<img" not in page(), "what was said once does not hold for the next page"
    # The run was one of phantoms, but what lies there now says nothing of phantoms.
    changed(home, run, phantom=True)
    plan = json.loads((home / run / "simulation.json").read_text())
    (home / run / "simulation.json").write_text(json.dumps(plan | {"data": [str(patients)]}))
    assert "<img" not in page()
    (home / run / "simulation.json").write_text(json.dumps(plan | {"data": [str(tmp_path / "gone")]}))
    assert "<img" not in page()


def test_mistakes_are_told_in_words(copied: Any, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    home, run = copied
    code, words = called(monkeypatch, capsys, "report", run, "--runs", home, "--format", "gif")
    assert code == 2 and "--format gif: there are png, svg, pdf" in words
    code, words = called(monkeypatch, capsys, "report", "2999", "--runs", home)
    assert code == 2
    code, words = called(monkeypatch, capsys, "report", run, "--runs", home, "--consented-images", tmp_path / "none")
    assert code == 2 and "no such folder" in words
    (home / run / "attention.json").write_text("{}")
    code, words = called(monkeypatch, capsys, "report", run, "--runs", home)
    assert code == 2 and "attention.json: not what `aiseeme audit attention` writes" in words
    (home / run / "attention.json").unlink()
    shutil.rmtree(home / run / "model")
    code, words = called(monkeypatch, capsys, "report", run, "--runs", home)
    assert code == 0 and "model card" not in words
    (home / run / "results.json").unlink()
    code, words = called(monkeypatch, capsys, "report", run, "--runs", home)
    assert code == 2 and "no results.json" in words
