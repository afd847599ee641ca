"""Which class was taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.report.drawing import Look
from server.report.heat_map import Cell, heat_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_plot(confusion: Sequence[Sequence[int]], classes: Sequence[str], look: Look) -> Figure:
    """True classes from the top, answers from the left: images, and their share of the true class.

    Args:
        confusion: images by true class (rows) and answer (columns).
        classes: names, in the order of both.
        look: where it will stand; it is the same everywhere.
    """
    return heat_map(classes, classes, [_row(row) for row in confusion], across="answer", down="true class")


def _row(counts: Sequence[int]) -> list[Cell]:
    images = sum(counts)
    if not images:
        return [Cell(None, ("0", "–"))] * len(counts)
    return [Cell(count / images, (f"{count:,}", f"{100 * count / images:.0f} %")) for count in counts]
