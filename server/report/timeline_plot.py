"""Which site counted in which round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from aiseeme_models.printable import printable
from server.report.drawing import LONGEST_NAME, SITE_COLOURS, WIDTH, Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MISSED = "#c8453b"


def timeline_plot(
    sites: Sequence[str],
    counted: Mapping[str, Iterable[int]],
    missed: Mapping[str, Iterable[int]],
    ends: Sequence[int],
    look: Look,
) -> Figure:
    """A row for each site: blue where it counted, red and lower where it was asked and did not, empty elsewhere.

    Args:
        sites: names, from the top.
        counted, missed: absolute rounds by site.
        ends: the last round of each stage that was played, in order.
        look: where it will stand.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    last = max([*ends, *(number for rounds in (*counted.values(), *missed.values()) for number in rounds), 1])
    figure = Figure(figsize=(WIDTH, 1.15 + 0.24 * len(sites)), layout="constrained")
    axes = figure.add_subplot()
    for place, site in enumerate(sites):
        axes.broken_barh(_spans(counted.get(site, ())), (place - 0.32, 0.64), facecolor=SITE_COLOURS[0], linewidth=0)
        axes.broken_barh(_spans(missed.get(site, ())), (place - 0.14, 0.28), facecolor=_MISSED, linewidth=0)
    for end in ends[:-1]:
        axes.axvline(end + 0.5, color=look.ink, linewidth=1.0, linestyle=":")
    axes.set_yticks(range(len(sites)), [printable(site, LONGEST_NAME) for site in sites])
    axes.set_ylim(len(sites) - 0.5, -0.5)
    axes.set_xlim(0.4, last + 0.6)
    axes.set_xlabel("round (dotted: a stage ends)" if len(ends) > 1 else "round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.tick_params(axis="y", length=0)
    keys = [Patch(color=SITE_COLOURS[0], label="counted"), Patch(color=_MISSED, label="missed")]
    shown = keys if any(missed.values()) else keys[:1]
    if look.alone:
        figure.legend(handles=shown, loc="outside lower left", ncols=2, fontsize=9.5)
    else:
        figure.legend(handles=shown, loc="outside upper left", ncols=2, fontsize=9.5)
    return figure


def _spans(rounds: Iterable[int]) -> list[tuple[float, float]]:
    """Start and width of each round's box; small gaps stay where there is room for them."""
    return [(number - 0.46, 0.92) for number in sorted(set(rounds))]
