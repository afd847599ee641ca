"""A hospital's machine is frozen, full, or has the wrong time: the others are not harmed, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from federation_configs.site_errors import SiteError
from scripts.loopback import AISEEME_SITE, ENVIRONMENT, aiseeme, aiseeme_site, ran, until
from server.federation_home import FederationHome
from server.launching import resume
from tests.deployment.faults import Watch, begin, configured, frozen, healed, processes
from tests.deployment.hospitals import loopback, needs_nginx

pytestmark = [pytest.mark.deployment, pytest.mark.slow, needs_nginx, pytest.mark.timeout(900)]

EVERYBODY = {"alpha", "beta", "gamma"}
WRONG_CLOCK = Path(__file__).parent / "wrong_clock.c"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The home of gamma is a disk of its own, where this machine lets us mount one."""
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as ended:
        mounted = ended.enter_context(small_disk(folder / "sites" / "gamma"))
        federation = ended.enter_context(loopback(folder, configured()))
        federation.start()
        yield federation, mounted


@pytest.fixture
def federation(shared):
    return healed(shared[0])


@contextmanager
def small_disk(folder):
    folder.mkdir(parents=True)
    asked = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=800m", "none", folder], capture_output=True, check=False
    )
    try:
        yield asked.returncode == 0
    finally:
        if asked.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def full(folder):
    """Nothing more fits on the disk of ``folder``."""
    filler = folder / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        piece = bytes(2**20)
        with pytest.raises(OSError, match="No space left"):
            while True:
                os.write(descriptor, piece)
        yield
    finally:
        os.close(descriptor)
        filler.unlink()


@pytest.fixture(scope="module")
def wrong_clock(tmp_path_factory):
    """A library that makes a process's clock wrong. (libfaketime 0.9.10 breaks Python's waiting.)"""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is needed to make a clock wrong")
    library = tmp_path_factory.mktemp("clock") / "wrong_clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, WRONG_CLOCK], check=True)
    return library


@pytest.fixture
def clock_of_gamma(federation, wrong_clock):
    """Start gamma's services with a clock that is off; it is right again at the end."""
    gamma = federation.hospitals["gamma"]

    def start(minutes):
        gamma.service.stop()
        faked = {"LD_PRELOAD": str(wrong_clock), "CLOCK_OFF_S": str(60 * minutes)}
        gamma.service.environment = {**ENVIRONMENT, **faked}
        gamma.service.start()
        return gamma

    yield start
    gamma.service.environment = ENVIRONMENT
    if gamma.service.process is not None:
        gamma.service.stop()


def checked(hospital):
    """What `aiseeme-site check` says under the site's clock, and its exit code."""
    command = [sys.executable, "-c", AISEEME_SITE, "check", "--home", str(hospital.home)]
    done = subprocess.run(command, env=hospital.service.environment, capture_output=True, text=True, check=False)
    return done.stdout, done.returncode


def test_a_frozen_site_that_is_needed_is_asked_again(federation):
    run = begin(federation, round_deadline_s=45)
    run.wait_for("training")
    with frozen([*processes(federation, "node"), *processes(federation, "runner")]):
        until(lambda: "asking the missing sites again" in run.says, lambda: f"beta is missed\n{run.all_logs()}", 150)
        assert "beta does not count: no answer before the deadline" in run.says
    watch = Watch("a site frozen past the deadline of round 2, after it goes on")
    run.wait_for_round(2)
    watch.stop()
    run.ends_with_the_same_bits()
    assert run.counted() == {1: EVERYBODY, 2: EVERYBODY}


def test_a_frozen_site_that_is_not_needed_is_gone_without_and_it_is_said(federation):
    run = begin(federation, round_deadline_s=45, min_sites=2)
    run.wait_for("training", first=1)
    with frozen([*processes(federation, "node"), *processes(federation, "runner")]):
        run.wait_for_round(1)
    row = run.wait_for_end()
    assert (row.status, row.sites_complete, row.sites_total) == ("done", 2, 3), run.all_logs()
    assert run.counted() == {1: EVERYBODY - {"beta"}, 2: EVERYBODY}
    results = federation.results(run.id)
    missed = {site["name"]: [(one["round"], one["code"]) for one in site["missed"]] for site in results["sites"]}
    assert missed == {"alpha": [], "beta": [(1, "no-answer")], "gamma": []}
    for said in (results["reason"], ran(aiseeme("show", run.id, "--runs", federation.home / "runs"))):
        assert "2 of 3 sites counted in every round: beta missed 1 of 2 rounds" in said


def test_a_full_disk_at_a_site(federation, shared):
    if not shared[1]:
        pytest.skip("mounting a small file system is not permitted here")
    gamma = federation.hospitals["gamma"]
    run = begin(federation, round_retries=1)
    run.wait_for("training", "gamma")
    with full(gamma.home):
        row = run.wait_for_end()
        assert (row.status, row.rounds_done) == ("failed", 1), run.all_logs()
        assert "gamma: the site's disk is full" in row.reason
        assert f"refused: {SiteError(1007).sentence}" in gamma.service.says()
        assert gamma.service.process.poll() is None
    watch, said = Watch("a full disk, after there is space again, by `aiseeme resume`"), len(federation.server.says())
    resume(FederationHome(federation.home), run.id)  # at once: its process may not have quite ended
    run.ends_with_the_same_bits()
    watch.stop()
    assert "unexpectedly" not in federation.server.says()[said:]
    ran(aiseeme_site("ledger", "verify", "--home", gamma.home))


def test_a_clock_that_is_behind_is_said_at_the_site_and_the_run_says_who_is_missing(federation, clock_of_gamma):
    gamma = clock_of_gamma(-10)
    until(lambda: "s behind the gateway's" in gamma.service.says(), lambda: f"it is said\n{gamma.files()}", 90)
    told = next(line for line in gamma.service.says().splitlines() if "behind the gateway's" in line)
    assert "not connected: clock: 60" in told or "not connected: clock: 59" in told

    said, code = checked(gamma)
    bad = [line for line in said.splitlines() if line.startswith("BAD")]
    assert code == 1 and any("clock" in line and "behind the gateway's" in line for line in bad), said

    run = begin(federation, rejoin_s=10, round_retries=0)
    row = run.wait_for_end()
    assert row.status == "failed"
    assert "2 of 3 sites" in row.reason and "gamma: it is not connected" in row.reason, row.reason

    gamma.service.stop()
    gamma.service.environment = ENVIRONMENT
    watch = Watch("a clock 10 minutes behind, after it is right again, by `aiseeme resume`")
    healed(federation)
    resume(FederationHome(federation.home), run.id)
    run.ends_with_the_same_bits()
    watch.stop()


def test_a_clock_that_is_ahead_is_said_too(clock_of_gamma):
    gamma = clock_of_gamma(+10)
    until(lambda: "s ahead of the gateway's" in gamma.service.says(), lambda: f"it is said\n{gamma.files()}", 90)
    said, code = checked(gamma)
    bad = [line for line in said.splitlines() if line.startswith("BAD")]
    assert code == 1 and any("clock" in line and "ahead of the gateway's" in line for line in bad), said
