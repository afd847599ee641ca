"""What the coordinator knows of classes: how frequent each is over all sites, how hard, and which are let in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aiseeme_models.downstream.ccl import admitted, class_difficulties
from aiseeme_models.downstream.classification import ClassificationOptions

if TYPE_CHECKING:
    from aiseeme_models.curriculum.stages import Stage
    from federation_configs.schema import FederationConfig
    from federation_configs.wire import DescribeReply, TrainReply
    from server.run_state import RunState, SiteState, StageState


def wrong_classes(config: FederationConfig, described: DescribeReply) -> str | None:
    """What is wrong with a description's classes, in a sentence; None: nothing."""
    options = config.curriculum.stage[0].options
    if described.classes is None:
        return None
    if not isinstance(options, ClassificationOptions):
        return "its description counts classes, and no label is learnt"
    if len(described.classes) != len(options.classes):
        return f"its description counts {len(described.classes)} classes; there are {len(options.classes)}"
    if sum(described.classes) != described.train:
        return "its description counts another number of images of the classes than of images"
    return None


def count_classes(state: RunState, options: Stage) -> None:
    """Note how many training images of each class the sites have, when a stage that learns labels begins.

    It stays as it is to the stage's end, so that a resumed run weighs classes as before.
    """
    stage = state.stages[state.stage]
    if isinstance(options.options, ClassificationOptions) and stage.class_images is None:
        stage.class_images = over_sites(state.sites.values(), len(options.options.classes))


def over_sites(sites: Iterable[SiteState], classes: int) -> list[int] | None:
    """Training images of each class over all sites, as far as can be known.

    A site that does not tell (it has few of one) is taken to have them in the proportion of those that do, or equally
    many of each where none does. None where there is no image.
    """
    present = [site for site in sites if site.images]
    told = [site.classes for site in present if site.classes]
    totals = [sum(column) for column in zip(*told, strict=True)] if told else [1] * classes
    silent = sum(site.images for site in present if not site.classes)
    known = sum(totals)
    shared = [total * silent // known for total in totals]
    found = [total + more for total, more in zip(totals if told else [0] * classes, shared, strict=True)]
    return found if sum(found) else None


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
    """Keep how hard each class was in a round, from what the sites that counted told of it.

    A site's mean counts as its images do: how many of a class it has it may not tell where another class has few.
    """
    if not isinstance(options.options, ClassificationOptions):
        return
    there = [counted[name] for name in sorted(counted) if counted[name].class_losses is not None]
    if not there:
        return
    sums = [[0.0 if loss is None else loss * one.images for loss in one.class_losses or ()] for one in there]
    counts = [[0 if loss is None else one.images for loss in one.class_losses or ()] for one in there]
    stage.difficulties = class_difficulties(sums, counts)
