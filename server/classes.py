"""What the coordinator knows of classes: how frequent each is over all sites, how hard, and which are let in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from aiseeme_models.downstream.ccl import admitted, class_difficulties
from aiseeme_models.downstream.classification import ClassificationOptions

if TYPE_CHECKING:
    from aiseeme_models.curriculum.stages import Stage
    from federation_configs.schema import FederationConfig
    from federation_configs.wire import DescribeReply, TrainReply
    from server.run_state import RunState, SiteState, StageState

_FEW = 2
"""What ``"<5"`` is taken for: the middle of 0 to 4."""

Told = int | Literal["<5"] | None


def wrong_classes(config: FederationConfig, described: DescribeReply) -> str | None:
    """What is wrong with a description's classes, in a sentence; None: nothing."""
    options = config.curriculum.stage[0].options
    if described.classes is None:
        return None
    if not isinstance(options, ClassificationOptions):
        return "its description counts classes, and no label is learnt"
    if len(described.classes) != len(options.classes):
        return f"its description counts {len(described.classes)} classes; there are {len(options.classes)}"
    if sum(count for count in described.classes if isinstance(count, int)) > described.train:
        return "its description counts more images of the classes than images"
    return None


def count_classes(state: RunState, options: Stage) -> None:
    """Note how many training images of each class the sites have, when a stage that learns labels begins.

    It stays as it is to the stage's end, so that a resumed run weighs classes as before.
    """
    stage = state.stages[state.stage]
    if isinstance(options.options, ClassificationOptions) and stage.class_images is None:
        stage.class_images = over_sites(state.sites.values(), len(options.options.classes))


def over_sites(sites: Iterable[SiteState], classes: int) -> list[int]:
    """Training images of each class over all sites: what was told, and what must be in the rest of it.

    Of ``"<5"`` two are counted; what a site kept back for their sake shares what is left of its images.
    """
    totals = [0] * classes
    for site in sites:
        for place, count in enumerate(_filled(site.classes, site.images) if site.classes else ()):
            totals[place] += count
    return totals


def _filled(told: Sequence[Told], images: int) -> list[int]:
    known = [count if isinstance(count, int) else _FEW if count == "<5" else 0 for count in told]
    kept_back = [place for place, count in enumerate(told) if count is None]
    rest = max(0, images - sum(known))
    for number, place in enumerate(kept_back):
        known[place] = rest // len(kept_back) + (number < rest % len(kept_back))
    return known


def question_of_classes(stage: StageState) -> dict[str, Any]:
    """What a request says of classes."""
    return {"class_images": None if stage.class_images is None else tuple(stage.class_images)}


def admitted_classes(options: Stage, stage: StageState, round_in_stage: int) -> tuple[bool, ...] | None:
    """Which classes are in, in a round of the stage counted from 0; None: no curriculum of classes."""
    kind = options.options
    if not isinstance(kind, ClassificationOptions) or kind.ccl is None:
        return None
    classes = len(kind.classes)
    given = kind.ccl.difficulties
    difficulties = stage.difficulties if given is None else [given[name] for name in kind.names]
    if difficulties is None:
        return (True,) * classes  # nobody has told yet what is hard
    return tuple(admitted(kind.ccl, difficulties, kind.ccl.admitted_classes(round_in_stage, classes)))


def note_difficulties(options: Stage, stage: StageState, counted: Mapping[str, TrainReply]) -> None:
    """Keep how hard each class was in a round, from what the sites that counted told of it."""
    kind = options.options
    told = [counted[name].class_losses for name in sorted(counted)]
    there = [losses for losses in told if losses is not None]
    if not isinstance(kind, ClassificationOptions) or not there:
        return
    sums = [[one.loss * one.images if one is not None else 0.0 for one in losses] for losses in there]
    counts = [[one.images if one is not None else 0 for one in losses] for losses in there]
    stage.difficulties = class_difficulties(sums, counts)
