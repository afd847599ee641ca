"""One launched run: ``python -m server.coordinator HOME RUN``. It takes the place of Flower's ServerApp.

Started by `server.service`. Killed at any moment and started again, it goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from aiseeme_models.errors import InputError, RunFailed
from federation_configs.command_line import console
from federation_configs.downstream import learns_labels
from federation_configs.loading import load_config
from federation_configs.signatures import load_signing_key
from server.command import Command, commanding
from server.exchange import RunStopped
from server.federation_home import FederationHome
from server.final_files import FinalFiles
from server.given_start import given_start
from server.global_model import backbone_of
from server.probing import ProbeOutcome
from server.progress import Progress
from server.registry import RunRegistry, RunStatus
from server.request_signing import RequestSigner
from server.results import Results
from server.rounds import RoundLoop
from server.run_folder import CONFIG, FederationPlan, StopRequest, held, registry_url
from server.served_sites import owners_of
from server.service_files import ENDED
from server.superlink_grid import SuperLinkGrid

_TURN_S = 0.5
_NO_PROBE = "a coordinator has no images: `aiseeme evaluate` probes the backbone on a labelled folder"


def play(home: FederationHome, run: str) -> Results:
    """Play what is left of a launched run.

    Raises:
        RunFailed: it failed, was stopped, or its files are damaged; the registry says so too.
        InputError: another process plays it.
    """
    folder = home.runs / run
    registry = RunRegistry(registry_url(home.runs))
    with held(folder), contextlib.ExitStack() as held_now:
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
            command = held_now.enter_context(_in_command(home, stop, progress))
            started = time.perf_counter()
            grid = SuperLinkGrid(command.link, stopped=lambda: bool(stop), on_begin=command.note)
            loop = RoundLoop(
                grid,
                config,
                run,
                folder,
                plan.sites,
                progress,
                signing_key=signing_key,
                signer=RequestSigner(signing_key, home.config.name),
                owners=owners_of(grid, home),
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


@contextlib.contextmanager
def _in_command(home: FederationHome, stop: StopRequest, progress: Progress) -> Iterator[Command]:
    """Be the one that asks the sites, once an audit or comparison of models that is under way has ended.

    Raises:
        RunStopped: the run was asked to stop before that.
    """
    with contextlib.ExitStack() as held_now:
        command: Command | None = None
        told = False
        while command is None:
            try:
                command = held_now.enter_context(commanding(home, "its sites answer another question"))
            except InputError as busy:
                if stop:
                    raise RunStopped("stopped by the coordinator") from None
                if not told:
                    progress.say(f"waiting: {busy}")
                told = True
                time.sleep(_TURN_S)
        yield command


def main() -> None:
    """Play one run; exit code 0 when it is done, `ENDED` when it failed or was stopped, any other where it crashed."""
    try:
        play(FederationHome(Path(sys.argv[1])), sys.argv[2])
    except (RunFailed, InputError) as failure:
        Progress(console()).say(str(failure))
        raise SystemExit(ENDED if isinstance(failure, RunFailed) else 2) from None


if __name__ == "__main__":
    main()
