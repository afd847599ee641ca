"""One launched run: ``python -m server.coordinator HOME RUN``. It takes the place of Flower's ServerApp.

Started by `server.service`. Killed at any moment and started again, it goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import httpx

from aiseeme_models.errors import InputError, RunFailed
from federation_configs.command_line import console
from federation_configs.downstream import learns_labels
from federation_configs.loading import load_config
from federation_configs.signatures import load_signing_key
from server.exchange import RunStopped
from server.federation_home import FederationHome
from server.final_files import FinalFiles
from server.flower_adapter import Link
from server.given_start import given_start
from server.global_model import backbone_of
from server.probing import ProbeOutcome
from server.progress import Progress
from server.registry import RunRegistry, RunStatus
from server.request_signing import RequestSigner
from server.results import Results
from server.roster import Owners
from server.rounds import RoundLoop
from server.run_folder import CONFIG, FederationPlan, StopRequest, held, registry_url
from server.service_files import ENDED, ServiceFiles
from server.site_registry import SiteRegistry
from server.superlink_grid import SuperLinkGrid

_NO_PROBE = "a coordinator has no images: `aiseeme evaluate` probes the backbone on a labelled folder"


def play(home: FederationHome, run: str) -> Results:
    """Play what is left of a launched run.

    Raises:
        RunFailed: it failed, was stopped, or its files are damaged; the registry says so too.
        InputError: another process plays it.
    """
    folder = home.runs / run
    registry = RunRegistry(registry_url(home.runs))
    with held(folder):
        try:
            config, plan = load_config(folder / CONFIG), FederationPlan.load(folder)
        except InputError as damaged:  # asked again it would be no better
            registry.update(run, {"status": "failed", "reason": str(damaged), "pid": None})
            raise RunFailed(str(damaged)) from None
        registry.update(run, {"status": "running", "reason": "", "pid": os.getpid()})
        progress = Progress(console())
        progress.begin(config, folder)
        progress.on_state = lambda state: registry.update(run, {"rounds_done": state.round})
        signing_key = load_signing_key(home.signing_key)
        began_with = None if plan.initial is None else plan.initial.sentence
        files = FinalFiles(config, folder, classes={}, initial=began_with, signing_key=signing_key)
        started = time.perf_counter()
        grid: SuperLinkGrid | None = None
        try:
            stop = StopRequest(folder)
            address = ServiceFiles(home.folder).link_address
            link = Link.of(address, home.link_authority, home.superexec_secret)
            _end_former(link, folder)
            grid = SuperLinkGrid(link, stopped=lambda: bool(stop), on_begin=lambda now: _note_former(folder, now))
            loop = RoundLoop(
                grid,
                config,
                run,
                folder,
                plan.sites,
                progress,
                signing_key=signing_key,
                signer=RequestSigner(signing_key, home.config.name),
                owners=_owners(grid, home),
                rejoin_s=config.federation.rejoin_s,
                begins=given_start(plan.initial, config, folder),
            )
            state, vector = loop.play()
            seconds = loop.earlier_s + time.perf_counter() - started
            if learns_labels(config):
                results = files.classified(state, vector, None, loop.tested, seconds)
            else:
                backbone = backbone_of(config, len(state.stages) - 1, vector)
                results = files.done(state, backbone, ProbeOutcome(None, None, _NO_PROBE), seconds)
        except (RunFailed, InputError, OSError) as failure:
            status: RunStatus = "stopped" if isinstance(failure, RunStopped) else "failed"
            reason = str(failure)
            try:
                if grid is not None:
                    grid.close(completed=False, details=status)
                with contextlib.suppress(OSError):  # the disk that failed the run may not take its report either
                    files.failed(reason, time.perf_counter() - started)
            finally:  # last: who reads that it has failed finds its results, and may resume it at once
                registry.update(run, {"status": status, "reason": reason, "pid": None})
            raise RunFailed(reason) from failure
        grid.close(completed=True)
        registry.finish(results)
        return results


def _owners(grid: SuperLinkGrid, home: FederationHome) -> Owners:
    """Whose node is whose: the SuperLink knows each node by its key, the federation each key by its site."""
    sites = SiteRegistry(home.sites_url)

    def owners() -> dict[int, str]:
        names = sites.names_by_key()
        return {node: names[key] for key, node in grid.registered().items() if key in names}

    return owners


def _note_former(folder: Path, flower_run: int) -> None:
    (folder / "flower-run").write_text(str(flower_run))


def _end_former(link: Link, folder: Path) -> None:
    """End the Flower run of a process that was killed, so that the sites stop working for it."""
    with contextlib.suppress(FileNotFoundError, ValueError, httpx.HTTPError):  # it ends by itself after a minute
        link.stop_run(int((folder / "flower-run").read_text()))


def main() -> None:
    """Play one run; exit code 0 when it is done, `ENDED` when it failed or was stopped, any other where it crashed."""
    try:
        play(FederationHome(Path(sys.argv[1])), sys.argv[2])
    except (RunFailed, InputError) as failure:
        Progress(console()).say(str(failure))
        raise SystemExit(ENDED if isinstance(failure, RunFailed) else 2) from None


if __name__ == "__main__":
    main()
