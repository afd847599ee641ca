"""In which order a curriculum's tasks are played: one file for each policy."""

from aiseeme_models.curriculum.ordering import (  # noqa: F401  (registers them)
    family,
    fixed,
    greedy,
    rank,
    representation,
)
from aiseeme_models.curriculum.ordering.base import Candidate, Ordered, Ordering, Trials, orderings

__all__ = ["Candidate", "Ordered", "Ordering", "Trials", "orderings"]
