"""The result tables that commands print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from aiseeme_models.printable import LONGEST_LINE
from federation_configs.command_line import shown

if TYPE_CHECKING:
    from rich.console import Console

    from aiseeme_models.downstream.intervals import Interval
    from aiseeme_models.downstream.metrics import ProbeScore
    from aiseeme_models.downstream.pooled import Bounded
    from server.results import Downstream, Results


def probe_table(probe: dict[str, Any], baselines: dict[str, Any]) -> Table:
    """Pretrained backbone, random backbone and floor side by side, with the number of test images."""
    table = Table(title="probe on frozen features, test patients or lesions held out")
    for title in ("backbone", "probe", "balanced accuracy", "macro AUC", "test images"):
        table.add_column(title, justify="left" if title in ("backbone", "probe") else "right")
    rows = [
        ("pretrained", "linear", probe["linear"]),
        ("random", "linear", baselines["random"]["linear"]),
        ("pretrained", "k-NN", probe["knn"]),
        ("random", "k-NN", baselines["random"]["knn"]),
        ("thumbnail floor", "linear", baselines["floor"]),
    ]
    for backbone, kind, score in rows:
        auc = "undefined" if score["macro_auc"] is None else f"{score['macro_auc']:.3f}"
        table.add_row(backbone, kind, f"{score['balanced_accuracy']:.3f}", auc, str(score["n_test"]))
    return table


def classifier_table(downstream: Downstream) -> Table:
    """How the classifier did on the test patients of all sites and of each, with 95 % intervals over patients."""
    if downstream.pooled is None:
        return _told_table(downstream)
    table = _scores_table("classifier, tested on patients or lesions that were held out")
    scores = [("all sites", downstream.pooled), *downstream.sites.items()]
    if downstream.floor is not None:
        scores.append(("all sites, thumbnail floor", downstream.floor))
    for where, score in scores:
        table.add_row(shown(where), *_score_cells(score))
    return table


def elsewhere_table(score: ProbeScore, where: str) -> Table:
    """How a classifier did on another folder, and on each class."""
    table = _scores_table("classifier, tested on another place's images")
    table.add_row(shown(where), *_score_cells(score))
    for name, one in score.per_class.items():
        recall, auc = ("undefined" if value is None else f"{value:.3f}" for value in (one.recall, one.auc))
        table.add_row(
            shown(f"  {name}: recall"), recall, _interval(one.intervals.get("recall")), auc, "", str(one.n_test)
        )
    return table


def _scores_table(title: str) -> Table:
    table = Table(title=title)
    for column in ("tested at", "balanced accuracy", "95 % interval", "macro AUC", "calibration error", "test images"):
        table.add_column(column, justify="left" if column == "tested at" else "right")
    return table


def _score_cells(score: ProbeScore) -> tuple[str, ...]:
    return (
        f"{score.balanced_accuracy:.3f}",
        _interval(score.intervals.get("balanced_accuracy")),
        "undefined" if score.macro_auc is None else f"{score.macro_auc:.3f}",
        "undefined" if score.calibration is None else f"{score.calibration.ece:.3f}",
        str(score.n_test),
    )


def _interval(interval: Interval | None) -> str:
    return "undefined" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def with_interval(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    """A figure of three decimals with the ends of its interval where it has one, or a dash; ``sign`` as in formats."""
    if value is None:
        return "-"
    ends = "" if low is None or high is None else f" ({low:{sign}.3f} to {high:{sign}.3f})"
    return f"{value:{sign}.3f}{ends}"


def _told_table(downstream: Downstream) -> Table:
    """What the sites told of it, each figure with the least and the most that it can be."""
    table = Table(title="classifier, tested by the sites on their own test patients")
    for title in ("class", "sites", "test images", "recall", "AUC"):
        table.add_column(title, justify="left" if title == "class" else "right")
    if downstream.federated is None:
        return table
    score = downstream.federated.score
    table.add_row("all", "", "", _between(score.balanced_accuracy), _between(score.macro_auc))
    for name, one in score.per_class.items():
        table.add_row(shown(name), str(one.sites), str(one.images), _between(one.recall), _between(one.auc))
    return table


def _between(figure: Bounded | None) -> str:
    if figure is None:
        return "undefined"
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def print_results(console: Console, results: Results, folder: Path) -> None:
    """A run's outcome for a person."""
    sites = Table(title="sites")
    private = results.delta is not None
    what = "patients, rounded down" if private else "training images"
    for title in ("site", what, "rounds counted", *(["epsilon"] if private else []), "missed"):
        sites.add_column(title, justify="left" if title in ("site", "missed") else "right")
    for site in results.sites:
        first = f"{len(site.missed)}, first: {site.missed[0].reason}" if site.missed else "none"
        spent = ["" if site.epsilon is None else f"{site.epsilon:.2f}"] if private else []
        sites.add_row(shown(site.name), str(site.images), str(site.rounds_answered), *spent, shown(first))
    console.print(sites)
    if results.epsilon is not None:
        console.print(
            f"a patient's part in this run is hidden up to epsilon {results.epsilon:.2f} at delta {results.delta:g}",
            highlight=False,
        )
    if results.site_epsilon is not None:
        console.print(
            f"a whole site's part is hidden from the others up to epsilon {results.site_epsilon:.2f} at delta"
            f" {results.site_delta:g}",
            highlight=False,
        )
    for stage in results.stages:
        if stage.near_chance:
            console.print(
                f"[yellow]{shown(stage.task)} stayed near chance[/yellow]: loss {stage.loss_last:.3f} where"
                f" knowing nothing gives {stage.chance_loss:.3f}; these images may have no answer to it, or the stage"
                " was too short"
            )
    if results.probe is not None and results.baselines is not None:
        console.print(probe_table(results.probe.model_dump(), results.baselines.model_dump()))
    elif results.downstream is not None:
        console.print(classifier_table(results.downstream))
    elif results.probe_note:
        console.print(shown(results.probe_note), highlight=False)
    colour = "red" if results.status == "failed" else "green" if results.complete else "yellow"
    reason = f": {shown(results.reason, LONGEST_LINE)}" if results.reason else ""
    console.print(f"[{colour}]{results.status}[/{colour}]{reason}", highlight=False)
    seconds = results.seconds
    console.print(
        f"{results.rounds_done} rounds, {seconds.total:.0f} s ({seconds.training:.0f} s of it training)",
        highlight=False,
    )
    console.print(f"report: {shown(str(folder / 'report.html'), LONGEST_LINE)}", highlight=False, soft_wrap=True)
