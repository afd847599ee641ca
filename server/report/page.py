"""report.html: one page with everything inside, for the people who ran a federation and those who took part."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.atomic_files import replacing
from aiseeme_models.downstream.intervals import Interval
from aiseeme_models.downstream.metrics import SPECIFICITY
from aiseeme_models.downstream.pooled import Bounded
from server.bias_tables import p_value
from server.report.drawing import colours_of, drawn, save
from server.report.findings import classes_tested, findings, verdict
from server.report.gallery import Gallery, bars, gallery, tested
from server.report.likeness_plot import letters
from server.report.record import read_run

if TYPE_CHECKING:
    from server.report.panels import Panels

FILE = "report.html"


def write_report(run_folder: Path, panels: Panels | None = None) -> Path:
    """Write ``report.html`` from what is in a run's folder.

    Every text is escaped (site names and reasons come from other machines) and the page loads nothing.

    Args:
        run_folder: with ``results.json``, ``metrics.jsonl``, ``config.toml``, the model and the files of its audits.
        panels: images that may be shown; None: none.

    Returns:
        The path of the page.

    Raises:
        InputError: ``results.json`` is missing or not what a run writes, or an audit's file is none.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    record = read_run(run_folder)
    results = record.results
    plots = gallery(record)
    environment = Environment(
        loader=PackageLoader("server", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS, duration=duration)
    page = environment.get_template("report.html.j2").render(
        results=results,
        verdict=verdict(results),
        findings=findings(record),
        plots={part.name: [drawn(plot) for plot in getattr(plots, part.name)] for part in fields(plots)},
        colours=colours_of([site.name for site in results.sites]),
        bars=bars(results),
        tested=tested(results.downstream) if results.downstream else [],
        classes=classes_tested(results.probe.linear) if results.probe else None,
        config=record.config,
        origin=record.origin,
        audits=record.audits,
        letters=letters(record.audits.likeness or ()),
        panels=panels,
        specificity=SPECIFICITY,
    )
    path = run_folder / FILE
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return path


def save_plots(run_folder: Path, folder: Path, format_name: str) -> list[Path]:
    """Write every plot of a run's report as a file, and give their paths.

    Args:
        run_folder: as in `write_report`.
        folder: made where it is not there.
        format_name: one of `server.report.drawing.FORMATS`.

    Raises:
        InputError: as in `write_report`.
        OSError: a file cannot be written.
    """
    plots: Gallery = gallery(read_run(run_folder))
    folder.mkdir(parents=True, exist_ok=True)
    return [save(plot, folder, format_name) for plot in plots.all]


def middle(value: Bounded | None) -> str:
    """Three decimals of a figure that is known between bounds, or a dash."""
    return figure(None if value is None else value.value)


def interval(value: Interval | Bounded | None) -> str:
    """Both ends with three decimals, or a dash where there is no interval."""
    return "–" if value is None else f"{value.low:.3f} to {value.high:.3f}"


def figure(value: float | None) -> str:
    """Three decimals, or a dash where there is no figure."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def p_figure(value: float | None) -> str:
    """A p-value as `p_value` writes it, or a dash where there is none."""
    return "–" if value is None else p_value(value)


def count(value: int | None) -> str:
    """``1204`` -> ``1,204``, or a dash where nobody knows."""
    return "–" if value is None else f"{value:,}"


def duration(seconds: float) -> str:
    """``3725`` -> ``1 h 2 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


FILTERS: dict[str, Callable[..., str]] = {
    "figure": figure,
    "interval": interval,
    "middle": middle,
    "p": p_figure,
    "count": count,
}
"""How numbers are written, in the page and in the card alike."""
