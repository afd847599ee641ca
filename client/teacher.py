"""The frozen backbones that a stage distils from, as a site keeps them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from aiseeme_models.atomic_files import as_system_error, replacing
from client.refusals import Refusal
from federation_configs.site_errors import SiteError
from federation_configs.transfer import sha256_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from aiseeme_models.backbones import Backbone
    from aiseeme_models.distillation import DistillOptions, Teaching
    from client.workbench import Workbench

_FILE, _TENSOR = "teacher.safetensors", "backbone"


def keep_teacher(folder: Path, backbone: NDArray[np.float32]) -> None:
    """Keep a stage's teacher, the backbone's part of a flat vector, in the stage's folder.

    Raises:
        OSError: as the system reports it, for instance when the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / _FILE) as temporary:
        try:
            save_file({_TENSOR: backbone}, temporary)
        except SafetensorError as error:
            raise as_system_error(error) from error


def kept_teacher(folder: Path, sha256: str) -> NDArray[np.float32]:
    """The teacher with this hash in the stage's folder.

    Raises:
        Refusal: TEACHER_MISSING: the site never got it, or the file is another one's or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        vector: NDArray[np.float32] = load_file(folder / _FILE)[_TENSOR]
    except (FileNotFoundError, SafetensorError, KeyError):
        raise Refusal(SiteError.TEACHER_MISSING) from None
    if sha256_of(vector) != sha256:
        raise Refusal(SiteError.TEACHER_MISSING)
    return vector


def teaching(
    bench: Workbench,
    options: DistillOptions,
    teacher: NDArray[np.float32],
    previous: NDArray[np.float32] | None,
) -> Teaching:
    """The distillation of one round.

    Args:
        bench: the stage's.
        options: the stage's.
        teacher: the backbone's part of a flat vector.
        previous: the same of the site's own model of the round before; None where there is none.
    """
    from aiseeme_models.distillation import Teaching
    from aiseeme_models.training.shared_state import load_backbone

    def backbone(vector: NDArray[np.float32]) -> Backbone:
        own = copy.deepcopy(bench.task.backbone)
        load_backbone(own, bench.layout, vector)
        return own

    return Teaching(options, backbone(teacher), None if previous is None else backbone(previous))
