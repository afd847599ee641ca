"""The site's runner: answers the node's messages, with everything heavy in memory. ``python -m client.runner HOME``.

It takes the place of `flower-superexec` and `flwr-clientapp`, which start a process per message and would unpack and
import the coordinator's app bundle. Started and kept by `client.service`.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from flwr.app import Message

from aiseeme_models.printable import printable
from client.app import make_client_app
from client.gate import Gate
from client.ledger import Ledger
from client.ledger_chain import LedgerBroken
from client.local_state import forget_old_runs
from client.membership import load_membership
from client.node_files import NodeFiles
from client.node_tasks import NodeTask, NodeTasks
from client.privacy import PrivacyBudget
from client.refusals import Refusal, error_reply
from client.site import Site
from client.site_home import SiteHome
from client.survey import Survey
from federation_configs.bundle_file import BUNDLE_SHA256
from federation_configs.site_errors import SiteError
from federation_configs.supervision import say

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

    from client.site_config import MachineOptions

_QUICKEST_S, _SLOWEST_S = 0.02, 0.2
_LOOK_S = 0.5
_KEEP_DAYS = 30.0


class Interruption:
    """Whether the work at hand is still wanted; asked from within it.

    Args:
        files: where the node says that a run has ended.
        clock: seconds since 1970.
    """

    def __init__(self, files: NodeFiles, clock: Callable[[], float] = time.time) -> None:
        self._files, self._clock = files, clock
        self._looked = 0.0
        self._run, self._expires, self._address = 0, 0.0, files.address()

    def begin(self, run: int, expires: float) -> None:
        """Work for a Flower run begins, for an answer that is waited for until ``expires`` (seconds since 1970)."""
        self._run, self._expires, self._address = run, expires, self._files.address()

    def look(self) -> None:
        """Go on, or not.

        Raises:
            Refusal: STOPPED where the run has ended or the node that asked is gone; EXPIRED where nobody waits.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        if self._files.has_ended(self._run) or self._files.address() != self._address:
            raise Refusal(SiteError.STOPPED)
        if self._clock() > self._expires:
            raise Refusal(SiteError.EXPIRED)


class Runner:
    """Answers what the node hands out, one message at a time.

    Args:
        app: the site's ClientApp.
        files: where the node is found.
        approved: sha256 of the app bundles that may be named here.
        ledger: takes refusals of bundles; all else the app enters itself.
        interruption: told of each piece of work.
        say: shows a line to the hospital's own staff.
    """

    def __init__(
        self,
        app: ClientApp,
        files: NodeFiles,
        approved: frozenset[str],
        ledger: Ledger,
        interruption: Interruption,
        say: Callable[[str], None],
    ) -> None:
        self._app, self._files, self._approved = app, files, approved
        self._ledger, self._interruption, self._say = ledger, interruption, say

    def serve(self) -> None:
        """Answer for ever; a node that is gone is waited for, and found again at its new address."""
        pause = _QUICKEST_S
        address, tasks = None, None
        while True:
            if (now := self._files.address()) != address or tasks is None:
                address = now
                tasks = None if address is None else NodeTasks(address, self._files.secret)
            busy, asked_at = False, time.monotonic()
            if tasks is not None:
                with contextlib.suppress(httpx.TransportError):  # not up yet, or gone: asked again
                    busy = self._serve_one(tasks)
            pause = _QUICKEST_S if busy else min(pause * 1.1, _SLOWEST_S)
            time.sleep(max(0.0, pause - (time.monotonic() - asked_at)))

    def _serve_one(self, tasks: NodeTasks) -> bool:
        with tasks.next() as task:
            if task is None:
                return False
            started = time.monotonic()
            self._interruption.begin(task.message.metadata.run_id, task.expires)
            reply = self._answer(task)
            what = f"{task.message.metadata.message_type} {task.message.metadata.group_id}"
            outcome = f"refused: {reply.error.reason}" if reply.has_error() else "answered"
            try:
                task.answer(reply)
            except httpx.HTTPStatusError as error:
                outcome = f"{outcome}, but nobody takes it any more (HTTP {error.response.status_code})"
            self._say(printable(f"{what}: {outcome} after {time.monotonic() - started:.1f} s", 300))
        del task, reply  # a global model and a site's own
        gc.collect()
        return True

    def _answer(self, task: NodeTask) -> Message:
        if not task.is_for_clients or task.bundle_sha256 not in self._approved:
            return self._refuse(task, "bundle", SiteError.BUNDLE_NOT_APPROVED, sha256=task.bundle_sha256)
        if not task.is_readable:
            return self._refuse(task, "message", SiteError.BAD_REQUEST)
        try:
            return self._app(task.message, task.context)
        except Exception:  # the app lets none through: it was not called, as there is no such type of message
            return self._refuse(task, "message", SiteError.BAD_REQUEST)

    def _refuse(self, task: NodeTask, what: str, code: SiteError, **fields: str) -> Message:
        with contextlib.suppress(OSError, LedgerBroken):  # nothing was done, and nothing but the code leaves
            self._ledger.append("refused", what=what, code=code.name, **fields)
        return error_reply(code, task.message)


def main() -> None:
    """Run until stopped."""
    home = SiteHome(Path(sys.argv[1]))
    config, membership = home.config, load_membership(home)
    device = _use(config.machine, sys.argv[2] if len(sys.argv) > 2 else config.machine.device)
    _load_the_heavy()
    files, ledger = NodeFiles(home.folder), Ledger.in_home(home.folder)
    interruption = Interruption(files)
    signing_key = membership.signing_key_hex
    gate = Gate.of(config, ledger, site=membership.site, federation=membership.federation, signing_key=signing_key)
    state = home.folder / "state"
    forget_old_runs(state, _KEEP_DAYS)
    site = Site(
        name=membership.site,
        folder=Path("/"),
        rows=[],
        store=home.store,
        state_folder=state,
        limits=config.intake.limits,
        device=device,
        gate=gate,
        budget=PrivacyBudget(home.folder, ledger, config.privacy),
        on_step=lambda *_: interruption.look(),
    )
    survey = Survey(home, site, config.policy.allowed_cohorts, interruption.look)
    approved = config.policy.approved_bundles(BUNDLE_SHA256)
    gc.collect()
    gc.freeze()  # torch and the rest stay: the collection after each message need not look through them
    say(f"ready on {device}")
    app = make_client_app(lambda _: survey.site)
    Runner(app, files, approved, ledger, interruption, say).serve()


def _use(machine: MachineOptions, device: str) -> str:
    """Keep to the limits of ``[machine]``; gives the torch device."""
    import torch

    from aiseeme_models.training.device import choose_device

    chosen = choose_device(device)
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    if machine.memory_gb is not None:
        limit = int(machine.memory_gb * 2**30)
        if chosen.startswith("cuda"):  # CUDA maps more of its address space than a process limit could allow
            total = torch.cuda.get_device_properties(chosen).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), chosen)
        else:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return chosen


def _load_the_heavy() -> None:
    """Import now what the first message would wait for."""
    import client.scanning
    import client.workbench  # noqa: F401


if __name__ == "__main__":
    main()
