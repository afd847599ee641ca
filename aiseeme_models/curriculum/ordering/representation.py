"""By how different a task's representation is from what the backbone knows already, among tasks that are good enough.

Distance is ``1 - CKA`` (Kornblith et al. 2019, arXiv 1905.00414) between the backbone so far and each task's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from aiseeme_models.curriculum.ordering.base import Candidate, Ordered, Ordering, Trials, orderings, percent
from aiseeme_models.options import Options


class RepresentationOptions(Options):
    """Options of `Representation`."""

    min_gain: float = Field(0.0, ge=-1, lt=1, description="how far a task alone must be above the untrained backbone")


@orderings.register("representation")
class Representation(Ordering[RepresentationOptions]):
    """The best single task first; then, each time, the good one whose own backbone is furthest from the one so far."""

    says = "the best task, then each time the one whose representation is furthest from the backbone so far"
    options_type = RepresentationOptions

    def settle(self, candidates: Sequence[Candidate], trials: Trials) -> Ordered:
        """See `Ordering.settle`. Where no task is good enough the best one is all."""
        untrained = trials.score(())
        scores = {number: trials.score((number,)) for number in range(len(candidates))}
        best = max(scores, key=lambda number: scores[number])
        least = untrained + self.options.min_gain
        why = [f"{candidates[best].name} is the best alone: {percent(scores[best])} (untrained {percent(untrained)})"]
        left = []
        for number in scores:
            if number == best:
                continue
            if scores[number] >= least:
                left.append(number)
            else:
                why.append(f"{candidates[number].name} is left out: {percent(scores[number])} alone")
        order: tuple[int, ...] = (best,)
        while left:
            apart = {number: trials.distance(order, (number,)) for number in left}
            chosen = max(left, key=lambda number: apart[number])
            why.append(f"{candidates[chosen].name} is furthest: 1 - CKA = {apart[chosen]:.3f}")
            order = (*order, chosen)
            left.remove(chosen)
        return Ordered(order, tuple(why))
