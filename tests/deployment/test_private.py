"""Real sites with a privacy budget: charged before they train, again after they were killed, and never refunded."""

from __future__ import annotations

import json

import pytest

from aiseeme_models.privacy.accounting import epsilon
from client.ledger import Ledger
from client.privacy import BUDGET_FILE
from federation_configs.loading import load_config
from scripts.loopback import aiseeme_site, ran, until
from server.federation_home import FederationHome
from server.launching import launch
from server.registry import UNFINISHED
from tests.deployment.faults import Run, kill, processes
from tests.deployment.hospitals import federation_table, head, loopback, needs_nginx

pytestmark = [pytest.mark.deployment, needs_nginx, pytest.mark.timeout(600)]

PRIVATE = (
    head("private", "resnet18")
    + '[[curriculum.stage]]\ntask = "rotation"\nrounds = 3\nlocal_epochs = 6\nbatch_size = 8\n'
    + federation_table(min_sites=3, round_deadline_s=150, rejoin_s=150, round_retries=4)
    + "[holdout]\ntest = 0.0\nvalidation = 0.0\n[privacy]\nnoise_multiplier = 1.5\n"
)


def test_a_site_that_is_killed_while_it_trains_privately_is_charged_again_and_tells_the_whole(tmp_path):
    with loopback(tmp_path, PRIVATE, images=24) as federation:
        federation.start()
        beta = federation.hospitals["beta"]
        run = Run(federation, launch(FederationHome(federation.home), load_config(str(federation.config_file))))
        charged = lambda: [one["round"] for one in beta.ledger if one["kind"] == "spent"]  # noqa: E731
        until(
            lambda: 2 in charged() or run.row.status not in UNFINISHED,
            lambda: f"the second round is charged\n{run.all_logs()}",
            240,
        )
        kill(processes(federation, "runner"))
        row = run.wait_for_end()
        assert row.status == "done", f"{row.reason}\n{run.all_logs()}"

        assert charged() == [1, 2, 2, 3]
        results = {site["name"]: site for site in federation.results(run.id)["sites"]}
        for name, hospital in federation.hospitals.items():
            book = Ledger.in_home(hospital.home)
            spends = [one.spend for one in book.charges()]
            assert book.verify() == [] and len(spends) == (4 if name == "beta" else 3)
            assert results[name]["epsilon"] == pytest.approx(epsilon(spends, 1e-5).value)
            file = json.loads((hospital.home / BUDGET_FILE).read_text())
            assert sum(steps for _, _, steps in file["settings"]) == sum(one.steps for one in spends)
        assert results["beta"]["epsilon"] > results["alpha"]["epsilon"] * 1.01
        said = ran(aiseeme_site("budget", "--home", beta.home))
        assert f"spent: epsilon {results['beta']['epsilon']:.2f}" in said
