from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import called
from tests.server.classifier_runs import classifiers


@pytest.fixture(scope="session")
def classifier_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, see `classifiers`; no test changes it."""
    home = tmp_path_factory.mktemp("classifiers") / "runs"
    classifiers(home)
    return home


@pytest.fixture
def call(
    classifier_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Exit code and words of ``aiseeme predict``, where no federation of the person who runs the tests is found."""
    monkeypatch.delenv("AISEEME_HOME", raising=False)
    monkeypatch.delenv("AISEEME_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: called(monkeypatch, capsys, "predict", *arguments, "--runs", classifier_home)


@pytest.fixture
def told(call: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Exit code and JSON of it."""

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        code, words = call(*arguments, "--json")
        return code, json.loads(words)

    return run
