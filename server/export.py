"""``aiseeme export``: a finished run's model written for other software, with a manifest that names it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models import __version__
from aiseeme_models.atomic_files import flush_folder, write_atomically
from aiseeme_models.errors import InputError
from federation_configs.downstream import learns_labels
from server.exporting import Exportable, export_formats
from server.exporting.facts import ExportFacts, Preprocessing
from server.exporting.manifest import ExportManifest, manifest_of, read_export_manifest
from server.global_model import load_classifier
from server.model_manifest import MANIFEST_FILE, read_model_card
from server.model_reference import find_model
from server.signed_files import EXPORT, MODEL, is_vouched_for, signature_file, write_signed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from server.coordinator_key import OwnKey

EXPORTS, FILE_NAME, FOLDER_NAME = "exports", "backbone", "monai-bundle"


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        path: the file or folder.
        manifest: of it; it is beside it.
        signed: whether the coordinator's signature is beside that.
    """

    path: Path
    manifest: ExportManifest
    signed: bool


def export_run(
    reference: str,
    format_name: str,
    *,
    home: Path,
    out: Path | None = None,
    key: OwnKey | None = None,
    force: bool = False,
) -> Exported:
    """Write a run's model in one format: its backbone, or the whole classifier.

    Args:
        reference: a run's id or its beginning, or the folder of a run: what is exported of that is not signed.
        format_name: see `export_formats`.
        home: the folder of all runs.
        out: file or folder to write (default: ``exports/`` in the run's folder).
        key: signs the manifest where it signed the model. A key that was named must have signed it.
        force: replace a file, or a folder that an earlier export left.

    Raises:
        InputError: no such run or format, no whole model, a model that others signed, or something is there.
        RunFailed: what was made does not compute what the backbone computes; nothing was written.
        OSError: it cannot be written.
    """
    made = export_formats[format_name]
    found = find_model(reference, home)
    model, config, backbone = found.manifest, found.config, found.backbone
    usual = found.folder.parent / EXPORTS / ((FILE_NAME + made.suffix) if made.suffix else FOLDER_NAME)
    target = out or usual
    if target.name in ("", ".."):  # "." and the like have a name, too
        target = target.resolve()
    _make_way(target, is_folder=not made.suffix, force=force)
    raw, own = found.raw, model.own_head_round is not None
    signing = _vouched(found.folder, raw, key)
    if not found.listed:  # its card, which nobody has signed, would come under the signature
        signing = None
    network = backbone if model.head_sha256 is None else load_classifier(found.folder, backbone)
    facts = ExportFacts(
        run=found.run,
        name=config.name,
        backbone=config.model.backbone,
        norm=config.model.norm,
        feature_dim=backbone.feature_dim,
        classes=model.classes,
        learns_labels=learns_labels(config),
        temperature=model.temperature,
        own_head=own,
        **({"output": "probabilities: (B, classes) float32"} if model.classes else {}),
        model_sha256=model.sha256,
        config_sha256=model.config_sha256,
        version=__version__,
        preprocessing=Preprocessing.of(config.images),
    )
    rendered = made.render(Exportable(network.eval().requires_grad_(False), facts, read_model_card(found.folder)))
    files = {target.name: rendered} if isinstance(rendered, bytes) else rendered
    manifest = ExportManifest(
        export_format=format_name,
        files={path: hashlib.sha256(content).hexdigest() for path, content in sorted(files.items())},
        folder=None if made.suffix else target.name,
        parent_sha256=hashlib.sha256(raw).hexdigest(),
        facts=facts,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(rendered, bytes):
        write_atomically(target, rendered, private=own)
    else:
        _write_folder(target, rendered, private=own)
    write_signed(manifest_of(target), manifest.to_bytes(), EXPORT, signing)
    return Exported(target, manifest, signed=signing is not None)


def _vouched(folder: Path, raw: bytes, key: OwnKey | None) -> Ed25519PrivateKey | None:
    """The key that may sign exports of a model: the one that signed the model. None where nobody did."""
    public = None if key is None else key.key.public_key()
    demanded = key is not None and key.named
    signed = is_vouched_for(folder / MANIFEST_FILE, raw, MODEL, public, demanded=demanded)
    return key.key if key is not None and signed else None


def _make_way(target: Path, *, is_folder: bool, force: bool) -> None:
    """Refuse to write over what is there unless told to, and over a folder that no export left in any case."""
    if not target.name:
        raise InputError(f"--out {target}: a name for what is written was expected")
    there = [path for path in (target, manifest_of(target)) if path.exists() or path.is_symlink()]
    if not there:
        return
    if target.is_symlink():
        raise InputError(f"--out {target}: it is a link; name the place itself")
    if target.is_dir() != is_folder and target.exists():
        kind = "a folder" if is_folder else "a file"
        raise InputError(f"--out {target}: this format writes {kind}, and there is something else of that name")
    if not force:
        raise InputError(f"{there[0]}: it is there already; --force replaces it, --out names another place")
    if is_folder and target.exists():
        mine, _ = read_export_manifest(manifest_of(target))
        found = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
        if mine.folder != target.name or not found <= set(mine.files):
            raise InputError(f"{target}: it holds files that no export wrote, so --force does not replace it")


def _write_folder(target: Path, files: Mapping[str, bytes], *, private: bool) -> None:
    """The whole folder or nothing: it is written beside its place and then put there."""
    draft, old = (target.with_name(f".{target.name}.{state}") for state in ("new", "old"))
    for leftover in (draft, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        draft.mkdir(mode=0o700 if private else 0o777)
        for path, content in files.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(draft / path, content)
        if target.exists():
            # Its manifest goes first: a folder that is half replaced must not look like the export it was.
            signature_file(manifest_of(target)).unlink(missing_ok=True)
            manifest_of(target).unlink(missing_ok=True)
            target.rename(old)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    flush_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
