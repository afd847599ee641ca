"""Arms that several kinds of study have: a curriculum, and each of its tasks alone for as many rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from server.study.arms import Pretrained

if TYPE_CHECKING:
    from aiseeme_models.curriculum.stages import Stage


def curriculum_arm(stages: Sequence[Stage], says: str, *, given: bool = False) -> Pretrained:
    """An arm that is named after its tasks, in their order."""
    tasks = [stage.task for stage in stages]
    prefix, title = ("given-", "given weights > ") if given else ("", "")
    return Pretrained(prefix + "-then-".join(tasks), title + " > ".join(tasks), says, stages=tuple(stages), given=given)


def single_tasks(stages: Sequence[Stage]) -> Iterator[Pretrained]:
    """Each task of the curriculum alone, for the rounds of all of it.

    A task that is there more than once, with other options, is told apart by the number of its stage.
    """
    rounds = sum(stage.rounds for stage in stages)
    often = Counter(stage.task for stage in stages)
    for number, stage in enumerate(stages, start=1):
        alone = without_teacher([stage.model_copy(update={"rounds": rounds})])
        twice = often[stage.task] > 1
        yield Pretrained(
            f"{stage.task}-alone" + (f"-{number}" if twice else ""),
            f"{stage.task} alone" + (f" (stage {number})" if twice else ""),
            "one task for the rounds of the whole curriculum",
            stages=alone,
        )


def without_teacher(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages in this order; the first has no stage before it to distil from."""
    first, *others = stages
    if first.distill is not None and first.distill.teacher == "stage":
        first = first.model_copy(update={"distill": None})
    return (first, *others)
