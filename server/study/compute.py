"""Equal compute: how many optimiser steps on how many images an arm takes, known before it is played.

The unit is images in optimiser steps: the sum over models, rounds and sites of steps x images a step. An image that is
looked at twice counts twice. How many views a task makes of an image (rotation 4, SimCLR 2, ...) does not count: arms
of other tasks take other times for the same figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aiseeme_models.curriculum.stages import Stage
from aiseeme_models.errors import InputError


@dataclass(frozen=True)
class Compute:
    """Optimiser steps, and images in them (steps x images a step)."""

    steps: int = 0
    images: int = 0

    def __add__(self, other: Compute) -> Compute:
        return Compute(self.steps + other.steps, self.images + other.images)


def total(parts: Iterable[Compute]) -> Compute:
    """The sum."""
    return sum(parts, Compute())


def planned(stages: Sequence[Stage], images: Iterable[int]) -> Compute:
    """What a curriculum takes at sites with so many training images."""
    counts = list(images)
    return total(
        Compute(stage.rounds * stage.steps(count), stage.rounds * stage.steps(count) * min(stage.batch_size, count))
        for stage in stages
        for count in counts
    )


def equal_steps(stage: Stage, images: int, sites: Mapping[str, int]) -> Stage:
    """``stage`` with rounds in which every site takes the same number of steps, however many images it has.

    Args:
        stage: its ``batch_size`` counts, its ``local_epochs`` and ``max_steps`` are replaced.
        images: images in the steps of one site in one round; a multiple of the batch size.
        sites: training images of each site.

    Raises:
        InputError: a site has fewer training images than a batch.
    """
    for name, count in sites.items():
        if count < stage.batch_size:
            raise InputError(
                f"{name} would have {count} training images, fewer than batch_size = {stage.batch_size} of"
                f" {stage.task}: use a smaller batch, fewer sites or another partition"
            )
    steps = images // stage.batch_size
    passes = -(-steps // min(count // stage.batch_size for count in sites.values()))
    return stage.model_copy(update={"max_steps": steps, "local_epochs": passes})


def images_a_round(stage: Stage, sites: Iterable[int], multiple_of: int) -> int:
    """Images in the steps of a round, on average over the sites, as a multiple of ``multiple_of`` (at least one)."""
    counts = list(sites)
    mean = sum(stage.steps(count) * min(stage.batch_size, count) for count in counts) / len(counts)
    return max(1, round(mean / multiple_of)) * multiple_of


def check_equal(arms: Mapping[str, Compute]) -> None:
    """Refuse arms that would not compute alike.

    Args:
        arms: by title; those that train nothing are not among them.

    Raises:
        InputError: with what each takes, and what to change.
    """
    if len({compute.images for compute in arms.values()}) > 1:
        each = "; ".join(f"{title}: {compute.images:,}" for title, compute in arms.items())
        raise InputError(
            f"the arms would not be trained on equally many images ({each}): give all stages the same batch_size,"
            " local_epochs and max_steps"
        )
