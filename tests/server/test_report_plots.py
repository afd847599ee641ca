"""The report's plots show the figures that they are given, inside the page and as files, and trust no name."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from aiseeme_models.downstream.calibration import calibration
from aiseeme_models.downstream.intervals import Interval
from server.report.audits import compared_pairs
from server.report.confusion_plot import confusion_plot
from server.report.drawing import FORMATS, Look, Plot, drawn, save
from server.report.interval_plot import Whisker, interval_plot
from server.report.likeness_plot import likeness_of_blocks, likeness_of_models
from server.report.loss_plot import loss_plot
from server.report.record import StageCurves
from server.report.reliability_plot import reliability_plot
from server.report.timeline_plot import timeline_plot

INSIDE, ALONE = Look("#010203", alone=False), Look("#000000", alone=True)
CONFUSION = [[1204, 96, 0], [5, 95, 0], [0, 0, 0]]
CLASSES = ["nevus", "melanoma", "<script>alert(1)</script>"]


def texts(plot: Plot) -> list[str]:
    """What can be read in a page's SVG, in order."""
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", drawn(plot).svg)]


def plot(draw: Callable[[Look], Figure], title: str = "A title") -> Plot:
    return Plot("a-plot", title, "what it shows", draw)


def test_the_confusion_has_every_count_and_its_share_of_the_true_class() -> None:
    shown = texts(plot(partial(confusion_plot, CONFUSION, CLASSES)))
    for text in ("1,204", "93 %", "96", "7 %", "5", "95", "95 %", "answer", "true class"):
        assert text in shown
    assert shown.count("–") == 3, "a class without images has no shares"


def test_a_cell_is_the_darker_the_larger_its_share() -> None:
    axes = confusion_plot(CONFUSION, CLASSES, INSIDE).axes[0]
    opacity = {patch.get_xy(): patch.get_facecolor()[3] for patch in axes.patches}  # type: ignore[attr-defined]
    full = opacity[(0.5, 0.5)] / 0.95
    assert opacity[(-0.5, -0.5)] == pytest.approx(full * 1204 / 1300)
    assert opacity[(-0.5, 0.5)] == pytest.approx(full * 0.05)
    assert opacity[(0.5, 1.5)] == 0


def test_a_table_of_many_classes_takes_the_page_and_is_not_made_too_small() -> None:
    names = [f"class {number}" for number in range(12)]
    many = drawn(plot(partial(confusion_plot, np.eye(12, dtype=int).tolist(), names)))
    assert many.wide
    least = int(re.search(r'style="min-width: (\d+)px"', many.svg)[1])  # type: ignore[index]
    assert least > 12 * 40
    assert not drawn(plot(partial(confusion_plot, CONFUSION, CLASSES))).wide


def test_names_are_text_in_the_page_and_ids_begin_with_the_plots_name() -> None:
    svg = drawn(plot(partial(confusion_plot, CONFUSION, CLASSES))).svg
    assert svg.startswith("<svg ") and 'role="img" aria-label="what it shows"' in svg
    assert "<script" not in svg and "&lt;script&gt;" in svg
    assert "http" not in svg and "currentColor" in svg and INSIDE.ink not in svg
    assert all(name.startswith("a-plot-") for name in re.findall(r'\sid="([^"]*)"', svg))


def test_a_whisker_spans_its_interval_and_a_hollow_dot_has_none() -> None:
    rows = [Whisker("ours", 0.7, Interval(low=0.6, high=0.8), True), Whisker("floor", 0.5, None, False)]
    axes = interval_plot(rows, 0.25, INSIDE).axes[0]
    line, ours, floor, chance = axes.lines
    assert tuple(line.get_xdata()) == (0.6, 0.8) and set(line.get_ydata()) == {0}
    assert ours.get_xdata()[0] == 0.7 and floor.get_xdata()[0] == 0.5  # type: ignore[index]
    assert floor.get_markerfacecolor() == "none" != ours.get_markerfacecolor()
    assert set(chance.get_xdata()) == {0.25}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours", "floor"]


def test_the_reliability_diagram_has_the_bins_that_the_results_have() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet((1, 1, 1), 200)
    found = calibration(probabilities, rng.integers(0, 3, 200), temperature=1.4)
    axes, below = reliability_plot(found, INSIDE).axes
    dots = axes.lines[1]
    assert list(dots.get_xdata()) == [one.confidence for one in found.reliability]
    assert list(dots.get_ydata()) == [one.accuracy for one in found.reliability]
    assert [bar.get_height() for bar in below.patches] == [one.images for one in found.reliability]  # type: ignore[attr-defined]


def test_the_timeline_has_a_box_for_each_round_that_counted_or_was_missed() -> None:
    figure = timeline_plot(
        ["north", "south"], {"north": {1, 2, 3, 4}, "south": {1, 4}}, {"south": [2, 3]}, [2, 4], INSIDE
    )
    axes = figure.axes[0]
    rounds = [[round(path.vertices[:4, 0].mean()) for path in boxes.get_paths()] for boxes in axes.collections]
    assert rounds == [[1, 2, 3, 4], [], [1, 4], [2, 3]]  # each site's that counted, then those that were missed
    assert [line.get_xdata()[0] for line in axes.lines] == [2.5], "the first stage ends"  # type: ignore[index]
    assert "missed" in texts(plot(lambda _: figure))


def pairs(*figures: tuple[str, str, list[float | None]]) -> Any:
    return compared_pairs(
        [
            {
                "first": first,
                "second": second,
                "blocks": [
                    {"blocks": (name, name), "cka": cka, "svcca": None, "ranks": (1.0, 2.0)}
                    for name, cka in zip(("stem", "last"), values, strict=True)
                ],
                "images": {"north": 64},
                "refused": {},
            }
            for first, second, values in figures
        ]
    )


def test_models_are_alike_as_their_last_block_says_and_pairs_block_by_block() -> None:
    three = pairs(("one", "two", [0.9, 0.81]), ("one", "three", [0.8, None]), ("two", "three", [0.7, -0.02]))
    shown = texts(plot(partial(likeness_of_models, three)))
    assert shown.count("0.81") == 2 and shown.count("1.00") == 3 and shown.count("–") == 2 == shown.count("-0.02")
    blocks = texts(plot(partial(likeness_of_blocks, three)))
    assert {"stem", "last", "A / B", "A / C", "B / C", "0.90", "0.80", "0.70", "0.81", "-0.02"} <= set(blocks)


CURVES = StageCurves({1: 2.0, 2: 1.5}, {2: 1.7}, {"alpha": {1: 2.1, 2: 1.4}})


@pytest.mark.parametrize("format_name", FORMATS)
def test_plots_are_files_too_in_every_format_and_the_same_bytes_again(tmp_path: Path, format_name: str) -> None:
    one = plot(partial(loss_plot, CURVES, 2.0, {"alpha": "#3b82c4"}))
    first = save(one, tmp_path, format_name).read_bytes()
    begins = {"png": b"\x89PNG", "pdf": b"%PDF-", "svg": b"<?xml"}[format_name]
    assert first.startswith(begins)
    assert save(one, tmp_path, format_name) == tmp_path / f"a-plot.{format_name}"
    assert (tmp_path / f"a-plot.{format_name}").read_bytes() == first


def test_a_file_says_what_the_page_says_beside_a_plot() -> None:
    inside, alone = (loss_plot(CURVES, None, {"alpha": "#3b82c4"}, look) for look in (INSIDE, ALONE))
    of = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in (inside, alone)]
    assert of == [["mean of sites", "held out"], ["alpha", "mean of sites", "held out"]]
