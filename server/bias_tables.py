"""The tables that ``aiseeme audit bias`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from federation_configs.command_line import shown
from server.tables import with_interval

if TYPE_CHECKING:
    from server.bias_report import BiasReport

_EMPTY = "empty layer"
_SHORT = {"found": "found", "not found": "-", "not testable": "not testable"}


def tests_table(report: BiasReport) -> Table:
    """Every test at every layer, over all sites."""
    titles = ("test", "layer", "effect", "untrained", "p", "p beyond", "corrected", "control", "verdict")
    table = Table(title="what the model ties together, over all sites")
    for title in titles:
        table.add_column(title, justify="left" if title in ("test", "layer", "verdict") else "right")
    before = None
    for one in report.tests:
        mean = sum(one.untrained) / len(one.untrained)
        table.add_row(
            "" if one.test == before else shown(one.test),
            shown(one.layer),
            f"{one.effect:+.2f}",
            f"{mean:+.2f}",
            *(p_value(value) for value in (one.p_value, one.beyond, one.corrected, one.control)),
            one.verdict,
        )
        before = one.test
    return table


def sites_table(report: BiasReport) -> Table:
    """The effect at each site, with the size of its groups, and whether it is found there alone."""
    table = Table(title="at each site: effect (patients in a group), and the verdict there alone")
    for title in ("test", "layer"):
        table.add_column(title)
    for site in report.images:
        table.add_column(shown(site), justify="right")
    before = None
    for one in report.tests:
        cells = []
        for site in report.images:
            told = one.sites.get(site)
            if told is not None:
                cells.append(f"{told.effect:+.2f} ({told.sizes.x}) {_SHORT[told.verdict]}")
            elif site in report.omitted.get(one.test, {}):
                cells.append("too few")
            else:
                cells.append(_EMPTY)
                table.caption = f"{_EMPTY}: a network gives some image nothing, or no number, there"
        table.add_row("" if one.test == before else shown(one.test), shown(one.layer), *cells)
        before = one.test
    return table


def subgroups_table(report: BiasReport) -> Table:
    """The classifier among the patients of each value."""
    table = Table(title="the classifier by subgroup, with 95 % intervals over patients")
    for title in ("column", "value", "images", "patients", "balanced accuracy", "recall by class (images)"):
        table.add_column(title, justify="right" if title in ("images", "patients") else "left")
    before = None
    for one in report.subgroups:
        score = (
            one.omitted or ""
            if one.balanced_accuracy is None
            else with_interval(one.balanced_accuracy, one.low, one.high)
        )
        recalls = ", ".join(
            f"{shown(name)} {'-' if entry.recall is None else f'{entry.recall:.2f}'} ({entry.n_test})"
            for name, entry in one.per_class.items()
        )
        column = "" if one.column == before else shown(one.column)
        table.add_row(column, shown(one.value), str(one.n_images), str(one.n_patients), score, recalls)
        before = one.column
    return table


def gaps_table(report: BiasReport) -> Table:
    """The largest gap of each column."""
    table = Table(title="largest gap in balanced accuracy between two subgroups")
    for title in ("column", "best", "worst", "gap", "of subgroups"):
        table.add_column(title, justify="right" if title == "of subgroups" else "left")
    for gap in report.gaps:
        ends = with_interval(gap.difference, gap.low, gap.high)
        table.add_row(shown(gap.column), shown(gap.best), shown(gap.worst), ends, str(gap.compared))
    return table


def p_value(value: float) -> str:
    """Four decimals, which is as well as shuffles know it."""
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"
