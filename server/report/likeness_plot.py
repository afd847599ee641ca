"""How alike models are, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.errors import InputError
from server.report.audits import ComparedPair
from server.report.drawing import FORMATS, SITE_COLOURS, Look, Plot, write_plot
from server.report.heat_map import Cell, heat_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NONE = Cell(None, ("–",))


def check_plot(path: Path) -> None:
    """Refuse a file that no plot can be written to, before any work is done.

    Raises:
        InputError: another format, or no such folder.
    """
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise InputError(f"--plot {path}: write {', '.join(f'.{name}' for name in FORMATS)}")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: no such folder")


def draw_likeness(pairs: Sequence[ComparedPair], path: Path) -> None:
    """Write CKA by block, a line for each pair, to a file that `check_plot` has let pass."""
    write_plot(Plot("likeness", "", "linear CKA by block", partial(likeness_by_block, pairs)), path)


def likeness_by_block(pairs: Sequence[ComparedPair], look: Look) -> Figure:
    """CKA by block, a line for each pair."""
    from matplotlib.figure import Figure

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
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", fontsize=8)
    return figure


def letters(pairs: Sequence[ComparedPair]) -> dict[str, str]:
    """A letter for each model, in the order in which they come: their names are too long to stand above a column."""
    names = dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second))
    return {name: _letter(place) for place, name in enumerate(names)}


def likeness_of_models(pairs: Sequence[ComparedPair], look: Look) -> Figure:
    """Each model with each other one: CKA of the last block."""
    of = letters(pairs)
    known = {frozenset((pair.first, pair.second)): pair.blocks[-1].cka for pair in pairs}
    cells = [[_cell(1.0) if one == other else _cell(known.get(frozenset((one, other)))) for other in of] for one in of]
    rows = [f"{of[name]}  {name}" for name in of] if look.alone else list(of.values())
    return heat_map(rows, list(of.values()), cells)


def likeness_of_blocks(pairs: Sequence[ComparedPair], look: Look) -> Figure:
    """Each pair of models by block: CKA."""
    of = letters(pairs)
    blocks = list(dict.fromkeys(block.name for pair in pairs for block in pair.blocks))
    cells = []
    for pair in pairs:
        known = {block.name: block.cka for block in pair.blocks}
        cells.append([_cell(known.get(name)) for name in blocks])
    return heat_map([f"{of[pair.first]} / {of[pair.second]}" for pair in pairs], blocks, cells)


def _cell(cka: float | None) -> Cell:
    return _NONE if cka is None else Cell(cka, (f"{cka:.2f}",))


def _letter(place: int) -> str:
    beyond, within = divmod(place, 26)
    return chr(ord("A") + within) + (str(beyond) if beyond else "")
