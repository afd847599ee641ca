"""Flower's own simulation engine (Ray): the same ClientApp and round loop in many processes, for many GPUs."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from aiseeme_models.errors import InputError

if TYPE_CHECKING:
    from flwr.app import ConfigRecordValues

Outcome = TypeVar("Outcome")


def play_with_ray(client_app: ClientApp, sites: int, play: Callable[[Grid], Outcome], *, use_gpu: bool) -> Outcome:
    """Run ``play`` with the Grid of a Ray simulation of ``sites`` sites.

    A site takes one core while it works and, with ``use_gpu``, one GPU. It sees no other GPU than that one, which is
    ``cuda`` to it (``cuda:0``) whatever its number on the machine is.

    Args:
        client_app: the hospital's app; it and what it refers to must be picklable by Ray.
        sites: number of virtual SuperNodes.
        play: drives the Grid; its result is given back, its exception raised.
        use_gpu: whether the sites compute on GPUs. All GPUs that Ray sees are used, one per working site.

    Raises:
        InputError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray: Ray is not installed; install aiseeme[ray], or leave the option out")
    from flwr.simulation import run_simulation

    outcomes: list[Outcome] = []
    failures: list[BaseException] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            outcomes.append(play(grid))
        except BaseException as error:  # carried to the caller's thread
            failures.append(error)

    resources: dict[str, ConfigRecordValues] = {"num_cpus": 1.0, "num_gpus": 1.0 if use_gpu else 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        run_simulation(
            server_app,
            client_app,
            num_supernodes=sites,
            backend_config={
                "init_args": {"include_dashboard": False, "log_to_driver": False},
                "client_resources": resources,
            },
        )
    if failures:
        raise failures[0]
    return outcomes[0]
