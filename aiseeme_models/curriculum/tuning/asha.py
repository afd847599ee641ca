"""Asynchronous successive halving (Li et al. 2020, "A system for massively parallel hyperparameter tuning")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Job:
    """A candidate that is to be trained up to a rung."""

    candidate: int
    rung: int


@dataclass
class Asha:
    """Algorithm 2 of the paper (arXiv 1810.05934), for a given list of candidates.

    Nobody waits for a whole rung to be filled: a worker that is free takes the best candidate that is among the top
    ``1 / reduction`` of those that have come to its rung so far, else a new one.

    Attributes:
        candidates: how many there are; they begin in the order of their numbers.
        rungs: how many there are.
        reduction: the paper's eta.
    """

    candidates: int
    rungs: int
    reduction: int
    _begun: int = field(default=0, init=False)
    _errors: list[dict[int, float]] = field(init=False)
    _promoted: list[set[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._errors = [{} for _ in range(self.rungs)]
        self._promoted = [set() for _ in range(self.rungs)]

    def next_job(self) -> Job | None:
        """What a free worker does; None: nothing, until something is told (or at all)."""
        for rung in reversed(range(self.rungs - 1)):
            here = self._ranked(rung)
            for candidate in here[: len(self._errors[rung]) // self.reduction]:
                if candidate not in self._promoted[rung]:
                    self._promoted[rung].add(candidate)
                    return Job(candidate, rung + 1)
        if self._begun < self.candidates:
            self._begun += 1
            return Job(self._begun - 1, 0)
        return None

    def tell(self, job: Job, error: float) -> None:
        """What a job came to: the smaller the better; infinity takes the candidate out."""
        self._errors[job.rung][job.candidate] = math.inf if math.isnan(error) else error

    def best(self) -> int | None:
        """The best candidate of the highest rung that any has come to; None where all are out."""
        return next((here[0] for rung in reversed(range(self.rungs)) if (here := self._ranked(rung))), None)

    def _ranked(self, rung: int) -> Sequence[int]:
        """Those that are not out, the best first; of equal ones the one that began first."""
        errors = self._errors[rung]
        return sorted((one for one in errors if errors[one] < math.inf), key=lambda one: (errors[one], one))
