"""Real processes, real TLS, and the same backbone as in a simulation, to the bit."""

from __future__ import annotations

import pytest

from scripts.loopback import aiseeme, aiseeme_site, ran, until
from tests.deployment.hospitals import loopback, needs_nginx

pytestmark = [pytest.mark.deployment, needs_nginx]


def test_a_real_federation_trains_the_backbone_that_a_simulation_trains(tmp_path):
    with loopback(tmp_path) as federation:
        expected = federation.simulated()
        federation.start()
        for hospital in federation.hospitals.values():
            looked = aiseeme_site("check", "--home", hospital.home)
            assert looked.returncode == 0, looked.stdout + looked.stderr

        done = aiseeme("launch", federation.config_file, "--federation", federation.home)
        assert done.returncode == 0, done.stdout + done.stderr + federation.server.says()
        assert "round 4/4" in done.stdout

        (run,) = [path.name for path in (federation.home / "runs").iterdir() if path.is_dir()]
        results = federation.results(run)
        assert results["status"] == "done"
        assert results["backbone_sha256"] == expected["backbone_sha256"]
        ran(aiseeme("verify", run, "--runs", federation.home / "runs"))
        kept = federation.home / "superlink.sqlite.objects"  # nothing of what the sites sent stays at the coordinator
        until(lambda: not list(kept.iterdir()), "the SuperLink forgets what travelled")

        for hospital in federation.hospitals.values():
            ran(aiseeme_site("ledger", "verify", "--home", hospital.home))
            answered = [entry for entry in hospital.ledger if entry["kind"] == "answered"]
            assert sum(entry["what"] == "train" for entry in answered) == 4
            assert hospital.service.stop() == 0
        assert federation.server.stop() == 0
