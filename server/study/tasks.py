"""Each pretext task alone and the curriculum; the federation, each site alone, and all images in one place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from server.study.arms import Arm, Floor, Pretrained, StudyKind, Untrained, study_kinds
from server.study.curricula import curriculum_arm, single_tasks
from server.study.dealing import ALONE, POOLED

if TYPE_CHECKING:
    from federation_configs.schema import FederationConfig


@study_kinds.register("tasks")
class Tasks(StudyKind):
    """The curriculum against its parts, and the federation against what there is without one.

    Attributes:
        initial: whether arms begin with given weights too.
    """

    initial: bool = False

    def arms(self, config: FederationConfig) -> Iterable[Arm]:
        """The federated curriculum first."""
        stages = config.curriculum.stage
        federated = curriculum_arm(stages, "the federation with the whole curriculum")
        federated = replace(federated, name="federated", title=f"federated: {federated.title}")
        yield federated
        if len(stages) > 1:
            yield from single_tasks(stages)
        yield Pretrained(
            "local-only",
            "local only: mean over the sites",
            "each site alone with the whole curriculum, as many rounds as in the federation; compute of all sites",
            stages=stages,
            dealing=ALONE,
        )
        yield Pretrained(
            "pooled",
            "pooled",
            "one site with everybody's images; a round has the steps of all sites one after the other",
            stages=stages,
            dealing=POOLED,
        )
        if self.initial:
            yield curriculum_arm(stages, "the federation with the curriculum, from the given weights", given=True)
            yield Untrained("given", "given weights", "the given weights, trained by no pretext task", given=True)
        yield Untrained("random", "random", "the backbone before any training; fine-tuned: from scratch")
        yield Floor("floor", "thumbnail floor", "a 20x20 thumbnail and the colours")
