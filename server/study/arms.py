"""What a study compares: its arms, each of which makes one or several models, and the kinds of study."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from aiseeme_models.images.splits import Split
from aiseeme_models.options import Options
from aiseeme_models.registry import Registry
from server.study.compute import Compute, planned, total
from server.study.dealing import TOGETHER, Dealing, Training

if TYPE_CHECKING:
    from aiseeme_models.curriculum.stages import Stage
    from client.site import Site
    from federation_configs.schema import FederationConfig
    from server.study.bench import Bench
    from server.study.cells import ModelScores


@dataclass(frozen=True)
class Arm(ABC):
    """One line of a study's table.

    Attributes:
        name: a folder's name.
        title: for people.
        says: what it is, in a sentence.
    """

    name: str
    title: str
    says: str

    @abstractmethod
    def play(self, bench: Bench) -> list[ModelScores]:
        """Make its models and score them."""

    def trainings(self, config: FederationConfig, sites: list[Site]) -> list[Training]:
        """What it trains; nothing, for most baselines."""
        return []

    def compute(self, config: FederationConfig, sites: list[Site]) -> Compute:
        """What it takes, known before it is played."""
        return total(planned(one.stages, one.images(config.holdout)) for one in self.trainings(config, sites))


@dataclass(frozen=True)
class Floor(Arm):
    """A thumbnail and the colours."""

    def play(self, bench: Bench) -> list[ModelScores]:
        """See `Arm.play`."""
        return [bench.floor()]


@dataclass(frozen=True)
class Untrained(Arm):
    """A backbone that no pretext task has trained: a random one, or a given one. Fine-tuned it is "from scratch"."""

    given: bool = False

    def play(self, bench: Bench) -> list[ModelScores]:
        """See `Arm.play`."""
        return [bench.score(self.name, bench.given() if self.given else bench.random())]


@dataclass(frozen=True)
class Pretrained(Arm):
    """A curriculum over sites.

    Attributes:
        stages: the curriculum.
        dealing: who trains together.
        given: whether it begins with the given weights.
    """

    stages: tuple[Stage, ...] = field(kw_only=True)
    dealing: Dealing = field(default=TOGETHER, kw_only=True)
    given: bool = field(default=False, kw_only=True)

    def play(self, bench: Bench) -> list[ModelScores]:
        """See `Arm.play`."""
        start = bench.given() if self.given else None
        trainings = self.trainings(bench.config, bench.sites)
        return [bench.score(one.name, *bench.train(one, start)) for one in trainings]

    def trainings(self, config: FederationConfig, sites: list[Site]) -> list[Training]:
        """See `Arm.trainings`."""
        return self.dealing(config, sites, self.stages)


class StudyKind(Options, ABC):
    """A kind of study: its own options, and the arms that it makes of a federation.

    Attributes:
        tested: whose patients its figures are about. One that is there to choose a setting must not look at the test
            split.
    """

    tested: ClassVar[Split] = "test"

    @abstractmethod
    def arms(self, config: FederationConfig) -> Iterable[Arm]:
        """The arms, the one that all are compared with first.

        Raises:
            InputError: the configuration gives nothing to compare.
        """


study_kinds: Registry[type[StudyKind]] = Registry("study")
