"""``aiseeme audit bias``: a model audited at simulated hospitals, by the messages that real ones answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.analysis.image_sets import AssociationTest, Condition, as_number, number_text
from aiseeme_models.analysis.layer_features import layer_names
from aiseeme_models.errors import InputError
from aiseeme_models.images.labels import OF_NO_CLASS
from server.asked_sites import NamedBackbone
from server.audited_hospitals import audited_hospitals
from server.bias_audit import AuditOutcome, BiasAudit
from server.bias_report import BiasReport
from server.model_reference import find_model
from server.registry import new_run_id
from server.simulation import local_grid
from server.subgroups import AskedSubgroups, audit_subgroups

if TYPE_CHECKING:
    from aiseeme_models.backbones import Backbone
    from server.model_reference import FoundModel
    from server.progress import Progress
    from server.simulation import Hospitals

_NAMED = 12
"""Values of a column that are shown by name."""


@dataclass(frozen=True)
class AskedAudit:
    """What a person asks for.

    Attributes:
        tests: which images are compared with which; none: no association is tested.
        layers: blocks or layers of the backbone; none: all.
        untrained: how many untrained networks are tested beside it.
        images: most images of a hospital.
        subgroups: columns among whose values a classifier's figures are told.
    """

    tests: tuple[AssociationTest, ...]
    layers: tuple[str, ...]
    untrained: int
    images: int
    subgroups: tuple[AskedSubgroups, ...]


def parse_tests(groups: Sequence[str], attributes: Sequence[str]) -> tuple[AssociationTest, ...]:
    """Every pair of groups with every pair of attributes.

    Raises:
        InputError: an option that is not two conditions, or one kind of option without the other.
    """
    if bool(groups) != bool(attributes):
        raise InputError("--groups and --attributes belong together: give both, each as COLUMN=VALUE:COLUMN=VALUE")
    pairs = [_pair("--groups", text) for text in groups]
    shown = [_pair("--attributes", text) for text in attributes]
    tests = [_test(group, attribute) for group in pairs for attribute in shown]
    names = [test.name for test in tests]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--groups, --attributes: {name}: asked for twice")
    return tuple(tests)


def audit_bias(
    reference: str,
    data: Sequence[Path],
    asked: AskedAudit,
    *,
    sites: int | None,
    partition: str | None,
    device: str,
    home: Path,
    progress: Progress,
) -> tuple[BiasReport, Path]:
    """Audit a run's model at simulated hospitals, and write what was found into the run's folder.

    Args:
        reference: see `find_model`.
        data, sites, partition: as in `server.simulation.simulate`; no folder: those of the run's own simulation.
        asked: what is wanted.
        device: torch device of the sites.
        home: the folder of all runs.
        progress: shows what happens.

    Returns:
        The report, and its file.

    Raises:
        InputError: the model is unreadable, or the images have no such columns or values.
        RunFailed: no hospital has patients enough.
    """
    found = find_model(reference, home)
    if found.config.privacy is not None:  # whose patients would be compared without noise
        raise InputError(f"{found.run} was trained under [privacy], where hospitals audit no models")
    layers = _layers(found.backbone, asked.layers)
    with audited_hospitals(
        found, data, sites=sites, partition=partition, device=device, home=home, progress=progress
    ) as hospitals:
        _check_there(asked, hospitals)
        outcome = _associations(found, asked, layers, hospitals, progress) if asked.tests else None
        subgroups, gaps = audit_subgroups(found, hospitals, asked.subgroups, device=device)
    report = BiasReport.of(found.run, found.config.seed, outcome, subgroups, gaps)
    return report, report.save(found.folder.parent)


def _associations(
    found: FoundModel, asked: AskedAudit, layers: list[str], hospitals: Hospitals, progress: Progress
) -> AuditOutcome:
    grid = local_grid(hospitals.sites)
    audit = BiasAudit(
        grid,
        found.config,
        new_run_id(),
        [site.name for site in hospitals.sites],
        observer=progress,
        clock=grid.clock,
    )
    named = NamedBackbone(found.run, found.config.model.backbone, found.backbone)
    return audit.of(named, asked.tests, layers=layers, untrained=asked.untrained, images=asked.images)


def _pair(option: str, text: str) -> tuple[Condition, Condition]:
    parts = text.split(":")
    if len(parts) != 2:
        raise InputError(f"{option} {text}: write two sets with a colon between, as sex=female:sex=male")
    try:
        first, second = (Condition.parse(part) for part in parts)
    except InputError as error:
        raise InputError(f"{option} {text}: {error}") from None
    if first.overlaps(second):
        raise InputError(f"{option} {text}: an image can be in both")
    return first, second


def _test(groups: tuple[Condition, Condition], attributes: tuple[Condition, Condition]) -> AssociationTest:
    return AssociationTest(x=groups[0], y=groups[1], a=attributes[0], b=attributes[1])


def _layers(backbone: Backbone, asked: Sequence[str]) -> list[str]:
    """The layers that are meant, in the backbone's order; a block means both of its own."""
    known = layer_names(backbone)
    for name in asked:
        if name not in known and name not in backbone.blocks:
            raise InputError(
                f"--layers {name}: there are {', '.join(backbone.blocks)}, each also as {known[0]} or {known[1]}"
            )
    return [name for name in known if not asked or name in asked or name.rpartition("/")[0] in asked]


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
