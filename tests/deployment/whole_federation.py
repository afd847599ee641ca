"""Everything that a small federation does, by its command lines, from nothing to an exported model: to be watched.

Run by ``test_egress.py`` in a process of its own: ``python -c "...main()" FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.loopback import aiseeme, aiseeme_site, ran
from tests.deployment.hospitals import HOSPITALS, loopback, one_stage

CONFIG = one_stage("watched", min_sites=3, round_deadline_s=200, rejoin_s=200)


def main() -> None:
    """Play it in the folder that is the only argument."""
    folder = Path(sys.argv[1])
    ran(aiseeme_site("phantom", folder / "phantoms", "--sites", 1, "--images", 4))
    with loopback(folder, CONFIG) as federation:
        of = ("--federation", federation.home)
        ran(aiseeme("config", "check", federation.config_file))
        ran(aiseeme("doctor", *of))
        federation.start()
        first = federation.hospitals[HOSPITALS[0]]
        for hospital in federation.hospitals.values():
            ran(aiseeme_site("check", "--home", hospital.home))
        ran(aiseeme("launch", federation.config_file, *of))
        (run,) = [path.name for path in (federation.home / "runs").iterdir() if path.is_dir()]
        ran(aiseeme("show", run, "--runs", federation.home / "runs"))
        ran(aiseeme("models", *of))
        ran(aiseeme("verify", run, *of))
        ran(aiseeme("export", run, "--format", "safetensors", *of))
        ran(aiseeme("export", run, "--format", "onnx", *of))
        ran(aiseeme("evaluate", run, "--data", first.pictures, "--runs", federation.home / "runs"))
        ran(aiseeme_site("ledger", "verify", "--home", first.home))
        ran(aiseeme("site", "revoke", HOSPITALS[2], *of))
        federation.simulated()
        for hospital in federation.hospitals.values():
            hospital.service.stop()
        federation.server.stop()
    print("all of it was done")  # noqa: T201
