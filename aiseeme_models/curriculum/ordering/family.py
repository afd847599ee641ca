"""By what kind of thing a task teaches, from geometry to single images, as the AISEEME project's surviving runs go."""

from __future__ import annotations

from collections.abc import Sequence

from aiseeme_models.curriculum.ordering.base import Candidate, Ordered, Ordering, Trials, orderings
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import Family

_ORDER: tuple[Family, ...] = ("geometric", "generative", "clustering", "instance", "non-contrastive", "mixed")


@orderings.register("family")
class ByFamily(Ordering[Options]):
    """Geometric, generative, clustering, instance, non-contrastive, several at once; nothing is tried."""

    says = "families of tasks: " + ", ".join(_ORDER)

    def settle(self, candidates: Sequence[Candidate], trials: Trials) -> Ordered:
        """See `Ordering.settle`; tasks of one family keep the configuration's order."""
        order = sorted(range(len(candidates)), key=lambda number: _ORDER.index(candidates[number].family))
        return Ordered(tuple(order), tuple(f"{candidates[one].name} is {candidates[one].family}" for one in order))
