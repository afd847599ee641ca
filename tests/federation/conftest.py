"""A site behind its gate, and what it did although it should not have."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from client import rounds
from tests.conftest import InProcess
from tests.federation.gated_site import CONFIG, TYPES, Asked


@pytest.fixture
def asked(federation: Callable[..., InProcess]) -> Asked:
    return Asked(federation(CONFIG).sites[0])


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was worked on although it should not have been."""
    done: list[str] = []
    for kind in TYPES:
        monkeypatch.setattr(rounds, kind, lambda *_, kind=kind: done.append(kind))
    monkeypatch.setattr(rounds, "expected_size", lambda *_: done.append("built a model"))
    return done
