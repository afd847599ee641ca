"""What a distillation is: a loss between pooled features of a student and of frozen backbones on the same images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from aiseeme_models.options import Options
from aiseeme_models.registry import Registry

OptionsT = TypeVar("OptionsT", bound=Options)


class Distillation(ABC, Generic[OptionsT]):
    """One way to compare features. Its loss is a mean of terms of one image each, so that it suits private training.

    Attributes:
        paper: where it comes from.
        options_type: its typed options.
        needs_previous: whether it also looks at the site's own backbone of the round before.
    """

    paper: ClassVar[str]
    options_type: ClassVar[type[Options]] = Options
    needs_previous: ClassVar[bool] = False

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def loss(self, student: Tensor, teacher: Tensor, previous: Tensor | None) -> Tensor:
        """The mean over rows, a float32 scalar.

        Args:
            student: ``(N, D)`` pooled features.
            teacher: ``(N, D)`` those of the teacher, without gradient.
            previous: ``(N, D)`` those of the site's own backbone of the round before, without gradient; None where
                there is none yet, or it is not needed.
        """


distillations: Registry[type[Distillation[Any]]] = Registry("distillation")
