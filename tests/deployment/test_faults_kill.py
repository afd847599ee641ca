"""SIGKILL of every process in every phase of a round: nothing is lost, and the backbone is the same to the bit."""

from __future__ import annotations

import pytest

from tests.deployment.faults import PHASES, Watch, begin, configured, healed, kill, processes
from tests.deployment.hospitals import loopback, needs_nginx

pytestmark = [pytest.mark.deployment, pytest.mark.slow, needs_nginx, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with loopback(tmp_path_factory.mktemp("kill"), configured()) as federation:
        federation.start()
        yield federation


@pytest.fixture
def federation(shared):
    return healed(shared)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("victim", ["runner", "node", "superlink", "coordinator", "gateway"])
def test_a_process_is_killed(federation, victim, phase):
    run = begin(federation)
    run.wait_for(phase)
    hit, victims = run.round, processes(federation, victim)
    kill(victims)
    watch = Watch(f"{victim} killed during {phase} of round {hit}")
    run.wait_for_round(hit)
    watch.stop()
    run.ends_with_the_same_bits()


def test_the_coordinator_s_whole_process_tree_is_killed_and_started_again(federation):
    run = begin(federation)
    run.wait_for("training")
    hit = run.round
    federation.server.kill_tree()
    watch = Watch(f"whole coordinator killed during training of round {hit}")
    federation.server.start()
    run.wait_for_round(hit)
    watch.stop()
    run.ends_with_the_same_bits()
