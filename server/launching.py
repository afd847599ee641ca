"""Submitting, watching, stopping and resuming runs of a federation that `aiseeme serve` plays."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from aiseeme_models import __version__
from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError, RunFailed
from federation_configs.loading import config_sha256, to_toml
from server.given_start import GivenStart
from server.registry import UNFINISHED, RunRegistry, RunRow, new_run_id
from server.run_folder import CONFIG, FederationPlan, StopRequest, registry_url, was_launched
from server.service_files import ServiceFiles, check_served
from server.site_registry import SiteRegistry

if TYPE_CHECKING:
    from pathlib import Path

    from federation_configs.schema import FederationConfig
    from server.federation_home import FederationHome

_TURN_S = 0.2
_STOP_S = 60.0


def launch(home: FederationHome, config: FederationConfig, initial: Path | None = None) -> str:
    """Submit a run to the federation that is being served; gives the run's id.

    Args:
        home: the federation's.
        config: the run's.
        initial: a run, model or file whose backbone it begins with; None: a fresh one.

    Raises:
        InputError: nobody serves the federation, its sites are not those that the configuration asks for, or there is
            no such backbone.
    """
    check_served(home)
    names = _invited(home, config)
    given = None if initial is None else GivenStart.of(initial, config)
    home.runs.mkdir(exist_ok=True, mode=0o700)
    run = new_run_id()
    folder = home.runs / run
    folder.mkdir()
    write_atomically(folder / CONFIG, to_toml(config).encode())
    FederationPlan(sites=tuple(names), versions=_versions(), initial=given).save(folder)
    RunRegistry(registry_url(home.runs)).create(
        id=run,
        name=config.name,
        seed=config.seed,
        config_sha256=config_sha256(config),
        version=__version__,
        rounds_total=config.rounds,
        sites_total=len(names),
        folder=str(folder.resolve()),
        status="queued",
    )
    return run


def resume(home: FederationHome, run: str) -> str:
    """Have a run that failed or was stopped go on from its last checkpoint; gives its whole id.

    Raises:
        InputError: no such launched run, it is done, or nobody serves the federation.
    """
    registry = RunRegistry(registry_url(home.runs))
    row = registry.get(run)
    if row.status == "done":
        raise InputError(f"{row.id} is done; `aiseeme show {row.id}` shows it")
    check_served(home)
    if row.status not in UNFINISHED:
        StopRequest(home.runs / row.id).withdraw()
        registry.update(row.id, {"status": "queued", "reason": "", "pid": None})
    return row.id


def stop(home: FederationHome, run: str) -> RunRow:
    """Have a run stop, and its sites stop computing; gives its row once it has.

    Raises:
        InputError: no such launched run, or it has ended.
        RunFailed: it did not stop within a minute.
    """
    registry = RunRegistry(registry_url(home.runs))
    row = registry.get(run)
    folder = home.runs / row.id
    if row.status in UNFINISHED and not folder.is_dir():
        return registry.update(row.id, {"status": "stopped", "reason": "its folder is gone", "pid": None})
    if not was_launched(folder):
        raise InputError(f"{row.id} is a simulation: Ctrl-C stops it where it runs")
    if row.status not in UNFINISHED:
        raise InputError(f"{row.id} has ended already: {row.status}")
    StopRequest(folder).make()
    if row.status == "queued" or not ServiceFiles(home.folder).is_held():
        return registry.update(row.id, {"status": "stopped", "reason": "stopped by the coordinator", "pid": None})
    until = time.monotonic() + _STOP_S
    while (row := registry.get(row.id)).status in UNFINISHED:
        if time.monotonic() > until:
            raise RunFailed(f"{row.id} did not stop within {_STOP_S:.0f} s: see {home.logs}")
        time.sleep(_TURN_S)
    return row


def follow(home: FederationHome, run: str, show: Callable[[str], None]) -> RunRow:
    """Show what a run's process says until the run has ended; the verdict is the registry's, not the process's.

    Raises:
        RunFailed: nobody serves the federation any more.
    """
    registry, log = RunRegistry(registry_url(home.runs)), home.runs / run / "coordinator.log"
    with contextlib.ExitStack() as opened:
        reader: TextIO | None = None
        while True:
            row = registry.get(run)
            if reader is None and log.exists():
                reader = opened.enter_context(log.open(encoding="utf-8", errors="replace"))
            for line in () if reader is None else iter(reader.readline, ""):
                show(line.rstrip("\n"))
            if row.status not in UNFINISHED:
                return row
            if not ServiceFiles(home.folder).is_held():
                raise RunFailed(f"`aiseeme serve` has ended; run {run} goes on when it is started again")
            time.sleep(_TURN_S)


def _invited(home: FederationHome, config: FederationConfig) -> Sequence[str]:
    active = sorted(row.name for row in SiteRegistry(home.sites_url).active())
    options = config.federation
    names = active if options.sites is None else list(options.sites)
    for key, wanted in (("sites", names), ("required_sites", options.required_sites)):
        for name in wanted:
            if name not in active:
                there = ", ".join(active) or "none"
                raise InputError(f"federation.{key}: {name} is no active site of this federation; there are {there}")
    if len(names) < options.min_sites:
        raise InputError(
            f"{len(names)} active sites are fewer than federation.min_sites = {options.min_sites}:"
            " `aiseeme site list` shows them"
        )
    return names


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"aiseeme": __version__, "torch": version("torch")}
