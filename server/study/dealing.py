"""Who trains together: the federation, each site alone, or one site with everybody's images; or with some of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.study.compute import equal_steps, images_a_round

if TYPE_CHECKING:
    from aiseeme_models.curriculum.stages import Stage
    from client.site import Site
    from federation_configs.schema import FederationConfig, HoldOut


@dataclass(frozen=True)
class Training:
    """One model to be made.

    Attributes:
        name: a folder's name.
        sites: who trains it.
        stages: its curriculum.
    """

    name: str
    sites: tuple[Site, ...]
    stages: tuple[Stage, ...]

    def images(self, holdout: HoldOut) -> list[int]:
        """Training images of each site."""
        return [len(site.rows_of("train", holdout)) for site in self.sites]


Dealing = Callable[["FederationConfig", "list[Site]", "tuple[Stage, ...]"], "list[Training]"]
"""From the federation's sites to the models that an arm makes of them."""


def together(config: FederationConfig, sites: list[Site], stages: tuple[Stage, ...]) -> list[Training]:
    """One model of all sites: the federation itself."""
    return [Training("federated", tuple(sites), stages)]


def alone(config: FederationConfig, sites: list[Site], stages: tuple[Stage, ...]) -> list[Training]:
    """A model of each site, as many rounds long as the federation: a hospital computes as much as it would there."""
    return [Training(site.name, (site,), stages) for site in sites]


def pooled(config: FederationConfig, sites: list[Site], stages: tuple[Stage, ...]) -> list[Training]:
    """One model of one site that has everybody's images; a round has as many steps as the sites' rounds together."""
    counts = [len(site.rows_of("train", config.holdout)) for site in sites]
    one = sites[0].with_rows("pooled", [row for site in sites for row in site.rows], sites[0].state_folder)
    alike = [stage.model_copy(update={"max_steps": sum(map(stage.steps, counts))}) for stage in stages]
    return [Training("pooled", (one,), tuple(alike))]


TOGETHER: Dealing = together
ALONE: Dealing = alone
POOLED: Dealing = pooled


@dataclass(frozen=True)
class Share:
    """The federation with a share of each site's training patients, in as many optimiser steps as with all of them.

    Every site takes the same number of steps a round, so that the steps can be equal however the patients fall. The
    shares of one seed are nested. Patients of the other splits stay.

    Attributes:
        fraction: in (0, 1].
    """

    fraction: float

    def __call__(self, config: FederationConfig, sites: list[Site], stages: tuple[Stage, ...]) -> list[Training]:
        """See `Dealing`."""
        from server.study.patients import some_patients

        full = [len(site.rows_of("train", config.holdout)) for site in sites]
        some = [
            site.with_rows(site.name, some_patients(site, self.fraction, config), site.state_folder) for site in sites
        ]
        counts = {site.name: len(site.rows_of("train", config.holdout)) for site in some}
        longer = (equal_steps(stage, images_a_round(stage, full, stage.batch_size), counts) for stage in stages)
        return [Training("federated", tuple(some), tuple(longer))]


@dataclass(frozen=True)
class SameWork:
    """The federation, every site with as many images a round as every other: batches of any size can be compared.

    Attributes:
        measure: the configuration's own stage, whose work a round is the measure.
        multiple_of: what all batch sizes that are compared divide.
        changed: index of the stage that differs between arms; only its rounds are made alike.
    """

    measure: Stage
    multiple_of: int
    changed: int

    def __call__(self, config: FederationConfig, sites: list[Site], stages: tuple[Stage, ...]) -> list[Training]:
        """See `Dealing`."""
        counts = {site.name: len(site.rows_of("train", config.holdout)) for site in sites}
        images = images_a_round(self.measure, counts.values(), self.multiple_of)
        alike = [
            equal_steps(stage, images, counts) if index == self.changed else stage for index, stage in enumerate(stages)
        ]
        return [Training("federated", tuple(sites), tuple(alike))]
