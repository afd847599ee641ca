"""Real hospitals are asked about a finished model, over TLS, and tell what simulated ones tell."""

from __future__ import annotations

import json

import pytest

from scripts.loopback import aiseeme, aiseeme_site, ran, until
from server.command import commanding
from server.federation_home import FederationHome
from tests.deployment.hospitals import loopback, needs_nginx, one_stage

pytestmark = [pytest.mark.deployment, needs_nginx]

TABLES = """
[holdout]
test = 0.4
validation = 0.4
"""
CONFIG = one_stage(
    "asked", batch_size=8, backbone="resnet-tiny", tables=TABLES, min_sites=3, round_deadline_s=120, rejoin_s=120
)
WAITS = "waiting: its sites answer another question"
TEST = ("--groups", "device=d0:device=d1", "--attributes", "label=stripes:label=blobs", "--untrained", 5)


def test_hospitals_compare_and_audit_a_launched_run_s_model(tmp_path):
    with loopback(tmp_path, CONFIG, images=240) as federation:
        home = federation.home
        for hospital in federation.hospitals.values():
            (hospital.home / "site.toml").write_text('[policy]\nlabel_columns = ["label", "device"]\n')
        federation.start()
        ran(aiseeme("launch", federation.config_file, "--federation", home))
        (run,) = [path.name for path in (home / "runs").iterdir() if path.is_dir()]
        data = [part for hospital in federation.hospitals.values() for part in ("--data", hospital.pictures)]

        command = ("compare", run, run, "--images", 64, "--federation", home, "--json")
        told = json.loads(ran(aiseeme(*command, "--save")))
        assert told[0]["images"] == dict.fromkeys(federation.hospitals, 64) and not told[0]["refused"]
        assert told == json.loads(ran(aiseeme(*command, *data)))
        assert (home / "runs" / run / "compare.json").exists()

        command = ("audit", "bias", run, *TEST, "--federation", home, "--json")
        told = json.loads(ran(aiseeme(*command)))
        assert len(told["tests"]) == 10 and set(told["images"]) == set(federation.hospitals)
        simulated = json.loads(ran(aiseeme(*command, *data)))
        assert told["tests"] == simulated["tests"] and told["images"] == simulated["images"]

        for hospital in federation.hospitals.values():
            ran(aiseeme_site("ledger", "verify", "--home", hospital.home))
            answered = [entry["what"] for entry in hospital.ledger if entry["kind"] == "answered"]
            assert answered.count("analyse") == 1 and answered.count("audit") == 1

        for command in (("compare", run, run), ("audit", "bias", run, *TEST)):
            refused = aiseeme(*command, "--federation", home, "--partition", "iid")
            assert refused.returncode == 2 and "--partition: the run's own hospitals work" in refused.stderr
        refused = aiseeme("audit", "bias", run, "--subgroups", "device", "--federation", home)
        assert refused.returncode == 2 and "give --data" in refused.stderr
        with commanding(FederationHome(home), "the test asks"):
            refused = aiseeme("compare", run, run, "--federation", home)
        assert refused.returncode == 2 and "its sites are at work" in refused.stderr

        federation.server.stop()
        refused = aiseeme("compare", run, run, "--federation", home)
        assert refused.returncode == 2 and "nobody serves this federation" in refused.stderr


def test_a_run_that_is_launched_during_a_question_waits_for_its_end(tmp_path):
    with loopback(tmp_path, CONFIG, images=120) as federation:
        federation.start()
        with commanding(FederationHome(federation.home), "the test asks"):
            stopped = federation.launch()
            until(lambda: WAITS in federation.log(stopped), "the run waits")
            ran(aiseeme("stop", stopped, "--federation", federation.home))
            assert federation.row(stopped)["status"] == "stopped"
            run = federation.launch()
            until(lambda: WAITS in federation.log(run), "the run waits")
        ended = federation.wait_for_end(run)
        assert ended["status"] == "done", federation.log(run)
