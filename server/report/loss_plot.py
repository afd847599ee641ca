"""The loss of a stage, round by round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiseeme_models.printable import printable
from server.report.drawing import LONGEST_NAME, PLAIN_COLOUR, WIDTH, Look
from server.report.record import StageCurves

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_plot(curves: StageCurves, chance_loss: float | None, colours: Mapping[str, str], look: Look) -> Figure:
    """Loss by round: each site thin, their mean bold, the held-out loss dashed, chance dotted.

    Args:
        curves: the stage's losses by absolute round.
        chance_loss: the loss of a model that knows nothing, if the task has such a level.
        colours: colour by site; a page tells them in its table of sites.
        look: where it will stand.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    axes = figure.add_subplot()
    for site, losses in curves.sites.items():
        colour = colours.get(site, PLAIN_COLOUR)
        name = printable(site, LONGEST_NAME) if look.alone and colour != PLAIN_COLOUR else None
        axes.plot(*_points(losses), color=colour, linewidth=1.0, alpha=0.9, label=name)
    marker = "o" if len(curves.mean) <= 12 else ""
    mean = _points(curves.mean)
    axes.plot(*mean, color=look.ink, linewidth=2.0, marker=marker, markersize=3.5, label="mean of sites")
    if curves.heldout:
        one = "D" if len(curves.heldout) == 1 else ""  # a single point has no line
        held_out = _points(curves.heldout)
        axes.plot(*held_out, color=look.ink, linewidth=1.4, linestyle="--", marker=one, markersize=4, label="held out")
    if chance_loss is not None and math.isfinite(chance_loss):
        axes.axhline(chance_loss, color=look.ink, linewidth=1.0, linestyle=":", label="chance")
    axes.set_xlabel("round")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(axis="y")
    if look.alone:
        figure.legend(loc="outside lower left", ncols=2, fontsize=9.5)
    else:
        figure.legend(loc="outside upper left", ncols=3, fontsize=9.5)
    return figure


def _points(losses: Mapping[int, float]) -> tuple[list[int], list[float]]:
    rounds = [number for number in sorted(losses) if math.isfinite(losses[number])]
    return rounds, [losses[number] for number in rounds]
