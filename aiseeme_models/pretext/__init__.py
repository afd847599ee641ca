"""Self-supervised pretext tasks, one file each."""

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

__all__ = ["PretextTask", "pretext_tasks"]
