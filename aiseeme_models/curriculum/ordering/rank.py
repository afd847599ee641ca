"""Tasks by what each does alone: from the weakest to the strongest, as a curriculum goes, or the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from aiseeme_models.curriculum.ordering.base import Candidate, Ordered, Ordering, Trials, orderings, percent
from aiseeme_models.options import Options


class _Rank(Ordering[Options]):
    """Each task is trained alone, and probed."""

    strongest_first: ClassVar[bool]

    def settle(self, candidates: Sequence[Candidate], trials: Trials) -> Ordered:
        """See `Ordering.settle`; equal scores keep the configuration's order."""
        scores = [trials.score((number,)) for number in range(len(candidates))]
        sign = -1 if self.strongest_first else 1
        order = sorted(range(len(candidates)), key=lambda number: sign * scores[number])
        return Ordered(tuple(order), tuple(f"{candidates[one].name} alone: {percent(scores[one])}" for one in order))


@orderings.register("ascending")
class Ascending(_Rank):
    """From the weakest single task to the strongest."""

    says = "single tasks by their probe, the weakest first"
    strongest_first = False


@orderings.register("descending")
class Descending(_Rank):
    """From the strongest single task to the weakest."""

    says = "single tasks by their probe, the strongest first"
    strongest_first = True
