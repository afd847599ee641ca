"""A table of figures whose cells are the darker, the higher they are: classes taken for classes, models alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiseeme_models.printable import printable
from server.report.drawing import LONGEST_NAME, WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOUR = (0.17, 0.42, 0.69)
_DARKEST = 0.7  # ink, dark or light, can still be read on it


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        share: how dark, from 0 to 1; None: there is no figure.
        lines: what stands in it, the most important first.
    """

    share: float | None
    lines: tuple[str, ...]


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[Cell]],
    *,
    across: str = "",
    down: str = "",
) -> Figure:
    """Draw a table.

    Args:
        rows, columns: their names; long ones are cut.
        cells: by row and column.
        across, down: what columns and rows are.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    names, tops = ([printable(name, LONGEST_NAME) for name in names] for names in (rows, columns))
    beside = 0.45 + 0.085 * max(map(len, names))
    width = max(WIDTH, beside + 0.6 * len(tops))
    side = (width - beside) / len(tops)
    lines = max(len(cell.lines) for row in cells for cell in row)
    height = min(side, 0.3 + 0.22 * lines)
    slanted = max(map(len, tops)) * 0.085 > side
    above = (0.1 + 0.065 * max(map(len, tops)) if slanted else 0.25) + (0.25 if across else 0.0)
    figure = Figure(figsize=(width, above + 0.15 + height * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            shade = (*_COLOUR, 0.0 if cell.share is None else _DARKEST * min(1.0, max(0.0, cell.share)))
            frame = (*_COLOUR, 0.25)
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=shade, edgecolor=frame, linewidth=0.8))
            for number, text in enumerate(cell.lines):
                offset = (number - (len(cell.lines) - 1) / 2) * 0.19 / height
                size = 10 if number == 0 else 8.5
                axes.text(x, y + offset, text, ha="center", va="center", fontsize=size)
    axes.set_xlim(-0.5, len(tops) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(range(len(tops)), tops, rotation=40 if slanted else 0, ha="left" if slanted else "center")
    axes.set_yticks(range(len(names)), names)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
