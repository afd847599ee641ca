"""The order as it is written."""

from __future__ import annotations

from collections.abc import Sequence

from aiseeme_models.curriculum.ordering.base import Candidate, Ordered, Ordering, Trials, orderings
from aiseeme_models.options import Options


@orderings.register("fixed")
class Fixed(Ordering[Options]):
    """Nothing is tried."""

    says = "the order as it is written"

    def settle(self, candidates: Sequence[Candidate], trials: Trials) -> Ordered:
        """See `Ordering.settle`."""
        return Ordered(tuple(range(len(candidates))), ("the order is the configuration's; nothing was tried",))
