"""The bundle is constant: what is shipped is what its source makes, and nothing else passes for it."""

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from federation_configs import bundle_file
from federation_configs.bundle_file import BUNDLE_SHA256, bundle_bytes


def test_the_shipped_bytes_are_what_the_shipped_source_makes() -> None:
    source = Path(str(files("federation_configs").joinpath("bundle")))
    assert build_fab_from_disk(source) == bundle_bytes()


def test_the_shipped_bytes_have_the_hash_that_sites_approve() -> None:
    assert hashlib.sha256(bundle_bytes()).hexdigest() == BUNDLE_SHA256


def test_a_bundle_that_was_exchanged_in_the_installation_is_not_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_file, "BUNDLE_SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="install AISEEME again"):
        bundle_bytes()
