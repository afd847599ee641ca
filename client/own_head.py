"""A head that stays at its site: the federation trains the backbone, each hospital its own last layer.

Arivazhagan et al. 2019, "Federated learning with personalization layers" (FedPer, arXiv 1912.00818). What travels in
the head's place is what came: the values that every site began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from client.local_state import LocalState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from aiseeme_models.pretext.base import PretextTask
    from aiseeme_models.training.shared_state import SharedLayout
    from client.site import Site
    from federation_configs.schema import FederationConfig

OWN_HEAD = "own/head"


def has_own_head(task: PretextTask) -> bool:
    """Whether the sites keep the head of a stage's task to themselves."""
    from aiseeme_models.downstream.classification import Classification

    return isinstance(task, Classification) and task.options.head == "personal"


def with_own_head(
    weights: NDArray[np.float32], layout: SharedLayout, kept: Mapping[str, Tensor] | None
) -> NDArray[np.float32]:
    """The global ``weights`` ``(P,)`` with the site's own head, if it has kept one."""
    if not kept or OWN_HEAD not in kept:
        return weights
    return _put(weights, layout, kept[OWN_HEAD].numpy())


def without_own_head(
    own: NDArray[np.float32], layout: SharedLayout, weights: NDArray[np.float32]
) -> tuple[NDArray[np.float32], Tensor]:
    """What may leave of a site's weights ``(P,)``, with the head that came in ``weights``; and the head that stays."""
    import torch

    return _put(own, layout, weights[layout.backbone_size :]), torch.from_numpy(own[layout.backbone_size :].copy())


def kept_head(site: Site, config: FederationConfig, run: str) -> dict[str, Tensor] | None:
    """What a simulated site kept after its last round of a run's first stage, in which it has its own head."""
    rounds = config.curriculum.stage[0].rounds
    return LocalState(site.state_folder, run, 0, kept=1).load_before(rounds + 1)


def _put(weights: NDArray[np.float32], layout: SharedLayout, head: NDArray[np.float32]) -> NDArray[np.float32]:
    whole = weights.copy()
    whole[layout.backbone_size :] = head
    return whole
