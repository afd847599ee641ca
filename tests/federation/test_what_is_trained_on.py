"""Labels are for evaluation only, and who is held out is never trained on."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
from PIL import Image

from aiseeme_models.images.splits import split_at
from client.scanning import scan
from client.site_home import SiteHome
from tests.conftest import tiny_config

CONFIG = tiny_config(curriculum={"stage": [{"task": "simclr", "rounds": 2, "batch_size": 4}]})


def test_labels_change_nothing_of_what_is_learned(federation):
    labelled = federation(CONFIG, where="labelled")
    mislabelled = federation(CONFIG, where="mislabelled")
    for index, site in enumerate(mislabelled.sites):
        rows = [replace(row, label=None if number % 2 else "other") for number, row in enumerate(site.rows)]
        mislabelled.sites[index] = replace(site, rows=rows)
    np.testing.assert_array_equal(labelled.play()[1], mislabelled.play()[1])


def test_images_of_held_out_patients_change_nothing_of_what_is_learned(federation, three_folders, tmp_path):
    before = federation(CONFIG, where="before")
    after = federation(CONFIG, where="after")
    altered = 0
    for index, data in enumerate(three_folders):
        copy = tmp_path / "altered" / data.name
        shutil.copytree(data, copy)
        for row in before.sites[index].rows:
            if split_at(row.point, test=0.25, validation=0.25) == "test":
                Image.new("RGB", (48, 48), (index, altered % 256, 7)).save(copy / "images" / row.file)
                altered += 1
        home = SiteHome(tmp_path / "other")
        scanned = scan(copy, home, CONFIG.images.pipeline)
        after.sites[index] = replace(after.sites[index], folder=scanned.root, rows=scanned.rows, store=home.store)
    assert altered > 5
    np.testing.assert_array_equal(before.play()[1], after.play()[1])


def test_nobody_is_on_two_sides(federation):
    sides: dict[str, set[str]] = {}
    for site in federation(CONFIG).sites:
        for split in ("train", "validation", "test"):
            for row in site.rows_of(split, CONFIG.holdout):
                sides.setdefault(row.group, set()).add(split)
    assert {len(splits) for splits in sides.values()} == {1}
    assert set.union(*sides.values()) == {"train", "validation", "test"}


def test_flower_phones_nobody_whichever_package_comes_first():
    import subprocess
    import sys

    for package in ("client.app", "server.local_grid", "federation_configs.records"):
        code = f"import {package}, os; from flwr.supercore.telemetry import FLWR_TELEMETRY_ENABLED as on; print(on)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
        assert done.stdout.strip() == "0", (package, done.stderr)
