"""report.html: one page with everything inside, for the people who ran a federation and those who took part."""

from __future__ import annotations

from pathlib import Path

from aiseeme_models.atomic_files import replacing
from aiseeme_models.downstream.intervals import Interval
from aiseeme_models.downstream.metrics import SPECIFICITY, ProbeScore
from aiseeme_models.downstream.pooled import Bounded
from server.report.findings import chance, findings, standard_error, verdict
from server.report.plots import colours_of, loss_plot
from server.report.record import RunStory, read_run
from server.results import Results


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` from ``results.json``, ``metrics.jsonl`` and ``config.toml`` of a run.

    Every text is escaped (site names and reasons come from other machines) and the page loads nothing.

    Returns:
        The path of the page.

    Raises:
        InputError: ``results.json`` is missing or not what a run writes.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    record = read_run(run_folder)
    results = record.results
    colours = colours_of([site.name for site in results.sites])
    environment = Environment(
        loader=PackageLoader("server", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=figure, duration=duration, interval=interval, middle=middle)
    page = environment.get_template("report.html.j2").render(
        results=results,
        verdict=verdict(results),
        findings=findings(record),
        plots=_plots(record, colours),
        colours=colours,
        speeds=record.images_per_s,
        bars=_bars(results),
        chance=chance(results.probe.linear) if results.probe else None,
        config=record.config,
        specificity=SPECIFICITY,
    )
    path = run_folder / "report.html"
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return path


def middle(value: Bounded | None) -> str:
    """Three decimals of a figure that is known between bounds, or a dash."""
    return figure(None if value is None else value.value)


def interval(value: Interval | Bounded | None) -> str:
    """Both ends with three decimals, or a dash where there is no interval."""
    return "–" if value is None else f"{value.low:.3f} to {value.high:.3f}"


def figure(value: float | None) -> str:
    """Three decimals, or a dash where there is no figure."""
    return "–" if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """``3725`` -> ``1 h 2 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def _plots(record: RunStory, colours: dict[str, str]) -> list[tuple[str, str]]:
    """Title and SVG of each stage that was started."""
    return [
        (f"{number} · {stage.task}", loss_plot(curves, stage.chance_loss, colours, name=f"stage{number}"))
        for number, (stage, curves) in enumerate(zip(record.results.stages, record.curves, strict=False), start=1)
    ]


def _bars(results: Results) -> list[tuple[str, str, ProbeScore, float]]:
    """Rows of the probe's table: backbone, probe, score, standard error."""
    rows: list[tuple[str, str, ProbeScore]] = []
    if results.probe is not None:
        rows += [("this run", "linear", results.probe.linear), ("this run", "k-NN", results.probe.knn)]
    if results.baselines is not None:
        rows += [
            ("random backbone", "linear", results.baselines.random.linear),
            ("random backbone", "k-NN", results.baselines.random.knn),
            ("thumbnail floor", "linear", results.baselines.floor),
        ]
    return [(who, kind, score, standard_error(score)) for who, kind, score in rows]
