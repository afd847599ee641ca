"""How far a run has come: what every checkpoint holds beside the weights, so that a resumed run is the same run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from aiseeme_models.curriculum.stopping import plateau
from server.replies import Refused
from server.results import MissedRound
from server.tuning.found import FoundSetting

if TYPE_CHECKING:
    from aiseeme_models.curriculum.stages import Stage


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StageState(_State):
    """One stage so far.

    ``teacher`` is the hash of the backbone that it distils from, ``found`` its rate and batch size, where they were
    looked for, ``best_round`` the one of the lowest held-out loss, where the stage ends with that. Where it learns
    labels, ``class_images`` are the training images of each class at all sites when it began, and ``difficulties`` how
    hard each class was in the round before, where a class-wise curriculum goes by that.
    """

    rounds_done: int = 0
    stopped_by: Literal["rounds", "plateau", "probe"] | None = None
    losses: list[float] = Field(default_factory=list)
    heldout: list[float] = Field(default_factory=list)
    scores: list[float] = Field(default_factory=list)
    chance_loss: float | None = None
    teacher: str | None = None
    found: FoundSetting | None = None
    best_round: int | None = None
    best_loss: float | None = None
    class_images: list[int] | None = None
    difficulties: list[float | None] | None = None


class SiteState(_State):
    """One site so far.

    ``epsilon`` is what the run has cost its patients, where they are protected, ``classes`` how many training images of
    each class it has told of, where labels are learnt.
    """

    images: int = 0
    validation: int = 0
    rejected: dict[str, int | Literal["<5"]] = Field(default_factory=dict)
    classes: list[int] | None = None
    answered: int = 0
    epsilon: float | None = None
    missed: list[MissedRound] = Field(default_factory=list)

    def miss(self, round_number: int, why: Refused) -> None:
        """Note that the site did not count in a round."""
        self.missed.append(MissedRound(round=round_number, code=why.code.value, reason=why.sentence))


class RunState(_State):
    """A run so far.

    Attributes:
        round: absolute number of the last finished round; 0 is the initial model.
        stage: index of the stage that the next round belongs to.
        round_in_stage: how many rounds of that stage are done.
        finished: whether the curriculum is done.
        training_s: seconds that sites spent on the critical path.
        rounds_s: wall seconds of all rounds.
        weights_bytes: of the weights that travelled in rounds, to the sites that counted and back.
    """

    round: int = 0
    stage: int = 0
    round_in_stage: int = 0
    finished: bool = False
    stages: list[StageState]
    sites: dict[str, SiteState]
    training_s: float = 0.0
    rounds_s: float = 0.0
    weights_bytes: int = 0

    def advance(self, options: Stage) -> bool:
        """Count a round; whether its stage, which ``options`` describes, has ended with it."""
        stage = self.stages[self.stage]
        self.round += 1
        self.round_in_stage += 1
        stage.rounds_done = self.round_in_stage
        errors = {"plateau": stage.heldout, "probe": [1 - score for score in stage.scores], "rounds": []}[options.stop]
        if options.stop != "rounds" and plateau(errors, options.patience, options.min_improvement):
            stage.stopped_by = options.stop
        elif self.round_in_stage >= options.rounds:
            stage.stopped_by = "rounds"
        else:
            return False
        if self.stage + 1 < len(self.stages):
            self.stage, self.round_in_stage = self.stage + 1, 0
        else:
            self.finished = True
        return True


def mean_over_sites(values: Iterable[tuple[float, int]]) -> float | None:
    """Mean of (value, weight) pairs, exact and so independent of the sites' order; None of nothing."""
    pairs = list(values)
    total = sum(weight for _, weight in pairs)
    return math.fsum(value * weight for value, weight in pairs) / total if total else None
