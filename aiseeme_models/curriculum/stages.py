"""One stage of a curriculum: a pretext task, how it is trained, and when it ends."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from aiseeme_models.curriculum.stage_tasks import stage_tasks
from aiseeme_models.curriculum.tuning.options import TuneOptions
from aiseeme_models.distillation import DistillOptions
from aiseeme_models.errors import InputError
from aiseeme_models.options import Options, parse_options
from aiseeme_models.training.options import TrainingOptions

_DEFAULT_BATCH = TrainingOptions.model_fields["batch_size"].default


class Stage(TrainingOptions):
    """A pretext task with its training options and its end.

    Attributes:
        task: the pretext task's registered name.
        rounds: federated rounds; the most, where ``stop`` may end the stage earlier.
        lr: also ``"paper"``: optimiser and weight decay of the task's `Recipe` (unless they are given), and its
            learning rate in proportion to ``batch_size``; or ``"auto"``, which is short for ``tune`` with its defaults.
        tune: finds ``lr``, and ``batch_size`` where several are given, when the stage begins; None: they are given.
        stop: ``"rounds"`` plays them all; ``"plateau"`` ends when the held-out pretext loss has not improved by
            ``min_improvement`` (relative) for ``patience`` rounds; ``"probe"`` the same with the error (1 - balanced
            accuracy) of a k-NN probe that each site makes on its own labelled validation images.
        distill: holds the backbone to an earlier one; None: it does not.
        on_collapse: ``"fail"`` ends the run where most sites see that the features have become nearly one (see
            `analysis.collapse`); ``"note"`` says so and goes on.
        choose: ``"best"`` ends the stage with the weights of the round of the lowest held-out loss, ``"last"`` with
            those of its last round.
        options: the task's own options.
    """

    task: str
    rounds: int = Field(ge=1)
    stop: Literal["rounds", "plateau", "probe"] = "rounds"
    patience: int = Field(default=3, ge=1)
    min_improvement: float = Field(default=0.01, ge=0, lt=1)
    distill: DistillOptions | None = None
    tune: TuneOptions | None = None
    on_collapse: Literal["fail", "note"] = "fail"
    choose: Literal["last", "best"] = "last"
    options: SerializeAsAny[Options] = Field(default_factory=Options)

    @property
    def tasks(self) -> tuple[str, ...]:
        """``task``, and the tasks that it is made of."""
        return self.task, *stage_tasks[self.task].parts(self.options)

    @property
    def title(self) -> str:
        """What the stage trains, for people: ``"rotation"``, or ``"multi-task (rotation + simclr)"``."""
        name, *parts = self.tasks
        return f"{name} ({' + '.join(parts)})" if parts else name

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_task(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("task"), str):
            name, given = data["task"], data.get("options", {})
            kind = stage_tasks[name].options_type
            if isinstance(given, dict):
                data = {**data, "options": parse_options(kind, given, where="options", owner=name)}
            if data.get("lr") == "paper":
                data = _by_the_paper(name, data)
            if data.get("lr") == "auto":
                data = {**data, "lr": None, "tune": {} if data.get("tune") is None else data["tune"]}
            if isinstance(data.get("tune"), dict):
                data = _to_be_tuned(data)
        return data

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Every batch size that the stage may be trained with."""
        return (self.batch_size,) if self.tune is None or not self.tune.batch_sizes else self.tune.batch_sizes

    @property
    def judged_by(self) -> Literal["heldout", "probe"]:
        """What a setting is judged by, where the stage is tuned; see `TuneOptions.score`."""
        if self.tune is not None and self.tune.score is not None:
            return self.tune.score
        task = stage_tasks[self.task]
        comparable = task.comparable_rounds and task.comparable_sites and len(self.tasks) == 1
        # A classifier's loss does not depend on the batch, and a probe would not see its head.
        any_batch = task.family == "supervised" or len(self.batch_sizes) == 1
        return "heldout" if comparable and any_batch else "probe"

    @model_validator(mode="after")
    def _trials_are_no_longer(self) -> Self:
        for key in ("min_rounds", "max_rounds"):
            rounds = None if self.tune is None else getattr(self.tune, key)
            if rounds is not None and rounds > self.rounds:
                raise InputError(f"tune.{key} = {rounds} is more than the stage's rounds = {self.rounds}")
        return self


def _to_be_tuned(data: dict[str, Any]) -> dict[str, Any]:
    """A stage's table whose batch size is the largest that is tried.

    Raises:
        InputError: a rate or a size is given beside those that are to be found.
    """
    if data.get("lr") is not None:
        raise InputError("lr is given, and tune is there to find it: leave one of them out")
    sizes = data["tune"].get("batch_sizes", ())
    if not isinstance(sizes, list | tuple) or not sizes or not all(isinstance(size, int) for size in sizes):
        return data
    given = data.get("batch_size", max(sizes))
    if given != max(sizes):
        raise InputError(
            f"batch_size = {given} is given, and tune.batch_sizes = {list(sizes)} is there to find it: leave one of"
            " them out"
        )
    return {**data, "batch_size": given}


def _by_the_paper(task: str, data: dict[str, Any]) -> dict[str, Any]:
    """A stage's table with the figures of the task's recipe in it.

    Raises:
        InputError: another optimiser than the paper's, for which its learning rate says nothing; or no one recipe.
    """
    recipe = stage_tasks[task].recipe
    if recipe is None:
        raise InputError(f"lr = 'paper' asks for a task's own recipe, and {task} has none: give lr a number")
    optimizer, batch_size = data.get("optimizer", recipe.optimizer), data.get("batch_size", _DEFAULT_BATCH)
    if optimizer != recipe.optimizer:
        raise InputError(
            f"lr = 'paper' is for {task}'s own optimizer, {recipe.optimizer}: leave optimizer out, or give lr a number"
        )
    if not isinstance(batch_size, int):
        return data  # refused in its own words
    lr = recipe.scaled_lr(batch_size)
    return {"weight_decay": recipe.weight_decay, **data, "optimizer": optimizer, "lr": lr}
