"""What an ordering policy is: it tries sequences of tasks, by what sites tell of them, and settles on one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from aiseeme_models.options import Options
from aiseeme_models.pretext.base import Family
from aiseeme_models.registry import Registry

OptionsT = TypeVar("OptionsT", bound=Options)
Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """A stage that may have a place in the curriculum.

    Attributes:
        name: its task, numbered where a task is there twice.
        family: its task's.
    """

    name: str
    family: Family


class Trials(Protocol):
    """What sequences of candidates come to, played one after the other from an untrained backbone.

    A sequence is a tuple of the candidates' numbers; the empty one is the untrained backbone. The same question is
    never played twice.
    """

    def score(self, sequence: Numbers) -> float:
        """Mean balanced accuracy of the sites' probes, in [0, 1]."""
        ...

    def distance(self, first: Numbers, second: Numbers) -> float:
        """``1 - CKA`` of the two backbones' last features on the sites' images, in [0, 2]."""
        ...


@dataclass(frozen=True)
class Ordered:
    """What a policy settled on.

    Attributes:
        order: the candidates' numbers; some may be left out.
        why: a sentence for each decision, in order.
    """

    order: Numbers
    why: tuple[str, ...]


class Ordering(ABC, Generic[OptionsT]):
    """One policy.

    Attributes:
        says: what it does, in a sentence.
        options_type: its typed options.
    """

    says: ClassVar[str]
    options_type: ClassVar[type[Options]] = Options

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def settle(self, candidates: Sequence[Candidate], trials: Trials) -> Ordered:
        """An order of the ``candidates``, of which there is at least one."""


orderings: Registry[type[Ordering[Any]]] = Registry("ordering policy")


def percent(score: float) -> str:
    """A score for people: "48.3 %"."""
    return f"{100 * score:.1f} %"
