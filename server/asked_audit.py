"""What a person asks of a bias audit, and asking it of sites, wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiseeme_models.analysis.image_sets import AssociationTest, Condition
from aiseeme_models.analysis.layer_features import layer_names
from aiseeme_models.errors import InputError
from server.asked_sites import NamedBackbone
from server.bias_audit import AuditOutcome, BiasAudit
from server.registry import new_run_id
from server.subgroups import AskedSubgroups

if TYPE_CHECKING:
    from server.asked_sites import Reached
    from server.model_reference import FoundModel
    from server.progress import Progress


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


def check_audit(found: FoundModel, asked: AskedAudit) -> list[str]:
    """The layers that are meant, in the backbone's order; a block means both of its own.

    Raises:
        InputError: a layer that the model does not have, or a model that hospitals do not audit.
    """
    if found.config.privacy is not None:  # whose patients would be compared without noise
        raise InputError(f"{found.run} was trained under [privacy], where hospitals audit no models")
    known = layer_names(found.backbone)
    for name in asked.layers:
        if name not in known and name not in found.backbone.blocks:
            raise InputError(
                f"--layers {name}: there are {', '.join(found.backbone.blocks)}, each also as {known[0]} or {known[1]}"
            )
    return [
        name for name in known if not asked.layers or name in asked.layers or name.rpartition("/")[0] in asked.layers
    ]


def associations(
    found: FoundModel, asked: AskedAudit, layers: Sequence[str], sites: Reached, progress: Progress
) -> AuditOutcome:
    """Have sites test what the model ties together.

    Raises:
        InputError: more than a site answers.
        RunFailed: no site answered; the text says why.
    """
    audit = BiasAudit(sites, found.config, new_run_id(), progress)
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
