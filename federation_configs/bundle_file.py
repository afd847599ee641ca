"""The constant Flower bundle: built once from ``bundle/``, shipped as bytes, known by its hash.

Flower sends an app bundle to every site and would run what is in it. Ours never changes and is never run: a site
compares its hash with those it approved and runs its own installed code.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

BUNDLE_SHA256 = "c3b30e53990959c5bcf334b8ef4d59f8aeaff0359f5e21fc4584643cb0f1bc02"


def bundle_bytes() -> bytes:
    """The bundle that the coordinator submits with every run.

    Raises:
        RuntimeError: the installed file is not the one that this version was released with.
    """
    content = files("federation_configs").joinpath("aiseeme.fab").read_bytes()
    if hashlib.sha256(content).hexdigest() != BUNDLE_SHA256:
        raise RuntimeError("the installed aiseeme.fab is not the one of this version: install AISEEME again")
    return content
