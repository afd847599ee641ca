"""The ``[downstream.NAME]`` tables: what a pretrained backbone is to do in the end, and how the sites teach it that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from aiseeme_models.downstream.ccl import CCLOptions
from aiseeme_models.downstream.classification import ClassificationOptions, Mode, Values
from aiseeme_models.downstream.tasks import downstream_tasks
from aiseeme_models.errors import InputError
from aiseeme_models.training.options import TrainingOptions

if TYPE_CHECKING:
    from federation_configs.schema import FederationConfig

_OF_CLASSIFICATION = ("column", "mode", "head", "labels", "weights", "gamma", "sampling", "ccl")


class DownstreamOptions(TrainingOptions):
    """A downstream task, and the federated training of its classifier.

    Attributes:
        task: a registered task, see `aiseeme_models.downstream.tasks`; None: ``classes`` says what the task is.
        classes: each class and the labels that mean it; None: those of ``task``.
        rounds: federated rounds.
        choose: ``"best"``: the weights of the round with the lowest loss on the sites' validation images are the
            outcome; ``"last"``: those of the last round.
        column, mode, head, labels, weights, gamma, sampling, ccl: see `ClassificationOptions`.
    """

    task: str | None = None
    classes: dict[str, Values] | None = None
    rounds: int = Field(default=10, ge=1)
    choose: Literal["best", "last"] = "best"
    column: str = "label"
    mode: Mode = "finetune"
    head: Literal["global", "personal"] = "global"
    labels: float = Field(default=1.0, gt=0, le=1)
    weights: str = "frequency"
    gamma: float = Field(default=0.0, ge=0, le=10)
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    ccl: CCLOptions | None = None
    batch_size: int = Field(32, ge=1, le=65536, description="images a step")

    @model_validator(mode="after")
    def _one_task(self) -> Self:
        if (self.task is None) == (self.classes is None):
            raise InputError("name a task, or give its classes: one of the two")
        self.classification()
        return self

    def classification(self) -> ClassificationOptions:
        """The options of the stage that learns it."""
        classes = downstream_tasks[self.task].classes if self.task is not None else self.classes
        given = self.model_dump(mode="json", include=set(_OF_CLASSIFICATION), exclude_none=True)
        return ClassificationOptions.model_validate({"classes": classes, **given})


def learns_labels(config: FederationConfig) -> bool:
    """Whether a federation trains a classifier, rather than a backbone by itself."""
    return isinstance(config.curriculum.stage[0].options, ClassificationOptions)


def label_columns(config: FederationConfig) -> list[str]:
    """The columns of labels.csv that a federation learns from."""
    options = [stage.options for stage in config.curriculum.stage]
    return [one.column for one in options if isinstance(one, ClassificationOptions)]


def downstream_config(config: FederationConfig, name: str) -> FederationConfig:
    """The federation that learns the downstream task called ``name``: one stage, from a backbone that it is given.

    Raises:
        InputError: no such table.
    """
    from federation_configs.loading import check_config

    if name not in config.downstream:
        there = ", ".join(sorted(config.downstream)) or "none"
        raise InputError(f"no [downstream.{name}] in {config.name}: there are {there}")
    options = config.downstream[name]
    stage: dict[str, Any] = {
        "task": "classification",
        **options.model_dump(mode="json", exclude={*_OF_CLASSIFICATION, "task", "classes"}, exclude_none=True),
        "options": options.classification().model_dump(mode="json", exclude_none=True),
    }
    whole = config.model_dump(mode="json", exclude={"downstream", "privacy", "site_privacy"}, exclude_none=True)
    whole |= {"name": f"{config.name}-{name}"[:40].rstrip("-"), "curriculum": {"stage": [stage]}}
    return check_config(whole, where=f"[downstream.{name}]")
