"""``aiseeme compare``: models compared at simulated hospitals, by the messages that real ones answer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from aiseeme_models.errors import InputError
from server.asked_sites import NamedBackbone
from server.comparison import Comparison, Pair
from server.model_reference import FoundModel, find_model
from server.progress import Progress
from server.registry import new_run_id
from server.simulation import hospitals_of, local_grid


def compare_models(
    references: Sequence[str],
    data: Sequence[Path],
    *,
    sites: int | None,
    partition: str | None,
    images: int,
    device: str,
    home: Path,
    progress: Progress,
) -> list[Pair]:
    """Compare each model with each other one on the held-out images of simulated hospitals.

    Args:
        references: two or more models, see `find_model`. The first one's configuration says how images are prepared and
            who is held out.
        data, sites, partition: the hospitals, as in `server.simulation.simulate`.
        images: most images of a hospital: a multiple of 64.
        device: torch device of the sites.
        home: the folder of all runs.
        progress: shows what happens.

    Raises:
        InputError: a model is unreadable, they cannot be compared, or the data do not fit.
        RunFailed: no hospital has images enough.
    """
    if len(references) < 2:
        raise InputError("name two models or more: the ids of finished runs, or their folders")
    models = [find_model(reference, home) for reference in references]
    _check_alike(models)
    config = models[0].config
    names = _names([model.run for model in models])
    with tempfile.TemporaryDirectory() as scratch:
        hospitals = hospitals_of(config, data, sites, partition, device, home, Path(scratch), progress)
        grid = local_grid(hospitals.sites)
        comparison = Comparison(
            grid,
            config,
            new_run_id(),
            [site.name for site in hospitals.sites],
            observer=progress,
            clock=grid.clock,
            images=images,
        )
        named = [
            NamedBackbone(name, model.config.model.backbone, model.backbone)
            for name, model in zip(names, models, strict=True)
        ]
        return comparison.of_all(named)


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
