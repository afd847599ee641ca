"""How alike models are, block by block, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.errors import InputError
from server.report.plots import SITE_COLOURS

if TYPE_CHECKING:
    from server.comparison import Pair

FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Refuse a file that no plot can be written to, before any work is done.

    Raises:
        InputError: another format, or no such folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {path}: write {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: no such folder")


def likeness_plot(pairs: Sequence[Pair], path: Path) -> None:
    """Write CKA by block, a line for each pair.

    Raises:
        InputError: see `check_plot`.
    """
    from matplotlib.figure import Figure

    check_plot(path)
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for number, pair in enumerate(pairs):
        points = [(block.blocks[0], block.cka) for block in pair.blocks if block.cka is not None]
        axes.plot(
            [name for name, _ in points],
            [cka for _, cka in points],
            marker="o",
            color=SITE_COLOURS[number % len(SITE_COLOURS)],
            label=f"{pair.first} / {pair.second}",
        )
    axes.set_ylim(min(0.0, *axes.get_ylim()), 1.02)
    axes.set_ylabel("linear CKA, mean of sites")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8)
    figure.savefig(path, dpi=150)
