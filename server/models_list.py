"""``aiseeme models``: the final models of finished runs, and who vouches for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from aiseeme_models.errors import InputError
from federation_configs.signatures import public_hex
from server.model_manifest import MANIFEST_FILE, MODEL_FOLDER, read_model_manifest
from server.results import Results
from server.run_folder import existing_registry
from server.signed_files import MODEL, read_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from server.registry import RunRow


class ListedModel(BaseModel):
    """One finished run's model.

    Attributes:
        rounds: that were done.
        sites: how many counted in every round, of how many.
        signed: ``signed``, ``not signed``, ``another key`` than the pinned one, or ``broken``.
        key: the key that is said to have signed.
        linear: balanced accuracy of the linear probe, where there was one.
        knn: of the k-NN probe.
        problem: why the model cannot be read; empty if it can.
    """

    run: str
    name: str
    backbone: str = ""
    norm: str = ""
    rounds: int
    sites: str
    signed: str = "not signed"
    key: str | None = None
    linear: float | None = None
    knn: float | None = None
    sha256: str | None = None
    folder: str
    problem: str = ""


def list_models(home: Path, key: Ed25519PublicKey | None = None) -> list[ListedModel]:
    """The models of all finished runs, newest first.

    Args:
        home: the folder of all runs.
        key: the coordinator's public key, where it is known: signatures by others are said to be.
    """
    if not (home / "registry.sqlite").exists():
        return []
    return [_listed(home, row, key) for row in existing_registry(home).list() if row.status == "done"]


def _listed(home: Path, row: RunRow, key: Ed25519PublicKey | None) -> ListedModel:
    folder = home / row.id / MODEL_FOLDER
    sites = f"{row.sites_complete}/{row.sites_total}"
    listed = ListedModel(run=row.id, name=row.name, rounds=row.rounds_done, sites=sites, folder=str(folder.resolve()))
    try:
        manifest, raw = read_model_manifest(folder)
        model = {"backbone": manifest.backbone, "norm": manifest.norm, "sha256": manifest.sha256}
        signed = _signed(folder / MANIFEST_FILE, raw, key)
        results = Results.load(home / row.id)
    except InputError as error:
        return listed.model_copy(update={"problem": str(error)})
    probe = results.probe
    figures = {} if probe is None else {"linear": probe.linear.balanced_accuracy, "knn": probe.knn.balanced_accuracy}
    return listed.model_copy(update=model | signed | figures)


def _signed(manifest: Path, raw: bytes, key: Ed25519PublicKey | None) -> dict[str, str]:
    try:
        signature = read_signature(manifest)
    except InputError:
        return {"signed": "broken"}
    if signature is None:
        return {}
    if not signature.vouches(raw, MODEL):
        return {"signed": "broken", "key": signature.key}
    ours = key is None or signature.key == public_hex(key)
    return {"signed": "signed" if ours else "another key", "key": signature.key}
