"""Several pretext tasks on one backbone in one stage.

Doersch & Zisserman, "Multi-task Self-Supervised Visual Learning", 2017 (arXiv 1708.07860): each task has its own views,
head and loss; how the losses are weighed against each other is a `Weighting`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options, parse_options
from aiseeme_models.pretext.base import PretextTask, options_of, pretext_tasks
from aiseeme_models.pretext.weighting import Weighting, weightings


class PartOptions(Options):
    """One of the tasks, with its own options."""

    task: str = Field(description="a pretext task that is not made of others")
    options: SerializeAsAny[Options] = Field(default_factory=Options, description="its options")

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_task(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("task"), str):
            name, given = data["task"], data.get("options", {})
            kind = pretext_tasks[name].options_type
            if issubclass(kind, MultiTaskOptions):
                raise InputError(f"{name} cannot be one of its own tasks")
            if isinstance(given, dict):
                data = {**data, "options": parse_options(kind, given, where="options", owner=name)}
        return data


class MultiTaskOptions(Options):
    """Options of `MultiTask`."""

    # Not strict: from TOML and JSON they come as a list.
    tasks: Annotated[tuple[PartOptions, ...], Field(strict=False)] = Field(description="two tasks or more")
    weighting: str = Field("equal", description="how their losses are weighed against each other")
    weighting_options: SerializeAsAny[Options] = Field(
        default_factory=Options, description="the weighting's own options"
    )

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_weighting(cls, data: Any) -> Any:
        if isinstance(data, dict):
            name, given = str(data.get("weighting", "equal")), data.get("weighting_options", {})
            kind = weightings[name].options_type
            if isinstance(given, dict):
                options = parse_options(kind, given, where="weighting_options", owner=name)
                data = {**data, "weighting_options": options}
        return data

    @model_validator(mode="after")
    def _several(self) -> MultiTaskOptions:
        names = [one.task for one in self.tasks]
        if len(names) < 2:
            raise ValueError("tasks must name at least two; one alone is a stage of its own")
        if len(set(names)) < len(names):
            raise ValueError("tasks names a task twice")
        return self


@pretext_tasks.register("multi-task")
class MultiTask(PretextTask):
    """The tasks, each as it is alone, and a weighting.

    What is told as the loss is the plain sum of the tasks' losses, whatever their weights: at least 0, and to be
    compared between rounds, also where weights change or the weighting adds terms of its own. Its gradient is the
    objective's.
    """

    family = "mixed"
    paper = "Doersch & Zisserman 2017, arXiv 1708.07860"
    recipe = None
    options_type = MultiTaskOptions

    # Not registered as modules: their parts are in `shared` and `local` already, and would be counted twice.
    _tasks: tuple[PretextTask, ...] = ()
    _counts: tuple[int, ...] = ()
    _weighting: Weighting[Any]
    _losses: Tensor | None = None

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> MultiTask:
        """See `PretextTask.build`."""
        options = options_of(MultiTaskOptions, options)
        tasks = {one.task: pretext_tasks[one.task].build(backbone, one.options, norm) for one in options.tasks}
        weighting = weightings[options.weighting](len(tasks), options.weighting_options)
        heads = nn.ModuleDict({name: task.head for name, task in tasks.items()})
        locals_ = nn.ModuleDict({name: task.local for name, task in tasks.items()})
        multi_task = cls(
            backbone,
            nn.ModuleDict({"tasks": heads, "weighting": weighting.shared}),
            nn.ModuleDict({"tasks": locals_, "weighting": weighting.local}),
        )
        multi_task._tasks, multi_task._weighting = tuple(tasks.values()), weighting
        multi_task._counts = (0,) * len(tasks)
        multi_task.in_patches = multi_task._tasks[0].in_patches
        multi_task.rederived = tuple(f"tasks.{name}.{own}" for name, task in tasks.items() for own in task.rederived)
        multi_task.per_image = tuple(f"tasks.{name}.{own}" for name, task in tasks.items() for own in task.per_image)
        return multi_task

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """False: not by every choice of tasks, see `privacy_obstacle`."""
        return False

    @classmethod
    def privacy_obstacle(cls, options: Options, norm: Norm) -> str | None:
        """The first one of a task's, or the weighting's."""
        options = options_of(MultiTaskOptions, options)
        for one in options.tasks:
            obstacle = pretext_tasks[one.task].privacy_obstacle(one.options, norm)
            if obstacle is not None:
                return f"has {one.task}, which {obstacle}"
        return weightings[options.weighting].privacy_obstacle

    @classmethod
    def parts(cls, options: Options) -> tuple[str, ...]:
        """See `PretextTask.parts`."""
        return tuple(one.task for one in options_of(MultiTaskOptions, options).tasks)

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`: every task's own."""
        for number, one in enumerate(options_of(MultiTaskOptions, options).tasks):
            try:
                pretext_tasks[one.task].check(
                    one.options, norm=norm, batch_size=batch_size, image_size=image_size, channels=channels
                )
            except InputError as error:
                raise InputError(f"options.tasks.{number}: {error}") from None

    @property
    def minimum_batch(self) -> int:
        """What the most demanding task needs."""
        return max(task.minimum_batch for task in self._tasks)

    def train(self, mode: bool = True) -> MultiTask:
        """Tell the tasks too."""
        for task in self._tasks:
            task.train(mode)
        return super().train(mode)

    def make_room(self, images: int) -> None:
        """See `PretextTask.make_room`."""
        for task in self._tasks:
            task.make_room(images)

    def reset_local(self, generator: torch.Generator) -> None:
        """See `PretextTask.reset_local`."""
        for task in self._tasks:
            task.reset_local(generator)
        self._weighting.reset_local()

    def begin_round(self) -> None:
        """See `PretextTask.begin_round`."""
        for task in self._tasks:
            task.begin_round()
        self._weighting.begin_round()

    def look_at(self, indices: Tensor | None) -> None:
        """See `PretextTask.look_at`."""
        for task in self._tasks:
            task.look_at(indices)

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The first task's views, then the second one's, and so on."""
        views = [task.views(images, augmentation, generator) for task in self._tasks]
        self._counts = tuple(len(own) for own in views)
        return tuple(view for own in views for view in own)

    def _with_views(self, views: tuple[Tensor, ...]) -> Iterator[tuple[PretextTask, tuple[Tensor, ...]]]:
        """Each task with its own views; without any where a private step drew nobody."""
        left = iter(views)
        for task, count in zip(self._tasks, self._counts, strict=True):
            yield task, tuple(islice(left, count))

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """The sum of the tasks' losses, with the gradient of the weighting's objective; see the class."""
        losses = [task.loss(own, generator) for task, own in self._with_views(views)]
        objective = self._weighting.objective(losses)
        self._losses = torch.stack(losses).detach()  # (T,)
        return self._losses.sum() + (objective - objective.detach())  # not finite where the objective is not

    def chance_loss(self, batch_size: int) -> float | None:
        """The sum of the tasks' levels, if all have one."""
        levels = [task.chance_loss(batch_size) for task in self._tasks]
        known = [level for level in levels if level is not None]
        return sum(known) if len(known) == len(levels) else None

    def after_step(self, views: tuple[Tensor, ...], progress: float) -> None:
        """See `PretextTask.after_step`."""
        for task, own in self._with_views(views):
            task.after_step(own, progress)
        if self._losses is not None:
            self._weighting.after_step(self._losses, progress)
            self._losses = None
