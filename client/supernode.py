"""The site's node: Flower's SuperNode with the site's hooks. ``python -m client.supernode HOME PORT``.

Started and kept by `client.service`. Outbound connections go to the gateway only; its runtime API is on loopback.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

from client.flower_adapter import NodeHooks, heart_beats, run_node
from client.ledger import Ledger
from client.membership import load_membership
from client.node_files import NodeFiles
from client.site_home import SiteHome
from federation_configs.bundle_file import BUNDLE_SHA256
from federation_configs.site_errors import SiteError
from federation_configs.supervision import say

_WATCH_S = 1.0
_SIGN_EVERY_S = 1.0


class _Seldom:
    """Calls something at most once a second: the node's loop turns twenty times as often."""

    def __init__(self, call: object) -> None:
        self._call, self._last = call, 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last >= _SIGN_EVERY_S:
            self._last = now
            self._call()  # type: ignore[operator]


def main() -> None:
    """Run the node until it is stopped; it ends, to be started again, where it would go on deaf."""
    home, port = SiteHome(Path(sys.argv[1])), int(sys.argv[2])
    membership, connection = load_membership(home), home.config.connection
    files, ledger = NodeFiles(home.folder), Ledger.in_home(home.folder)

    def refused(digest: str) -> None:
        home.log.warning("an app bundle that is not approved was refused: sha256 %s", digest)
        ledger.append("refused", what="bundle", code=SiteError.BUNDLE_NOT_APPROVED.name, sha256=digest)

    def ended(run: int) -> None:
        with contextlib.suppress(OSError):  # a full disk: the work is given up when its time is over
            files.note_ended(run)

    NodeHooks(
        approved=home.config.policy.approved_bundles(BUNDLE_SHA256),
        authority_file=membership.authority_file,
        certificate_file=membership.certificate_file,
        key_file=membership.key_file,
        quickest_poll_s=connection.quickest_poll_s,
        slowest_poll_s=connection.slowest_poll_s,
        on_life=_Seldom(files.note_alive),
        on_contact=_Seldom(files.note_contact),
        on_run_ended=ended,
        on_refused=refused,
        on_stuck=lambda: _end("nobody answers a message whose time is over"),
    ).install()
    threading.Thread(target=_end_when_deaf, daemon=True, name="watch").start()
    sys.argv = [
        "flower-supernode",
        *("--superlink", f"{membership.gateway_host}:{membership.gateway_port}"),
        *("--root-certificates", str(membership.authority_file)),
        *("--auth-supernode-private-key", str(membership.node_key_file)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(files.secret)),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    run_node()


def _end_when_deaf() -> None:
    """End the process once its loop or its heart has: Flower's other threads would keep it, alive and deaf."""
    had_a_heart = False
    while True:
        time.sleep(_WATCH_S)
        beats = heart_beats()
        had_a_heart = had_a_heart or beats
        if not threading.main_thread().is_alive() or (had_a_heart and not beats):
            _end("the node has gone deaf")


def _end(why: str) -> None:
    say(f"{why}: the node ends, to be started again")
    os._exit(1)


if __name__ == "__main__":
    main()
