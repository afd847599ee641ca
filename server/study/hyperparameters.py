"""Learning rate and batch size of one stage, tried on a grid and chosen by patients that are in no test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from aiseeme_models.curriculum.tuning import Batch
from aiseeme_models.errors import InputError
from aiseeme_models.images.splits import Split
from server.study.arms import Arm, Pretrained, StudyKind, study_kinds
from server.study.dealing import SameWork

if TYPE_CHECKING:
    from federation_configs.schema import FederationConfig

Rate = Annotated[float, Field(gt=0)]


@study_kinds.register("hyperparameters")
class Hyperparameters(StudyKind):
    """A grid over one stage. Every cell sees equally many images; a larger batch means fewer steps.

    The probes test on the validation split's patients: a setting that the test split had chosen would make that
    split's figures too good. Losses of other batch sizes or tasks cannot be compared, so none is.

    Attributes:
        lr: learning rates; empty: the configuration's alone.
        batch: batch sizes; empty: the configuration's alone.
        stage: number of the stage, from 1; 0: the last one. The ones before it are played once for all.
    """

    tested: ClassVar[Split] = "validation"

    lr: tuple[Rate, ...] = Field(default=(), strict=False)
    batch: tuple[Batch, ...] = Field(default=(), strict=False)
    stage: int = Field(default=0, ge=0)

    def arms(self, config: FederationConfig) -> Iterable[Arm]:
        """The configuration's own setting first where it is in the grid."""
        stages = config.curriculum.stage
        if self.stage > len(stages):
            raise InputError(f"--stage {self.stage}: the curriculum has {len(stages)} stages")
        place = (self.stage or len(stages)) - 1
        own = stages[place]
        rates, batches = self.lr or (own.learning_rate,), self.batch or (own.batch_size,)
        grid = sorted(set(itertools.product(rates, batches)))
        if len(grid) < 2:
            raise InputError("--lr and --batch: give at least two settings to compare, as --lr 1e-4,1e-3")
        grid.sort(key=lambda setting: setting != (own.learning_rate, own.batch_size))
        common = math.lcm(*batches)
        for rate, batch in grid:
            setting = own.model_copy(update={"lr": rate, "batch_size": batch})
            yield Pretrained(
                f"lr-{rate:g}-batch-{batch}",
                f"lr {rate:g}, batch {batch}",
                f"{own.task} with this learning rate and batch size",
                stages=(*stages[:place], setting, *stages[place + 1 :]),
                dealing=SameWork(own, common, place),
            )
