"""What a stage may train: a self-supervised pretext task, or in the end what it is all for."""

from __future__ import annotations

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.downstream.classification import Classification
from aiseeme_models.options import Options
from aiseeme_models.pretext import PretextTask, pretext_tasks
from aiseeme_models.registry import Registry

stage_tasks: Registry[type[PretextTask]] = Registry("task")

for _name in pretext_tasks:
    stage_tasks.register(_name)(pretext_tasks[_name])
stage_tasks.register("classification")(Classification)


def build_task(name: str, backbone: Backbone, options: Options, norm: Norm) -> PretextTask:
    """The task registered as ``name`` around ``backbone``; seed the head with `initialise`.

    Raises:
        InputError: no such task.
    """
    return stage_tasks[name].build(backbone, options, norm)
