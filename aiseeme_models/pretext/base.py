"""What a self-supervised pretext task is: views, a forward pass and a loss around a shared backbone.

A task file reads like the method section of its paper. The training loop is elsewhere, once
(`aiseeme_models.training.loop`), and so are the federation and the data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.registry import Registry

Family = Literal["geometric", "generative", "clustering", "instance", "non-contrastive", "mixed", "supervised"]
OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Recipe:
    """How a method was trained by those who published it: what ``lr = "paper"`` asks for.

    Attributes:
        optimizer: its registered name.
        lr: learning rate for batches of ``batch`` images.
        batch: images a step.
        weight_decay: weight decay.
    """

    optimizer: str
    lr: float
    batch: int
    weight_decay: float

    def scaled_lr(self, batch_size: int) -> float:
        """The learning rate in proportion to the batch (Goyal et al. 2017, arXiv 1706.02677)."""
        return self.lr * batch_size / self.batch


class PretextTask(nn.Module, ABC):
    """A pretext task on a backbone.

    Attributes:
        shared: ``ModuleDict`` of ``backbone`` and ``head``: trained at the sites, aggregated by the coordinator.
            Nothing else of a task ever crosses the wire.
        local: everything that stays at the site (queues, memory banks, momentum encoders).
        family: the kind of task, as SB-SSL groups them; ``"mixed"`` where it is made of others.
        paper: where the method comes from.
        recipe: how the paper, or the framework named beside it, trained it; None where there is no one recipe.
        options_type: the task's typed options.
        rederived: names of the children of ``local`` that `begin_round` makes anew from ``shared``, so that a site
            need not keep them between rounds.
        per_image: names of the buffers of ``local`` with one row for every training image of the site (memory banks).
        comparable_rounds: whether the held-out loss of a later round tells if the task was learnt better, which is what
            ``stop = "plateau"`` goes by. Not so where the loss becomes harder as a bank or clusters take shape.
        comparable_sites: whether the held-out loss is the same at a site that has never trained the task. Not so where
            it compares with a queue of the site.
        in_patches: whether the first of its views are patches, which pass under `own_statistics`.
        collapses_with: norms with which all images' features became one, as was measured; `check` refuses them.
    """

    family: ClassVar[Family]
    paper: ClassVar[str]
    recipe: ClassVar[Recipe | None]
    options_type: ClassVar[type[Options]] = Options
    rederived: tuple[str, ...] = ()
    per_image: tuple[str, ...] = ()
    comparable_rounds: ClassVar[bool] = True
    comparable_sites: ClassVar[bool] = True
    in_patches: bool = False
    collapses_with: ClassVar[frozenset[Norm]] = frozenset()

    shared: nn.ModuleDict
    local: nn.Module

    def __init__(self, backbone: Backbone, head: nn.Module, local: nn.Module | None = None) -> None:
        super().__init__()
        self.shared = nn.ModuleDict({"backbone": backbone, "head": head})
        self.local = local if local is not None else nn.Module()

    @classmethod
    @abstractmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> PretextTask:
        """The task around ``backbone`` with fresh, not yet seeded weights (see `initialise`)."""

    @classmethod
    @abstractmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """Whether, by every choice of options, the batch loss is a mean of terms of one image only (what DP-SGD needs).

        Also false where an image reaches other images' terms in a later step, as through a queue.
        """

    @classmethod
    def privacy_obstacle(cls, options: Options, norm: Norm) -> str | None:
        """What keeps DP-SGD from the task with these options, as the end of a sentence about it; None: nothing does."""
        if cls.decomposes_per_image(norm):
            return None
        return (
            "compares images with others, so that one patient changes the gradients of others and no epsilon would hold"
        )

    @classmethod
    def parts(cls, options: Options) -> tuple[str, ...]:
        """The names of the tasks that it is made of; none where it is one itself."""
        return ()

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """Refuse impossible combinations while the configuration is read.

        Raises:
            InputError: with what is wrong and what would be right.
        """

    @classmethod
    def check_norm(cls, task: str, norm: Norm) -> None:
        """Refuse a norm with which the task, called ``task``, was measured to collapse.

        Raises:
            InputError: with the norms that would do.
        """
        if norm not in cls.collapses_with:
            return
        *first, last = (repr(one) for one in get_args(Norm) if one not in cls.collapses_with)
        fitting = f"{', '.join(first)} or {last}" if first else last
        raise InputError(
            f"{task} collapses with model.norm = {norm!r}: all images get nearly the same features, as was measured;"
            f" use {fitting}"
        )

    @property
    def backbone(self) -> Backbone:
        """The backbone that is being pretrained."""
        backbone = self.shared["backbone"]
        assert isinstance(backbone, Backbone)
        return backbone

    @property
    def head(self) -> nn.Module:
        """What stands on the backbone during the stage, and is dropped at its end."""
        return self.shared["head"]

    def is_frozen(self, name: str) -> bool:
        """Whether the tensor of ``shared`` with this state-dict name is the whole stage what it was at its start.

        Not trained; or trained by each site for itself, where what travels is what came.
        """
        return False

    @property
    def minimum_batch(self) -> int:
        """The fewest images of a training batch: batch statistics need two."""
        return 2 if any(isinstance(layer, _BatchNorm) for layer in self.shared.modules()) else 1

    def make_room(self, images: int) -> None:
        """Give the buffers of `per_image` a row for each of a site's ``images`` training images."""
        for name in self.per_image:
            bank = self.local.get_buffer(name)
            if len(bank) != images:
                setattr(self.local, name, bank.new_zeros((images, *bank.shape[1:])))

    def look_at(self, indices: Tensor | None) -> None:
        """Called before `views`: whose images come next.

        Args:
            indices: ``(B,)`` int64, their rows among the site's training images; None for images held out from them.
        """

    def look_at_heldout(self, indices: Tensor) -> None:
        """Called before `views` of images that are held out, in place of `look_at`.

        Args:
            indices: ``(B,)`` int64, their rows among the site's held-out images.
        """
        self.look_at(None)

    @abstractmethod
    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Network inputs made of a batch, and constant targets.

        Args:
            images: ``(B, C, H, W)`` uint8 on any device.
            augmentation: the domain's random augmentation and normalisation.
            generator: CPU generator, the only source of randomness.

        Returns:
            Tensors whose first dimension is a multiple of ``B``, image by image: rows ``[i*k, (i+1)*k)`` belong to
            image ``i``. Float32 normalised images first, targets (which need no gradient) last.
        """

    @abstractmethod
    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """The batch's loss, a float32 scalar.

        Where it decomposes per image it is the mean of the images' losses, and rows that go through a layer lie image
        by image, as in `views`.

        Changes no state (but the running statistics of batch norm in training mode): a held-out batch may be
        evaluated at any time. What `after_step` needs of a step's outputs may be remembered, detached, outside the
        state.
        """

    @abstractmethod
    def chance_loss(self, batch_size: int) -> float | None:
        """The loss of a model that knows nothing, or None where the method has no such level."""

    def reset_local(self, generator: torch.Generator) -> None:
        """Give local state its first values (called at the start of a stage at a site)."""

    def begin_round(self) -> None:
        """Called when new global weights were loaded: re-derive momentum encoders from them."""

    def after_step(self, views: tuple[Tensor, ...], progress: float) -> None:
        """Called after each optimiser step with its views: momentum updates, queues.

        Args:
            views: what `views` returned for the step.
            progress: how much of the stage is done, in [0, 1].
        """


def options_of(kind: type[OptionsT], options: Options) -> OptionsT:
    """``options`` as a task's own type.

    Raises:
        TypeError: they are of another task.
    """
    if not isinstance(options, kind):
        raise TypeError(f"expected {kind.__name__}, got {type(options).__name__}")
    return options


pretext_tasks: Registry[type[PretextTask]] = Registry("pretext task")
