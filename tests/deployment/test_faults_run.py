"""A run is stopped, loses its quorum for good, or one of its sites is revoked."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime

import psutil
import pytest

from scripts.loopback import AISEEME, ENVIRONMENT, aiseeme, ran, until
from server.run_folder import is_held
from tests.deployment.faults import (
    Watch,
    begin,
    configured,
    healed,
    launched,
    processor_s,
    site_process,
    tell,
)
from tests.deployment.hospitals import loopback, needs_nginx

pytestmark = [pytest.mark.deployment, pytest.mark.slow, needs_nginx, pytest.mark.timeout(900)]

LONG = {"rounds": 1, "epochs": 40}  # a training that is worth stopping


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with loopback(tmp_path_factory.mktemp("run"), configured()) as federation:
        federation.start()
        yield federation


@pytest.fixture
def federation(shared):
    return healed(shared)


def ledger_of(federation, site):
    newest = federation.hospitals[site].ledger[-1]
    return newest["kind"], newest.get("what"), newest.get("code")


def is_idle(federation, site):
    """Whether a site's runner computes nothing: it may look for work."""
    runner = site_process(federation, site, "runner")
    before = processor_s(runner)
    time.sleep(1)
    return processor_s(runner) - before < 0.5


def resumed(federation, run):
    """What `aiseeme resume` prints, and its exit code."""
    command = [sys.executable, "-c", AISEEME, "resume", run.id, "--runs", str(federation.home / "runs")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=400)
    return done.stdout + done.stderr, done.returncode


def test_a_stopped_run_leaves_the_sites_idle_and_can_be_resumed(federation):
    with launched(federation, **LONG) as (run, watching):
        for site in federation.hospitals:
            run.wait_for("training", site, first=1)
        since = time.monotonic()
        assert "stopped" in ran(aiseeme("stop", run.id, "--federation", federation.home))
        tell("`aiseeme stop`, until it has returned", time.monotonic() - since)
        asked = (run.folder / "stop.request").stat().st_mtime

        def stopped():
            return {ledger_of(federation, one) for one in federation.hospitals} == {("failed", "train", "STOPPED")}

        until(stopped, lambda: f"all sites stop computing\n{run.all_logs()}", 15)
        ends = [datetime.fromisoformat(one.ledger[-1]["time"]).timestamp() for one in federation.hospitals.values()]
        tell("`aiseeme stop`, until all sites have stopped computing", max(ends) - asked)
        assert max(ends) - asked < 10
        assert all(is_idle(federation, site) for site in federation.hospitals)
        assert watching.wait(30) == 1
        assert "stopped" in watching.stdout.read()
    assert (run.row.status, run.row.reason) == ("stopped", "stopped by the coordinator")
    assert not is_held(run.folder)

    said, code = resumed(federation, run)
    assert code == 0, said + run.all_logs()
    run.ends_with_the_same_bits()


def test_a_run_whose_quorum_is_gone_fails_with_the_reason_and_goes_on_when_the_sites_are_back(federation):
    with launched(federation, rejoin_s=5, round_deadline_s=60, round_retries=1) as (run, watching):
        run.wait_for("training")
        for site in ("beta", "gamma"):
            federation.hospitals[site].service.kill_tree()
        watch = Watch("a quorum that is gone, until the run has failed")
        assert watching.wait(300) == 1
        watch.stop()
        said = watching.stdout.read()
    assert run.row.status == "failed" and run.row.rounds_done == 1
    for text in (run.row.reason, " ".join(said.split())):
        assert "1 of 3 sites gave a valid reply and min_sites is 3" in text
        assert "beta: " in text and "gamma: " in text

    watch = Watch("a quorum that was gone, after its sites are started again")
    healed(federation)
    said, code = resumed(federation, run)
    assert code == 0, said + run.all_logs()
    watch.stop()
    run.ends_with_the_same_bits()


def test_a_run_whose_process_keeps_crashing_has_failed(federation):
    """In another project a job whose process had crashed was "training" for hours."""
    run, killed = begin(federation, **LONG), set()
    serving = psutil.Process(federation.server.process.pid)

    def killed_again() -> bool:
        for child in serving.children():
            with suppress(psutil.NoSuchProcess):
                if "server.coordinator" in child.cmdline() and child.pid not in killed:
                    child.kill()
                    killed.add(child.pid)
        return run.row.status == "failed"

    until(killed_again, "the run is given up", deadline_s=180)
    row = run.row
    assert len(killed) == 5
    assert row.reason == "its process ended 5 times in round 1: see coordinator.log"
    assert "its process ended unexpectedly (5 of 5)" in federation.server.says()


def test_a_revoked_site_is_shut_out_at_once_and_stops_computing(federation):
    """The last one: gamma does not come back."""
    gateway = federation.home / "logs" / "gateway.log"
    with launched(federation, **LONG, min_sites=2) as (run, watching):
        run.wait_for("training", "gamma", first=1)
        size = gateway.stat().st_size
        since = time.monotonic()
        ran(aiseeme("site", "revoke", "gamma", "--federation", federation.home))

        def refused():
            lines = gateway.read_text(errors="replace")[size:].splitlines()
            return any(" 403 " in line and 'certificate="SUCCESS CN=gamma"' in line for line in lines)

        until(refused, lambda: f"the gateway refuses it\n{run.all_logs()}", 30)
        tell("`aiseeme site revoke`, until the gateway has refused the site", time.monotonic() - since)
        stopped = lambda: ledger_of(federation, "gamma") == ("failed", "train", "STOPPED")  # noqa: E731
        until(stopped, lambda: f"gamma stops computing\n{run.all_logs()}", since + 30 - time.monotonic())
        tell("`aiseeme site revoke`, until the site has stopped computing", time.monotonic() - since)
        assert is_idle(federation, "gamma")
        assert watching.wait(300) == 0, watching.stdout.read()
        tell("`aiseeme site revoke`, until the others' run is done", time.monotonic() - since)
    assert run.counted() == {1: {"alpha", "beta"}}
    assert "2 of 3 sites" in federation.results(run.id)["reason"]
    gamma = federation.hospitals["gamma"]
    until(lambda: "it was revoked" in gamma.service.says(), lambda: f"the site is told\n{gamma.files()}", 120)
