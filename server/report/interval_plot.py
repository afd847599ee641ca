"""Figures with their intervals, one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiseeme_models.downstream.intervals import Interval
from aiseeme_models.printable import printable
from server.report.drawing import LONGEST_NAME, PLAIN_COLOUR, SITE_COLOURS, WIDTH, Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Whisker:
    """A figure from 0 to 1.

    Attributes:
        name: whose.
        value: the figure.
        interval: its 95 % interval, None where it has none.
        ours: whether it is what the report is about, and not what that is held against.
    """

    name: str
    value: float
    interval: Interval | None
    ours: bool


def interval_plot(rows: Sequence[Whisker], chance: float, look: Look) -> Figure:
    """A dot for each figure and a line for its interval; a hollow dot has none. The dotted line is chance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 0.7 + 0.34 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        colour = SITE_COLOURS[0] if row.ours else PLAIN_COLOUR
        if row.interval is not None:
            axes.plot((row.interval.low, row.interval.high), (place, place), color=colour, linewidth=2.0)
        filled = "none" if row.interval is None else colour
        axes.plot(row.value, place, "o", color=colour, markerfacecolor=filled, markersize=7)
    axes.axvline(chance, color=look.ink, linewidth=1.0, linestyle=":")
    axes.set_yticks(range(len(rows)), [printable(row.name, LONGEST_NAME) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    return figure
