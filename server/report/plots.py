"""The loss curves of a run as SVG text that stands inside a page: no fonts, no network, the page's own colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Any

from server.report.record import StageCurves

# Told apart on a light and on a dark page alike; with more sites than colours all are drawn alike.
SITE_COLOURS = ("#3b82c4", "#d9822b", "#3f9b6e", "#c4547d", "#8a6fc9", "#a08b2b", "#3c9aa0", "#b0604a")
PLAIN_COLOUR = "#8a8f98"

_INK = "#010203"  # stands for the page's text colour until the SVG is done
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "aiseeme",
    "text.parse_math": False,
    "font.size": 10.0,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": PLAIN_COLOUR,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def colours_of(sites: list[str]) -> dict[str, str]:
    """A colour for each site."""
    if len(sites) > len(SITE_COLOURS):
        return dict.fromkeys(sites, PLAIN_COLOUR)
    return dict(zip(sites, SITE_COLOURS, strict=False))


def loss_plot(curves: StageCurves, chance_loss: float | None, colours: Mapping[str, str], *, name: str) -> str:
    """Pretext loss by round: each site thin, their mean bold, the held-out loss dashed, chance dotted.

    Args:
        curves: the stage's losses by absolute round.
        chance_loss: the loss of a model that knows nothing, if the task has such a level.
        colours: colour by site; names of sites never enter the SVG.
        name: prefix of every id in the SVG, unique in the page.

    Returns:
        An ``<svg>`` element.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.8, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for site, losses in curves.sites.items():
            axes.plot(*_points(losses), color=colours.get(site, PLAIN_COLOUR), linewidth=1.0, alpha=0.9)
        marker = "o" if len(curves.mean) <= 12 else ""
        mean = _points(curves.mean)
        axes.plot(*mean, color=_INK, linewidth=2.0, marker=marker, markersize=3.5, label="mean of sites")
        if curves.heldout:
            axes.plot(*_points(curves.heldout), color=_INK, linewidth=1.4, linestyle="--", label="held out")
        if chance_loss is not None and math.isfinite(chance_loss):
            axes.axhline(chance_loss, color=_INK, linewidth=1.0, linestyle=":", label="chance")
        axes.set_xlabel("round")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), name)


def _points(losses: Mapping[int, float]) -> tuple[list[int], list[float]]:
    rounds = [number for number in sorted(losses) if math.isfinite(losses[number])]
    return rounds, [losses[number] for number in rounds]


def _inline(svg: str, name: str) -> str:
    """Strip what only a file of its own needs (and every URL), make ids unique, let the page give ink and size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href").replace(_INK, "currentColor")
    svg = svg.replace(' id="', f' id="{name}-').replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="pretext loss by round">{rest}'
