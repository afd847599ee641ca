"""The order of the pretext tasks: every order of up to three, some of more, each task alone, and none."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from aiseeme_models.errors import InputError
from server.study.arms import Arm, Floor, StudyKind, Untrained, study_kinds
from server.study.curricula import curriculum_arm, single_tasks, without_teacher

if TYPE_CHECKING:
    from aiseeme_models.curriculum.stages import Stage
    from federation_configs.schema import FederationConfig

MOST_PERMUTED = 3


@study_kinds.register("order")
class Order(StudyKind):
    """Orders of a curriculum, all of the same stages with the same rounds.

    Attributes:
        drawn: how many orders are drawn by the configuration's seed where there are more than three stages, beside the
            given one and its reverse.
        initial: whether arms begin with given weights too.
    """

    drawn: int = Field(default=4, ge=0, le=20)  # four stages have 24 orders
    initial: bool = False

    def arms(self, config: FederationConfig) -> Iterable[Arm]:
        """The given order first, then its reverse, the others, the single tasks, and the baselines."""
        stages = config.curriculum.stage
        if len(stages) < 2:
            raise InputError("a study of order needs a curriculum of at least two stages")
        for number, order in enumerate(self._orders(config)):
            says = ("the given order", "its reverse")[number] if number < 2 else "another order"
            yield curriculum_arm(without_teacher(order), f"{says}, all stages as long as given")
        yield from single_tasks(stages)
        if self.initial:
            yield curriculum_arm(without_teacher(stages), "the given order, from the given weights", given=True)
            yield Untrained("given", "given weights", "the given weights, trained by no pretext task", given=True)
        yield Untrained("random", "random", "the backbone before any training; fine-tuned: from scratch")
        yield Floor("floor", "thumbnail floor", "a 20x20 thumbnail and the colours")

    def _orders(self, config: FederationConfig) -> Iterator[tuple[Stage, ...]]:
        stages = config.curriculum.stage
        if len(stages) <= MOST_PERMUTED:
            reverse = tuple(range(len(stages)))[::-1]
            orders = itertools.permutations(range(len(stages)))
            places = sorted(orders, key=lambda order: (order != reverse[::-1], order != reverse))
        else:
            places = self._some_orders(len(stages), config.seed)
        yield from (tuple(stages[place] for place in order) for order in places)

    def _some_orders(self, stages: int, seed: int) -> list[tuple[int, ...]]:
        import torch

        from aiseeme_models.seeding import generator

        given = tuple(range(stages))
        found = [given, given[::-1]]
        draws = generator(seed, "orders")
        while len(found) < 2 + self.drawn:
            order = tuple(torch.randperm(stages, generator=draws).tolist())
            if order not in found:
                found.append(order)
        return found
