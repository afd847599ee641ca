"""Greedy forward selection: at each place the task that helps most after those before it, as long as one helps."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from aiseeme_models.curriculum.ordering.base import Candidate, Ordered, Ordering, Trials, orderings, percent
from aiseeme_models.options import Options


class GreedyOptions(Options):
    """Options of `Greedy`."""

    min_gain: float = Field(
        0.005, ge=0, lt=1, description="smallest gain of balanced accuracy for which a task is added"
    )


@orderings.register("greedy")
class Greedy(Ordering[GreedyOptions]):
    """``k (k + 1) / 2`` trials of one stage each at most, for ``k`` tasks; tasks that do not help are left out."""

    says = "at each place the task with the best probe after those before it; ends when none gains"
    options_type = GreedyOptions

    def settle(self, candidates: Sequence[Candidate], trials: Trials) -> Ordered:
        """See `Ordering.settle`. The first place is always filled."""
        order: tuple[int, ...] = ()
        best, why = trials.score(()), [f"untrained: {percent(trials.score(()))}"]
        while left := [number for number in range(len(candidates)) if number not in order]:
            scores = {number: trials.score((*order, number)) for number in left}
            chosen = max(left, key=lambda number: scores[number])  # the first of equals
            gain = scores[chosen] - best
            tried = ", ".join(f"{candidates[number].name} {percent(scores[number])}" for number in left)
            if order and gain < self.options.min_gain:
                why.append(f"place {len(order) + 1}: none gains {percent(self.options.min_gain)} ({tried}): the end")
                break
            order, best = (*order, chosen), scores[chosen]
            why.append(f"place {len(order)}: {candidates[chosen].name} ({tried})")
        return Ordered(order, tuple(why))
