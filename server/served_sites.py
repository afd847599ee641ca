"""The hospitals of a federation that is being served, asked about finished models between its runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from federation_configs.flower import quiet_environment
from federation_configs.signatures import load_signing_key
from server.asked_sites import Reached
from server.federation_home import FederationHome
from server.request_signing import RequestSigner
from server.run_folder import FederationPlan
from server.service_files import ServiceFiles, check_served, superlink_of
from server.site_registry import SiteRegistry
from server.superlink_grid import SuperLinkGrid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.model_reference import FoundModel
    from server.roster import Owners


@contextmanager
def own_hospitals(found: FoundModel) -> Iterator[Reached]:
    """The way to the hospitals that played a model's run, for the block: see `served_sites`."""
    plan = FederationPlan.load(found.folder.parent)
    home = FederationHome(found.folder.parents[2])
    with served_sites(home, plan.sites, found.config.federation.rejoin_s) as sites:
        yield sites


@contextmanager
def served_sites(home: FederationHome, names: Sequence[str], patience_s: float) -> Iterator[Reached]:
    """The way to sites, for the block; a run that is launched in the meantime waits.

    Args:
        home: the federation's.
        names: the sites that are asked.
        patience_s: how long those that are not connected are waited for.

    Raises:
        InputError: nobody serves the federation, or its sites are at work for a run or another question.
        RunFailed: the SuperLink does not answer.
    """
    check_served(home)
    files = ServiceFiles(home.folder)
    signing_key = load_signing_key(home.signing_key)
    busy = f"{home.folder}: its sites are at work: ask again when the run has ended; `aiseeme runs` shows it"
    with files.commanding(busy):
        os.environ.update(quiet_environment(files.flower_home))  # no proxy stands before the SuperLink on loopback
        grid = SuperLinkGrid(superlink_of(home))
        completed = False
        try:
            signer = RequestSigner(signing_key, home.config.name)
            yield Reached(grid, names, signer=signer, owners=owners_of(grid, home), patience_s=patience_s)
            completed = True
        finally:
            grid.close(completed=completed)


def owners_of(grid: SuperLinkGrid, home: FederationHome) -> Owners:
    """Whose node is whose: the SuperLink knows each node by its key, the federation each key by its site."""
    sites = SiteRegistry(home.sites_url)

    def owners() -> dict[int, str]:
        names = sites.names_by_key()
        return {node: names[key] for key, node in grid.registered().items() if key in names}

    return owners
