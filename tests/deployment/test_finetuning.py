"""A backbone is fine-tuned by real hospitals over TLS to the bits, and the figures, that a simulation comes to."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aiseeme_models.downstream.head_file import read_own_head
from scripts.loopback import aiseeme, aiseeme_site, ran
from tests.deployment.hospitals import loopback, needs_nginx, one_stage

pytestmark = [pytest.mark.deployment, needs_nginx]

TABLES = """
[holdout]
test = 0.5
validation = 0.15

[downstream.pattern]
classes = { stripes = ["stripes"], blobs = ["blobs"] }
rounds = 3
batch_size = 8
ccl = { start = 0.5, increment = 0.5 }

[downstream.own]
classes = { stripes = ["stripes"], blobs = ["blobs"] }
head = "personal"
choose = "last"
rounds = 2
batch_size = 8
"""
CONFIG = one_stage(
    "tuned", batch_size=8, backbone="resnet-tiny", tables=TABLES, min_sites=3, round_deadline_s=120, rejoin_s=120
)


def test_real_hospitals_fine_tune_to_the_figures_of_a_simulation(tmp_path):
    with loopback(tmp_path, CONFIG, images=180) as federation:
        pretrained = federation.simulated()
        runs = tmp_path / "simulated"
        tune = ("--task", "pattern", "--json")
        expected = json.loads(ran(aiseeme("finetune", pretrained["run"], "--runs", runs, *tune)))
        assert expected["downstream"]["federated"]["sites"].keys() == {"alpha", "beta", "gamma"}

        for hospital in federation.hospitals.values():
            (hospital.home / "site.toml").write_text('[policy]\nlabel_columns = ["label"]\n')
        federation.start()
        home = federation.home / "runs"
        ran(aiseeme("launch", federation.config_file, "--federation", federation.home))
        (run,) = [path.name for path in home.iterdir() if path.is_dir()]
        tuned = json.loads(ran(aiseeme("finetune", run, "--federation", federation.home, *tune)))
        assert tuned["status"] == "done" and tuned["rounds_done"] == 3
        assert tuned["backbone_sha256"] == expected["backbone_sha256"] != pretrained["backbone_sha256"]
        assert tuned["downstream"]["federated"] == expected["downstream"]["federated"]
        assert tuned["downstream"]["pooled"] is None and expected["downstream"]["pooled"] is not None
        heads = [
            json.loads((folder / one["run"] / "model" / "model.json").read_text())["head_sha256"]
            for folder, one in ((runs, expected), (home, tuned))
        ]
        assert heads[0] == heads[1] is not None
        ran(aiseeme("verify", tuned["run"], "--federation", federation.home))

        for hospital in federation.hospitals.values():
            ran(aiseeme_site("ledger", "verify", "--home", hospital.home))
            answered = [entry["what"] for entry in hospital.ledger if entry["kind"] == "answered"]
            assert answered.count("assess") == 1 and answered.count("train") == 4

        own = ("--task", "own", "--json")
        simulated = json.loads(ran(aiseeme("finetune", pretrained["run"], "--runs", runs, *own)))
        personal = json.loads(ran(aiseeme("finetune", run, "--federation", federation.home, *own)))
        assert personal["downstream"]["federated"] == simulated["downstream"]["federated"]
        for name, hospital in federation.hospitals.items():
            file, joined = tmp_path / f"{name}.safetensors", tmp_path / f"classifier-{name}"
            ran(aiseeme_site("head", personal["run"], "--home", hospital.home, "--out", file))
            there = read_own_head(runs / simulated["run"] / "sites" / name / "own-head.safetensors")
            np.testing.assert_array_equal(read_own_head(file).values, there.values)
            ran(aiseeme("personal", home / personal["run"], "--head", file, "--out", joined))
            image = next(
                path for path in sorted(hospital.pictures.rglob("*")) if path.suffix in {".png", ".dcm", ".jpg"}
            )
            told = json.loads(ran(aiseeme("predict", joined, image, "--json")))
            assert set(told["images"][0]["probabilities"]) == {"stripes", "blobs"}
