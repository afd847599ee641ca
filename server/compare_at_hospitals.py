"""``aiseeme compare``: models compared at the hospitals that played the first one's run, or at simulated ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from aiseeme_models.errors import InputError
from server.asked_sites import NamedBackbone
from server.audited_hospitals import audited_hospitals
from server.comparison import Comparison, Pair
from server.model_reference import FoundModel
from server.progress import Progress
from server.registry import new_run_id
from server.run_folder import was_launched
from server.served_sites import own_hospitals
from server.simulation import reached


def compare_models(
    models: Sequence[FoundModel],
    data: Sequence[Path],
    *,
    sites: int | None,
    partition: str | None,
    images: int,
    device: str,
    home: Path,
    progress: Progress,
) -> list[Pair]:
    """Compare each model with each other one on held-out images of hospitals.

    Args:
        models: two or more. The first one's configuration says how images are prepared and
            who is held out.
        data, sites, partition: simulated hospitals, as in `server.simulation.simulate`; no folder: the hospitals of
            the first run, simulated or real.
        images: most images of a hospital: a multiple of 64.
        device: torch device of the sites.
        home: the folder of all runs.
        progress: shows what happens.

    Raises:
        InputError: there is one model only, they cannot be compared, the data do not fit, nobody serves the
            federation, or its sites are at work.
        RunFailed: no hospital has images enough.
    """
    if len(models) < 2:
        raise InputError("name two models or more: the ids of finished runs, or their folders")
    _check_alike(models)
    config = models[0].config
    names = _names([model.run for model in models])
    named = [
        NamedBackbone(name, model.config.model.backbone, model.backbone)
        for name, model in zip(names, models, strict=True)
    ]
    with ExitStack() as opened:
        if not data and was_launched(models[0].folder.parent):
            there = opened.enter_context(own_hospitals(models[0]))
        else:
            hospitals = audited_hospitals(
                models[0], data, sites=sites, partition=partition, device=device, home=home, progress=progress
            )
            there = reached(opened.enter_context(hospitals).sites)
        return Comparison(there, config, new_run_id(), progress, images).of_all(named)


def _check_alike(models: Sequence[FoundModel]) -> None:
    """Refuse models that saw images prepared in different ways: what differs might be the images.

    Raises:
        InputError: with the model and what differs.
    """
    first = models[0]
    for model in models:  # whose images would be counted without noise
        if model.config.privacy is not None:
            raise InputError(f"{model.run} was trained under [privacy], where hospitals compare no models")
    for other in models[1:]:
        ours, theirs = ((one.preset, one.size, one.window) for one in (first.config.images, other.config.images))
        if ours != theirs:
            raise InputError(
                f"{first.run} and {other.run} were trained on images prepared in different ways (preset, size,"
                f" window: {ours} and {theirs}): what differs might be the images"
            )


def _names(runs: Sequence[str]) -> list[str]:
    """The runs' ids, numbered where one is named twice."""
    return [run if runs.count(run) == 1 else f"{run} ({number})" for number, run in enumerate(runs, start=1)]
