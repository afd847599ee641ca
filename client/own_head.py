"""A head that stays at its site: the federation trains the backbone, each hospital its own last layer.

Arivazhagan et al. 2019, "Federated learning with personalization layers" (FedPer, arXiv 1912.00818). What travels in
the head's place is what came: the values that every site began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiseeme_models.downstream.head_file import OwnHead, write_own_head
from aiseeme_models.errors import InputError
from client.local_state import LocalState

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from aiseeme_models.pretext.base import PretextTask
    from aiseeme_models.training.shared_state import SharedLayout
    from client.site import Site
    from federation_configs.schema import FederationConfig

OWN_HEAD = "own/head"
OWN_HEAD_FILE = "own-head.safetensors"


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


def take_own_head(state_folder: Path, run: str) -> OwnHead:
    """A site's own head, as it was after the newest round of a run that the site took part in.

    Args:
        state_folder: the site's.
        run: the run's id, or its beginning if that is unique.

    Raises:
        InputError: nothing of such a run is kept, it has no head of its own here, or what is kept cannot be read.
    """
    if not run:
        raise InputError("a run's id, or its beginning, was expected")
    runs = state_folder / "runs"
    if not runs.is_dir():
        raise InputError(f"{runs}: no run has left anything here; --home names the site's folder")
    kept = sorted(path.name for path in runs.iterdir() if path.name.startswith(run))
    if run not in kept and len(kept) != 1:
        there = f"{len(kept)} runs begin so: {', '.join(kept)}" if kept else "nothing of it is kept"
        raise InputError(f"run {run}: {there}; what a run leaves here goes after 30 days without a question about it")
    whole = run if run in kept else kept[0]
    found = _newest_head(state_folder, whole)
    if found is None:
        raise InputError(f'run {whole}: it has trained no head of its own here; `head = "personal"` makes such a run')
    return found


def lay_own_head_down(site: Site, run: str) -> None:
    """Write the own head of a simulated site, if it has one, beside its state, which goes at the run's end.

    Raises:
        InputError: what the site kept cannot be read.
        OSError: it cannot be written.
    """
    if (head := _newest_head(site.state_folder, run)) is not None:
        write_own_head(site.state_folder / OWN_HEAD_FILE, head)


def _newest_head(state_folder: Path, run: str) -> OwnHead | None:
    from safetensors import SafetensorError

    state = LocalState(state_folder, run, 0, kept=1)
    newest = state.newest_round()
    if newest is None:
        return None
    try:
        kept = state.load_before(newest + 1) or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{state.folder}: what the site kept of round {newest} cannot be read: {error}") from None
    return OwnHead(run, newest, kept[OWN_HEAD].numpy()) if OWN_HEAD in kept else None


def _put(weights: NDArray[np.float32], layout: SharedLayout, head: NDArray[np.float32]) -> NDArray[np.float32]:
    whole = weights.copy()
    whole[layout.backbone_size :] = head
    return whole
