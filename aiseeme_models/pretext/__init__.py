"""Self-supervised pretext tasks, one file each."""

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.options import Options
from aiseeme_models.pretext import (  # noqa: F401  (registers them)
    barlow_twins,
    byol,
    colourisation,
    deepcluster,
    dino,
    jigsaw,
    masked,
    moco,
    moco_v1,
    multi_task,
    npid,
    relative_location,
    rotation,
    simclr,
    simsiam,
    swav,
    vicreg,
)
from aiseeme_models.pretext.base import PretextTask, pretext_tasks

__all__ = ["PretextTask", "build_task", "pretext_tasks"]


def build_task(name: str, backbone: Backbone, options: Options, norm: Norm) -> PretextTask:
    """The task registered as ``name`` around ``backbone``; seed the head with `initialise`.

    Raises:
        InputError: no such task.
    """
    return pretext_tasks[name].build(backbone, options, norm)
