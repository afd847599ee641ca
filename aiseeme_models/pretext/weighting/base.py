"""What a weighting is: it makes one loss to be minimised of the losses of tasks that share a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from aiseeme_models.options import Options
from aiseeme_models.registry import Registry

OptionsT = TypeVar("OptionsT", bound=Options)


class Weighting(ABC, Generic[OptionsT]):
    """A weighting of the losses of ``tasks`` tasks.

    Attributes:
        paper: where it comes from.
        options_type: its typed options.
        privacy_obstacle: what keeps DP-SGD from it, as the end of a sentence about a task; None: nothing does.
        shared: what is trained with the tasks' heads, and crosses the wire with them.
        local: what stays at the site.
    """

    paper: ClassVar[str]
    options_type: ClassVar[type[Options]] = Options
    privacy_obstacle: ClassVar[str | None] = None

    shared: nn.Module
    local: nn.Module

    def __init__(self, tasks: int, options: OptionsT) -> None:
        self.tasks, self.options = tasks, options
        self.shared, self.local = nn.Module(), nn.Module()

    @abstractmethod
    def objective(self, losses: Sequence[Tensor]) -> Tensor:
        """What is minimised, a float32 scalar.

        Args:
            losses: of each task, float32 scalars with a gradient. One that is left out costs no pass back.
        """

    def reset_local(self) -> None:
        """Give local state its first values (called at the start of a stage at a site)."""

    def begin_round(self) -> None:
        """Called when new weights or a kept local state were loaded: several times before a round's first step."""

    def after_step(self, losses: Tensor, progress: float) -> None:
        """Called after each optimiser step.

        Args:
            losses: of each task in the step, ``(T,)`` float32 without gradient.
            progress: how much of the stage is done, in [0, 1].
        """


weightings: Registry[type[Weighting[Any]]] = Registry("weighting")
