"""The hospitals of a federation that is being served, asked about finished models between its runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiseeme_models.errors import InputError
from federation_configs.flower import quiet_environment
from federation_configs.signatures import load_signing_key
from server.asked_sites import Reached
from server.command import commanding
from server.federation_home import FederationHome
from server.registry import RunRegistry
from server.request_signing import RequestSigner
from server.run_folder import FederationPlan, registry_url, was_launched
from server.service_files import ServiceFiles, check_served
from server.site_registry import SiteRegistry
from server.superlink_grid import SuperLinkGrid

if TYPE_CHECKING:
    from server.model_reference import FoundModel
    from server.roster import Owners


_OUTAGE_S = 30.0  # a person waits for the answer


@contextmanager
def own_hospitals(found: FoundModel) -> Iterator[Reached]:
    """The way to the hospitals that played a model's run, for the block; a run that is launched meanwhile waits.

    Those that have left the federation since are not waited for.

    Raises:
        InputError: nobody serves the federation, or its sites are at work for a run or another question.
        RunFailed: the SuperLink does not answer.
    """
    home = FederationHome.of_runs(found.folder.resolve().parents[1])
    check_served(home)
    _check_idle(home)
    names = FederationPlan.load(found.folder.parent).sites
    active = {row.name for row in SiteRegistry(home.sites_url).active()}
    signing_key = load_signing_key(home.signing_key)
    with _direct(home), commanding(home, f"{home.folder}: its sites are at work: ask again a little later") as command:
        grid = SuperLinkGrid(command.link, outage_s=_OUTAGE_S, on_begin=command.note)
        completed = False
        try:
            yield Reached(
                grid,
                names,
                signer=RequestSigner(signing_key, home.config.name),
                owners=owners_of(grid, home),
                patience_s=found.config.federation.rejoin_s,
                gone=[name for name in names if name not in active],
            )
            completed = True
        finally:
            grid.close(completed=completed)


def _check_idle(home: FederationHome) -> None:
    """Raise where a run is being played, or would be, were its process not just starting again."""
    for row in RunRegistry(registry_url(home.runs)).unfinished():
        if was_launched(home.runs / row.id):
            raise InputError(
                f"{home.folder}: its sites are at work for run {row.id} ({row.status}): ask again when it has ended"
            )


@contextmanager
def _direct(home: FederationHome) -> Iterator[None]:
    """No proxy stands before the SuperLink on loopback within the block, and Flower keeps its files in the home."""
    changed = quiet_environment(ServiceFiles(home.folder).flower_home)
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def owners_of(grid: SuperLinkGrid, home: FederationHome) -> Owners:
    """Whose node is whose: the SuperLink knows each node by its key, the federation each key by its site."""
    sites = SiteRegistry(home.sites_url)

    def owners() -> dict[int, str]:
        names = sites.names_by_key()
        return {node: names[key] for key, node in grid.registered().items() if key in names}

    return owners
