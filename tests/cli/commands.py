"""How tests call the command lines."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from server.cli import main

SMALL = """
name = "small"
seed = 5
[images]
preset = "dermoscopy"
size = 48
[model]
backbone = "resnet-small"
[[curriculum.stage]]
task = "relative-location"
rounds = 1
batch_size = 4
[[curriculum.stage]]
task = "moco"
rounds = 2
batch_size = 4
options = { queue = 16 }
[federation]
min_sites = 2
[probe]
k = 50
"""

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def aiseeme(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``aiseeme`` to its end."""
    return _run("from server.cli import main; main()", arguments)


def aiseeme_site(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``aiseeme-site`` to its end."""
    return _run("from client.cli import main; main()", arguments)


def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and words of ``aiseeme``, in this process."""
    monkeypatch.setattr("sys.argv", ["aiseeme", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return int(ended.value.code or 0), " ".join((said.out + said.err).split())


def start_aiseeme(*arguments: object) -> subprocess.Popen[str]:
    """Start ``aiseeme`` in a process of its own; the caller ends it."""
    command = [sys.executable, "-c", "from server.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def site_options(folders: Sequence[Path]) -> list[object]:
    """One ``--data`` per folder."""
    return [part for folder in folders for part in ("--data", folder)]


def _run(code: str, arguments: Sequence[object]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=250)
