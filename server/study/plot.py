"""A study's plot: every seed a dot, mean and deviation beside it, one panel for each measure."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.printable import printable
from server.study.measures import title_of

if TYPE_CHECKING:
    from server.study.table import StudyTable

FILE = "plot.svg"

_COLOUR, _REFERENCE = "#3b82c4", "#d9822b"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "aiseeme",
    "text.parse_math": False,
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_plot(folder: Path, table: StudyTable) -> None:
    """Write ``plot.svg``. Panels share no scale: measures are not compared with each other."""
    import matplotlib
    from matplotlib.figure import Figure

    titles = [printable(line.title, 60) for line in table.lines]
    with matplotlib.rc_context(_STYLE):
        size = (3.0 + 2.4 * len(table.measures), 1.4 + 0.36 * len(titles))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(table.measures), sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, table.measures, strict=True):
            for place, line in enumerate(table.lines):
                values = line.figures.get(measure)
                if values is None:
                    continue
                colour = _REFERENCE if place == 0 else _COLOUR
                axes.plot(values.values, [place] * len(values.values), "o", color=colour, alpha=0.45, markersize=4)
                axes.errorbar(values.mean, place, xerr=values.sd, fmt="|", color=colour, markersize=14, capsize=3)
                if place == 0:
                    axes.axvline(values.mean, color=_REFERENCE, linewidth=0.8, linestyle=":")
            axes.set_title(title_of(measure))
            axes.set_xlabel("balanced accuracy")
            axes.grid(axis="x", alpha=0.3)
        panels[0].set_yticks(range(len(titles)), titles)
        panels[0].set_ylim(len(titles) - 0.5, -0.5)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    write_atomically(folder / FILE, text.getvalue().encode())
