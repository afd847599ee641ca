"""``aiseeme audit bias``: a model audited at the hospitals that played its run, or at simulated ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.analysis.image_sets import Condition, as_number, number_text
from aiseeme_models.errors import InputError
from aiseeme_models.images.labels import OF_NO_CLASS
from server.asked_audit import AskedAudit, associations, check_audit
from server.audited_hospitals import audited_hospitals
from server.bias_report import BiasReport
from server.served_sites import own_hospitals
from server.simulation import reached
from server.subgroups import audit_subgroups

if TYPE_CHECKING:
    from server.model_reference import FoundModel
    from server.progress import Progress
    from server.simulation import Hospitals

_NAMED = 12
"""Values of a column that are shown by name."""


def audit_own(found: FoundModel, asked: AskedAudit, progress: Progress) -> tuple[BiasReport, Path]:
    """Audit a launched run's model at its own hospitals, and write what was found into the run's folder.

    Raises:
        InputError: what is asked for needs their images, nobody serves the federation, or its sites are at work.
        RunFailed: no hospital could answer; the text says why.
    """
    layers = check_audit(found, asked)
    if asked.subgroups:
        raise InputError(
            "--subgroups: hospitals do not tell figures of subgroups yet; give --data to test on a folder that is here"
        )
    with own_hospitals(found) as sites:
        outcome = associations(found, asked, layers, sites, progress)
    report = BiasReport.of(found.run, found.config.seed, outcome, [], [])
    return report, report.save(found.folder.parent)


def audit_simulated(
    found: FoundModel,
    data: Sequence[Path],
    asked: AskedAudit,
    *,
    sites: int | None,
    partition: str | None,
    device: str,
    home: Path,
    progress: Progress,
) -> tuple[BiasReport, Path]:
    """Audit a model at simulated hospitals, and write what was found into the run's folder.

    Args:
        found: the model.
        data, sites, partition: as in `server.simulation.simulate`; no folder: those of the run's own simulation.
        asked: what is wanted.
        device: torch device of the sites.
        home: the folder of all runs.
        progress: shows what happens.

    Returns:
        The report, and its file.

    Raises:
        InputError: the model cannot be audited, or the images have no such columns or values.
        RunFailed: no hospital has patients enough.
    """
    layers = check_audit(found, asked)
    with audited_hospitals(
        found, data, sites=sites, partition=partition, device=device, home=home, progress=progress
    ) as hospitals:
        _check_there(asked, hospitals)
        outcome = associations(found, asked, layers, reached(hospitals.sites), progress) if asked.tests else None
        subgroups, gaps = audit_subgroups(found, hospitals, asked.subgroups, device=device)
    report = BiasReport.of(found.run, found.config.seed, outcome, subgroups, gaps)
    return report, report.save(found.folder.parent)


def _check_there(asked: AskedAudit, hospitals: Hospitals) -> None:
    """Refuse columns and sets that no image has: they are slips of the pen.

    Raises:
        InputError: with what there is.
    """
    for test in asked.tests:
        for option, conditions in (("--groups", (test.x, test.y)), ("--attributes", (test.a, test.b))):
            for condition in conditions:
                _check_set(f"{option} {condition.text}", condition, hospitals)
    for one in asked.subgroups:
        _check_column(f"--subgroups {one.column}", one.column, hospitals)
        for part in one.parts:
            _check_set(f"--subgroups {part.text}", part, hospitals)


def _check_column(option: str, column: str, hospitals: Hospitals) -> list[str]:
    """The values of a column over all images.

    Raises:
        InputError: no image has it; with the columns that there are.
    """
    there = sorted({value for row in hospitals.rows if (value := row.told(column))})
    if not there:
        columns = {name for row in hospitals.rows for name in row.columns} - OF_NO_CLASS
        columns |= {"label"} if any(row.label for row in hospitals.rows) else set()
        known = f"labels.csv has {', '.join(sorted(columns))}" if columns else "there is no labels.csv"
        raise InputError(f"{option}: no image has a column {column!r}; {known}")
    return there


def _check_set(option: str, condition: Condition, hospitals: Hospitals) -> None:
    there = _check_column(option, condition.column, hospitals)
    for value in condition.values:
        if value not in there:
            raise InputError(f"{option}: no image has {value!r}; there are {_some(there)}")
    if not any(condition.holds({condition.column: value}) for value in there):
        numbers = [number for value in there if (number := as_number(value)) is not None]
        known = f"{number_text(min(numbers))} to {number_text(max(numbers))}" if numbers else _some(there)
        raise InputError(f"{option}: no image has a number within; there are {known}")


def _some(values: Sequence[str]) -> str:
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    return ", ".join(values[:_NAMED]) + more
