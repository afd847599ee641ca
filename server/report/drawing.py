"""How every plot of a run is drawn: as SVG inside the page, in the page's own ink, or as a file of its own."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiseeme_models.atomic_files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Told apart on a light and on a dark page alike; with more sites than colours all are drawn alike.
SITE_COLOURS = ("#3b82c4", "#d9822b", "#3f9b6e", "#c4547d", "#8a6fc9", "#a08b2b", "#3c9aa0", "#b0604a")
PLAIN_COLOUR = "#8a8f98"
FORMATS = ("png", "svg", "pdf")
LONGEST_NAME = 26
"""Letters of a name beside a plot; longer ones are cut."""
WIDTH = 4.6
"""Inches: a page shows every plot as wide as it can, so that a unit is about a pixel on a phone."""

_PAGE_INK = "#010203"  # stands for the page's text colour until the SVG is done
_FILE_INK = "#1d2126"


@dataclass(frozen=True)
class Look:
    """Where a plot will stand.

    Attributes:
        ink: colour of text and lines.
        alone: whether it stands in a file of its own, and must say what a page says beside it.
    """

    ink: str
    alone: bool


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        name: unique in a report: prefix of every id in the page, and the name of its file.
        title: above it.
        label: what it shows, for those who do not see it.
        draw: draws it.
    """

    name: str
    title: str
    label: str
    draw: Callable[[Look], Figure]


@dataclass(frozen=True)
class Drawn:
    """A plot inside a page.

    Attributes:
        title: above it.
        svg: an ``<svg>`` element: no fonts, no network, the page's own colours.
        wide: whether it needs the page's whole width.
    """

    title: str
    svg: str
    wide: bool


def drawn(plot: Plot) -> Drawn:
    """A plot for a page."""
    import matplotlib

    look = Look(_PAGE_INK, alone=False)
    with matplotlib.rc_context(_style(look)):
        figure, text = plot.draw(look), io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    # A plot that is wider than others (many classes) is not made smaller than a phone can show: its box scrolls.
    wide = bool(figure.get_figwidth() > WIDTH)
    least = round(72 * figure.get_figwidth()) if wide else None
    return Drawn(plot.title, _inline(text.getvalue(), plot, least), wide)


def save(plot: Plot, folder: Path, format_name: str) -> Path:
    """Write ``folder/NAME.FORMAT`` and give its path.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / f"{plot.name}.{format_name}"
    write_plot(plot, path)
    return path


def write_plot(plot: Plot, path: Path) -> None:
    """Write a file of its own, in the format that its name ends in: one of `FORMATS`.

    Raises:
        OSError: it cannot be written.
    """
    import matplotlib

    format_name = path.suffix.lower().removeprefix(".")
    look, content = Look(_FILE_INK, alone=True), io.BytesIO()
    dates: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format_name, {})
    with matplotlib.rc_context(_style(look)):
        figure = plot.draw(look)
        if plot.title:
            figure.suptitle(plot.title, fontsize=11, wrap=True)
        figure.savefig(content, format=format_name, dpi=200, facecolor="white", metadata=dates or None)
    write_atomically(path, content.getvalue())


def colours_of(sites: list[str]) -> dict[str, str]:
    """A colour for each site."""
    if len(sites) > len(SITE_COLOURS):
        return dict.fromkeys(sites, PLAIN_COLOUR)
    return dict(zip(sites, SITE_COLOURS, strict=False))


def _style(look: Look) -> dict[Any, Any]:
    return {
        "svg.fonttype": "path" if look.alone else "none",
        "svg.hashsalt": "aiseeme",
        "pdf.fonttype": 42,
        "text.parse_math": False,
        "font.size": 10.5,
        "text.color": look.ink,
        "axes.labelcolor": look.ink,
        "axes.edgecolor": look.ink,
        "xtick.color": look.ink,
        "ytick.color": look.ink,
        "grid.color": PLAIN_COLOUR,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }


def _inline(svg: str, plot: Plot, least: int | None) -> str:
    """Strip what only a file of its own needs (and every URL), make ids unique, let the page give ink and size."""
    name = plot.name
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href").replace(_PAGE_INK, "currentColor")
    svg = svg.replace(' id="', f' id="{name}-').replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    wide = "" if least is None else f' style="min-width: {least}px"'
    return f'{head} role="img" aria-label="{escape(plot.label)}"{wide}>{rest}'
