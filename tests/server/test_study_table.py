"""The table says what the cells say: means, deviations and paired tests as scipy computes them from them."""

from __future__ import annotations

import json
import statistics
import xml.etree.ElementTree as ElementTree

import pytest
from scipy.stats import ttest_rel

from aiseeme_models.downstream.metrics import ProbeScore
from aiseeme_models.errors import InputError
from server.study.arms import Floor, Untrained
from server.study.cells import Cell, ModelScores, PlayedStage
from server.study.measures import measures_of, parse_finetune, title_of
from server.study.plot import write_plot
from server.study.table import markdown, print_table, study_table, write_table

ARMS = [Untrained("a", "first <arm>", "the reference"), Untrained("b", "second | arm", "another")]
ACCURACIES = {"a": [[0.50], [0.52], [0.49]], "b": [[0.50, 0.60], [0.58, 0.58], [0.54, 0.52]]}  # of each seed's models


def score(accuracy: float, auc: float | None = 0.7) -> ProbeScore:
    return ProbeScore(balanced_accuracy=accuracy, macro_auc=auc, per_class={}, n_train=9, n_test=5)


def cell(arm: str, seed: int, accuracies: list[float], images: int = 640, auc: float | None = 0.7) -> Cell:
    stage = PlayedStage(
        task="simclr", rounds=2, steps=images // 64 // len(accuracies), images=images // len(accuracies), loss=1.0,
        heldout=None, chance=4.0, near_chance=False, backbone_sha256="0" * 64, seconds=1.0,
    )  # fmt: skip
    models = [
        ModelScores(name=f"m{n}", backbone_sha256=None, stages=[stage], scores={"linear": score(value, auc)})
        for n, value in enumerate(accuracies)
    ]
    return Cell(arm=arm, title=arm, says="", seed=seed, models=models, seconds=2.0)


def table(seeds: int = 3, accuracies=ACCURACIES, arms=ARMS, **changes):
    cells = [
        cell(a, 7 + n, values, **changes) for a, every in accuracies.items() for n, values in enumerate(every[:seeds])
    ]
    settings = {"train_images": 9, "test_images": 5, "tested": "test"}
    return study_table("tasks", "tiny", arms, cells, ["linear", "knn"], **settings)


def test_means_deviations_and_the_paired_test_are_scipy_s():
    made = table()
    first, second = (line.figures["linear"] for line in made.lines)
    a, b = [0.50, 0.52, 0.49], [0.55, 0.58, 0.53]  # an arm of two models counts with their mean
    assert first.values == pytest.approx(a) and second.values == pytest.approx(b)
    assert second.mean == pytest.approx(statistics.mean(b)) and second.sd == pytest.approx(statistics.stdev(b))
    assert second.differences == pytest.approx([0.05, 0.06, 0.04])
    assert second.p == pytest.approx(ttest_rel(b, a).pvalue)
    assert first.differences is None and first.p is None
    assert "knn" not in made.lines[0].figures


def test_differences_that_are_all_alike_have_no_p():
    alike = {"a": [[0.5], [0.6], [0.7]], "b": [[0.55], [0.65], [0.75]]}
    figure = table(accuracies=alike).lines[1].figures["linear"]
    assert (figure.difference, figure.p) == (pytest.approx(0.05), None)


def test_a_cell_that_failed_is_left_out_and_named():
    cells = [cell("a", seed, [0.5 + seed / 100]) for seed in (7, 8, 9)] + [cell("b", seed, [0.6]) for seed in (7, 9)]
    made = study_table(
        "tasks", "tiny", [*ARMS, Floor("c", "floor", "")], cells, ["linear"],
        train_images=9, test_images=5, tested="test", failed=["b, seed 8: it diverged"],
    )  # fmt: skip
    second, third = made.lines[1:]
    assert second.seeds == [7, 9]
    assert second.figures["linear"].differences == pytest.approx([0.03, 0.01])
    assert (third.seeds, third.figures) == ([], {})
    assert any("b, seed 8: it diverged" in note for note in made.notes)


def test_an_arm_that_collapsed_is_named_with_its_seeds():
    whole = cell("b", 7, [0.6])
    (model,) = whole.models
    fallen = model.model_copy(update={"stages": [model.stages[0].model_copy(update={"collapsed": True})]})
    made = study_table(
        "tasks", "tiny", ARMS, [cell("a", 7, [0.5]), whole.model_copy(update={"models": [fallen]})], ["linear"],
        train_images=9, test_images=5, tested="test",
    )  # fmt: skip
    assert any("Collapsed" in note and "second | arm, seeds 7" in note for note in made.notes)


def test_one_seed_has_neither_deviation_nor_test():
    made = table(seeds=1)
    figure = made.lines[1].figures["linear"]
    assert (figure.sd, figure.p) == (None, None)
    assert any("One seed" in note for note in made.notes)


def test_three_seeds_are_said_to_be_few_with_what_they_can_show():
    (note,) = (note for note in table().notes if "few" in note)
    # t(0.975; 2 degrees of freedom) / sqrt(3) = 4.303 / 1.732
    assert "3 seeds are few" in note and "2.5 standard deviations" in note


def test_compute_is_in_every_line_and_whether_it_is_equal():
    made = table()
    assert [line.images for line in made.lines] == [(640, 640), (640, 640)]
    assert any("equally many images" in note for note in made.notes)
    assert "| 640 |" in markdown(made)


def test_an_auc_that_is_undefined_once_is_not_averaged():
    assert table().lines[0].figures["linear"].auc == pytest.approx(0.7)
    assert table(auc=None).lines[0].figures["linear"].auc is None


def test_files_hold_the_table_and_titles_cannot_break_them(tmp_path):
    made = table()
    write_table(tmp_path, made)
    write_plot(tmp_path, made)
    assert json.loads((tmp_path / "table.json").read_text()) == json.loads(made.model_dump_json())
    text = (tmp_path / "table.md").read_text()
    assert "| second \\| arm | 0.553 ± 0.025 | - | 640 |" in text
    assert "+0.050 (+0.050, +0.060, +0.040), p 0.01" in text
    root = ElementTree.parse(tmp_path / "plot.svg").getroot()
    words = [part.text for part in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "first <arm>" in words and "linear" in words


def test_a_plot_is_the_same_bytes_again(tmp_path):
    (tmp_path / "again").mkdir()
    write_plot(tmp_path, table())
    write_plot(tmp_path / "again", table())
    assert (tmp_path / "plot.svg").read_bytes() == (tmp_path / "again" / "plot.svg").read_bytes()


def test_the_printed_table_has_every_arm_and_every_note(capsys):
    from rich.console import Console

    print_table(Console(width=200), table(), __import__("pathlib").Path("there"))
    printed = capsys.readouterr().out
    assert "0.553 ± 0.025" in printed and "second | arm" in printed
    assert "p 0.01" in printed and "files: there" in printed


def test_a_floor_without_a_measure_has_a_dash():
    arms = [*ARMS, Floor("c", "floor", "")]
    made = table(accuracies=ACCURACIES | {"c": [[0.3], [0.3], [0.3]]}, arms=arms)
    assert "| floor | 0.300 ± 0.000 | - |" in markdown(made)


def test_finetunings_are_read_and_named():
    found = parse_finetune("0.1:10,1:3")
    assert [(one.fraction, one.epochs) for one in found] == [(0.1, 10), (1.0, 3)]
    assert measures_of(found, 0) == ["linear", "knn", "finetune-10", "finetune-100"]
    assert measures_of((), 5) == ["linear", "knn", "linear-5-folds", "knn-5-folds"]
    assert [title_of(measure) for measure in measures_of((), 5)] == [
        "linear",
        "k-NN",
        "linear in 5 folds",
        "k-NN in 5 folds",
    ]
    assert title_of("finetune-10") == "fine-tune 10 %"
    assert parse_finetune("none") == ()


@pytest.mark.parametrize("text", ["", "0.1", "2:3", "0:3", "a:b", "0.1:0", "0.1:3,0.1:4"])
def test_other_finetunings_are_refused(text):
    with pytest.raises(InputError, match="--finetune"):
        parse_finetune(text)


def test_a_damaged_cell_is_told_of(tmp_path):
    cell("a", 7, [0.5]).save(tmp_path)
    assert Cell.load(tmp_path) == cell("a", 7, [0.5])
    (tmp_path / "cell.json").write_text('{"arm": "a"')
    with pytest.raises(InputError, match="remove it"):
        Cell.load(tmp_path)
