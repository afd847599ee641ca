"""The network between a site and the gateway is cut, or slow: nothing is lost, the backbone is the same to the bit."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import pytest

from federation_configs.schema import FederationOptions
from tests.deployment.faults import Watch, begin, configured, frozen, healed, processes, tell
from tests.deployment.hospitals import loopback, needs_nginx
from tests.deployment.network import Line, reroute

pytestmark = [pytest.mark.deployment, pytest.mark.slow, needs_nginx, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with loopback(tmp_path_factory.mktemp("network"), configured()) as federation, ExitStack() as ended:
        line = Line(federation.port)
        ended.callback(line.close)
        reroute(federation.hospitals["beta"].home, line.port)
        federation.start()
        yield federation, line


@pytest.fixture
def federation(shared):
    return healed(shared[0])


@pytest.fixture
def line(shared):
    return shared[1]


@pytest.mark.parametrize(
    ("seconds", "phase", "kind"),
    [
        (5, "training", "refusing"),
        (5, "upload", "swallowing"),
        (30, "training", "swallowing"),
        (30, "upload", "refusing"),
        (90, "training", "refusing"),
        (90, "upload", "swallowing"),
    ],
)
def test_the_network_is_cut(federation, line, seconds, phase, kind):
    assert line.carried > 0, "beta does not use the line"
    run = begin(federation)
    run.wait_for(phase)
    hit = run.round
    with getattr(line, kind)():
        time.sleep(seconds)
    watch = Watch(f"network {kind} for {seconds} s during {phase} of round {hit}, after the network is back")
    run.wait_for_round(hit)
    watch.stop()
    run.ends_with_the_same_bits()


def test_a_vpn_that_drops_for_six_minutes(federation, line):
    """With the default deadline, retries and patience; such a drop ended another federation's run of 15 hours."""
    defaults = FederationOptions()
    waits = {key: getattr(defaults, key) for key in ("round_deadline_s", "rejoin_s", "round_retries")}
    run = begin(federation, **waits)
    run.wait_for("training")
    with line.swallowing():
        time.sleep(360)
    watch = Watch("a VPN that dropped for 6 minutes, after it is back")
    run.wait_for_round(2)
    watch.stop()
    run.ends_with_the_same_bits()
    assert run.counted() == {number: set(federation.hospitals) for number in (1, 2)}


def test_a_slow_site_is_waited_for(federation, line):
    """5 MB/s, and a machine that computes half of the time."""
    line.bytes_per_s = 5e6
    ended = threading.Event()
    victims = processes(federation, "runner")

    def in_turns():
        while not ended.is_set():
            with frozen(victims):
                time.sleep(0.4)
            time.sleep(0.4)

    slow = threading.Thread(target=in_turns)
    slow.start()
    try:
        run = begin(federation)
        run.ends_with_the_same_bits()
    finally:
        ended.set()
        slow.join()
        line.bytes_per_s = None
    assert run.counted() == {number: set(federation.hospitals) for number in (1, 2)}
    assert "asking the missing sites again" not in run.says
    tell("a slow site's slowest training", max(one["seconds"] for one in run.metrics() if one.get("site") == "beta"))
