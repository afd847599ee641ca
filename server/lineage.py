"""``aiseeme verify``: from an exported file to its model, and from round to round back to round 0.

Every link names the hash of what came before, and the coordinator's signature vouches for each. What was found whole,
what was not looked at and what is broken are told apart; nothing here changes a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from aiseeme_models import __version__
from aiseeme_models.errors import InputError
from federation_configs.loading import config_sha256, load_config
from federation_configs.schema import FederationConfig
from federation_configs.signatures import public_hex, public_key
from server.checkpoint_manifest import CheckpointManifest, sha256_of
from server.checkpoints import CheckpointStore
from server.exporting.manifest import SUFFIX, manifest_of, read_export_manifest
from server.model_manifest import (
    HEAD_FILE,
    MANIFEST_FILE,
    MODEL_FOLDER,
    WEIGHTS_FILE,
    ModelManifest,
    is_trained_with,
    read_model_manifest,
)
from server.results import FILE, Results
from server.run_folder import CONFIG, FEDERATION_PLAN, existing_registry, is_held
from server.signed_files import CHECKPOINT, EXPORT, MODEL, distrust, read_signature

CHECKPOINTS = "checkpoints"
OWN_HEAD = "the last layer is one hospital's own, which is no part of the federation's lineage; its backbone is"


@dataclass
class Lineage:
    """What a walk found.

    Attributes:
        subject: what was verified.
        key: the key that every signature is held against, 64 hexadecimal digits; none where nothing is signed.
        pinned: whether the key was known before, and not only found beside what it is said to have signed.
        signed: whether everything that was walked is signed.
        verified: what is whole, in sentences.
        notes: what could not be looked at, and what a reader has to know.
        problems: what is broken; nothing if the lineage is whole.
    """

    subject: str
    key: str | None = None
    pinned: bool = False
    signed: bool = False
    verified: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing is broken."""
        return not self.problems


@dataclass
class _Walk:
    """One walk: collects what it meets, and holds every signature against one key."""

    found: Lineage
    key: Ed25519PublicKey | None
    demanded: bool
    missing: list[str] = field(default_factory=list)
    met: int = 0
    good: int = 0

    def signature(self, manifest: Path, content: bytes, purpose: str, what: str) -> None:
        """Hold a manifest's signature against the key; without a pinned one the first key that is met becomes it."""
        try:
            signature = read_signature(manifest)
        except InputError as error:
            self.met += 1
            self.found.problems.append(f"{what}: {error}")
            return
        if signature is None:
            self.missing.append(what)
            return
        self.met += 1
        if self.key is None:
            self.key = public_key(signature.key)
        doubt = distrust(manifest, content, purpose, self.key)
        if doubt is None:
            self.good += 1
        else:
            self.found.problems.append(f"{what}: {doubt}")

    def finish(self) -> Lineage:
        """Say by which key, or that nobody signed."""
        self.found.key = None if self.key is None else public_hex(self.key)
        self.found.signed = self.good > 0 and self.good == self.met and not self.missing
        if self.missing and (self.met or self.demanded):
            some = ", ".join(self.missing[:5]) + (f" and {len(self.missing) - 5} more" if len(self.missing) > 5 else "")
            self.found.problems.append(f"not signed: {some}")
        elif self.missing:
            self.found.notes.append(
                "NOT SIGNED: nobody vouches for this lineage; the hashes only show that its parts belong together"
            )
        if self.good:
            pinned = " (pinned)" if self.found.pinned else ""
            self.found.verified.append(f"{self.good} signatures by {self.found.key}{pinned}")
        if self.good and not self.found.pinned:
            self.found.notes.append(
                "the key is NOT PINNED: it was found beside what it signed, and whoever changed the one may have "
                "changed the other; compare it with the coordinator's and give --key"
            )
        return self.found


def verify(subject: str, home: Path, key: Ed25519PublicKey | None = None, *, demanded: bool = False) -> Lineage:
    """Verify a run, a model's folder, or an export.

    Args:
        subject: a run's id or its beginning, a run's or model's folder, an exported file or folder, or its manifest.
        home: the folder of all runs.
        key: the coordinator's public key, where it is known.
        demanded: whether a missing signature is a fault even where nothing at all is signed.

    Raises:
        InputError: it is none of these.
    """
    path = Path(subject)
    if path.exists():
        export = export_manifest(path)
        if export is not None:
            return verify_export(export, home, key, demanded=demanded)
        if (path / MANIFEST_FILE).is_file():
            return verify_model(path, key, demanded=demanded)
        if (path / CHECKPOINTS).is_dir():
            return verify_run(path.resolve(), key, demanded=demanded)
        if (path / MODEL_FOLDER / MANIFEST_FILE).is_file():
            return verify_model(path / MODEL_FOLDER, key, demanded=demanded)
        if path.is_file():
            raise InputError(f"{path}: there is no {manifest_of(path).name} beside it: it is no export, or was moved")
    row = existing_registry(home).get(subject)
    folder = home / row.id
    found = verify_run(folder, key, demanded=demanded)
    if row.status == "running" and folder.is_dir() and is_held(folder):
        found.notes.append("the run is being played now: what is written while it is read may look broken")
    return found


def verify_run(folder: Path, key: Ed25519PublicKey | None = None, *, demanded: bool = False) -> Lineage:
    """Walk a run from its final model, if it has one, back to round 0.

    Args:
        folder: the run's.
        key: the coordinator's public key, where it is known.
        demanded: whether a missing signature is a fault even where nothing at all is signed.
    """
    walk = _Walk(Lineage(f"run {folder.name}", pinned=key is not None), key, demanded)
    config = _config(folder, walk.found)
    configured = None if config is None else config_sha256(config)
    if (folder / MODEL_FOLDER).exists():
        configured = _model(folder / MODEL_FOLDER, walk, folder, config)
    else:
        walk.found.notes.append("the run has no final model: rounds that were taken off the end would not be missed")
    _chain(folder, walk, configured)
    return walk.finish()


def verify_model(folder: Path, key: Ed25519PublicKey | None = None, *, demanded: bool = False) -> Lineage:
    """Verify a model's folder; where it still stands in its run, that run is walked back to round 0."""
    run = folder.resolve().parent
    if folder.resolve().name == MODEL_FOLDER and (run / CHECKPOINTS).is_dir():
        return verify_run(run, key, demanded=demanded)
    walk = _Walk(Lineage(f"model {folder.name}", pinned=key is not None), key, demanded)
    _model(folder, walk, None, None)
    walk.found.notes.append("the run's checkpoints are not here: nothing before the model was looked at")
    return walk.finish()


def verify_export(
    manifest: Path, home: Path, key: Ed25519PublicKey | None = None, *, demanded: bool = False
) -> Lineage:
    """Verify an exported file or folder, then the model that it was made from, where that run is in ``home``.

    Raises:
        InputError: ``manifest`` is not an export's manifest.
    """
    export, raw = read_export_manifest(manifest)
    walk = _Walk(Lineage(f"export {manifest.name}", pinned=key is not None), key, demanded)
    walk.signature(manifest, raw, EXPORT, f"the export {manifest.name}")
    before = len(walk.found.problems)
    base = manifest.parent / export.folder if export.folder else manifest.parent
    for name, expected in export.files.items():
        _file(base / name, expected, name, walk.found)
    if export.folder is not None and base.is_dir():
        there = {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_symlink() or path.is_file()}
        walk.found.problems += [
            f"{export.folder}/{name}: no export wrote this file" for name in sorted(there - set(export.files))
        ]
    if len(walk.found.problems) == before:
        walk.found.verified.append(f"the export ({export.export_format}): {', '.join(export.files)}")
    run = home / export.facts.run
    model = run / MODEL_FOLDER
    if not (model / MANIFEST_FILE).is_file():
        walk.found.notes.append(f"run {export.facts.run} is not in {home}: nothing before the export was looked at")
        return walk.finish()
    if export.facts.own_head:
        walk.found.notes.append(OWN_HEAD)
        weights = model / WEIGHTS_FILE
        made_from = weights.is_file() and sha256_of(weights) == export.facts.model_sha256
    else:
        made_from = sha256_of(model / MANIFEST_FILE) == export.parent_sha256
    if not made_from:
        walk.found.problems.append(f"the export was not made from the model that run {run.name} has now")
    config = _config(run, walk.found)
    _chain(run, walk, _model(model, walk, run, config))
    return walk.finish()


def export_manifest(path: Path) -> Path | None:
    """The manifest of the export that ``path`` is, or is the manifest of; none if it is no export."""
    if path.name.endswith(SUFFIX):
        return path
    path = path.resolve() if path.name in ("", "..") else path
    beside = manifest_of(path) if path.name else None
    return beside if beside is not None and beside.is_file() else None


def _config(run: Path, found: Lineage) -> FederationConfig | None:
    try:
        return load_config(run / CONFIG)
    except (InputError, OSError) as error:
        found.problems.append(f"the configuration cannot be read: {error}")
        return None


def _file(path: Path, expected: str, what: str, found: Lineage) -> None:
    if path.is_symlink() or not path.is_file():
        found.problems.append(f"{what} is {'a link: it was not followed' if path.is_symlink() else 'not there'}")
        return
    try:
        digest = sha256_of(path)
    except OSError as error:
        found.problems.append(f"{what} cannot be read: {error.strerror}")
        return
    if digest != expected:
        found.problems.append(f"{what} is not the file that its manifest was written for")


def _model(folder: Path, walk: _Walk, run: Path | None, config: FederationConfig | None) -> str | None:
    """The model's manifest and weights, and what links them to the run's configuration and last checkpoint.

    Gives the digest of the configuration that the rounds must name; none where it is in doubt already.
    """
    found, before = walk.found, len(walk.found.problems)
    try:
        manifest, raw = read_model_manifest(folder)
    except InputError as error:
        found.problems.append(str(error))
        return None
    walk.signature(folder / MANIFEST_FILE, raw, MODEL, "the model")
    _file(folder / WEIGHTS_FILE, manifest.sha256, WEIGHTS_FILE, found)
    if manifest.own_head_round is not None:
        found.notes.append(OWN_HEAD)
    if manifest.head_sha256 is not None:
        _file(folder / HEAD_FILE, manifest.head_sha256, HEAD_FILE, found)
    if len(found.problems) == before:
        found.verified.append(f"the model: {manifest.backbone}, {manifest.norm} norm, sha256 {manifest.sha256}")
    if run is None:
        return None
    if manifest.run != run.name:
        found.problems.append(f"the model is that of run {manifest.run}, not of {run.name}")
    same = config is not None and is_trained_with(manifest, run / CONFIG)
    if config is not None and not same:
        found.problems.append(f"{CONFIG} is not the configuration that the model was trained with: it was changed")
    _results(run, manifest, found)
    _parent(run, manifest, config, found)
    return manifest.config_sha256 if same else None


def _results(run: Path, manifest: ModelManifest, found: Lineage) -> None:
    if not (run / FILE).is_file():
        return
    try:
        results = Results.load(run)
    except InputError as error:
        found.problems.append(str(error))
        return
    if (results.backbone_sha256, results.config_sha256) != (manifest.sha256, manifest.config_sha256):
        found.problems.append(f"{FILE} speaks of another model or configuration than the model's manifest")


def _parent(run: Path, manifest: ModelManifest, config: FederationConfig | None, found: Lineage) -> None:
    """The checkpoint that the model names, and whether its weights are in that checkpoint."""
    if manifest.format == 1:
        found.notes.append("the model's manifest is of an older format and names no checkpoint")
        return
    if manifest.parent_sha256 is None or manifest.round is None:
        found.problems.append("the model's manifest names no checkpoint")
        return
    store = CheckpointStore(run / CHECKPOINTS)
    try:
        last, raw = store.manifest(manifest.round)
    except InputError as error:
        found.problems.append(f"the checkpoint that the model came from: {error}")
        return
    if hashlib.sha256(raw).hexdigest() != manifest.parent_sha256:
        found.problems.append(
            f"the model was not made from the checkpoint of round {manifest.round} that is there: one was changed"
        )
    if last.layout_sha256 != manifest.layout_sha256:
        found.problems.append(f"the checkpoint of round {manifest.round} has another layout than the model names")
    if max(store.rounds(), default=None) != manifest.round:
        found.problems.append(f"there are rounds after round {manifest.round}, from which the model came")
    if config is not None and not found.problems:
        _same_weights(run, store, last, config, found)


def _same_weights(
    run: Path, store: CheckpointStore, last: CheckpointManifest, config: FederationConfig, found: Lineage
) -> None:
    """The last link is no hash: the model's tensors must be those inside the checkpoint's vector, bit for bit."""
    from server.global_model import backbone_of, load_backbone

    try:
        checkpoint = store.load(last.round)
        inside = backbone_of(config, last.stage, checkpoint.vector)
        outside = load_backbone(run / MODEL_FOLDER, config)
    except (InputError, ValueError, RuntimeError) as error:
        found.problems.append(f"the model cannot be held against the checkpoint of round {last.round}: {error}")
        return
    # Batch norm's statistics are in the checkpoint only where the coordinator averages them; else the probe made them.
    names = outside.state_dict() if config.model.norm == "batch" else dict(outside.named_parameters())
    first, second = inside.state_dict(), outside.state_dict()
    if all(first[name].equal(second[name]) for name in names if second[name].is_floating_point()):
        found.verified.append(f"the model's weights are those of the checkpoint of round {last.round}, bit for bit")
    else:
        found.problems.append(f"the model's weights are not those of the checkpoint of round {last.round}")


def _chain(run: Path, walk: _Walk, configured: str | None) -> None:
    """Every round's manifest, from round 0 on: its hash in the next one, its signature, its run and configuration."""
    found = walk.found
    store = CheckpointStore(run / CHECKPOINTS)
    rounds = store.rounds()
    if not rounds:
        found.problems.append(f"{run.name} has no checkpoints: there is no chain to walk")
        return
    if (run / FEDERATION_PLAN).exists():
        walk.demanded = True  # a coordinator signs every round that it has launched
    before = len(found.problems)
    if rounds[0] != 0:
        found.problems.append(f"the chain begins at round {rounds[0]}: the manifests before it are missing")
    found.problems += store.verify()
    unfinished = [f"round {round} has weights or a signature but no manifest" for round in store.leftovers()]
    if (run / MODEL_FOLDER).exists():
        found.problems += unfinished
    else:
        found.notes += [f"{what}: a save was interrupted, or the manifest removed" for what in unfinished]
    for round in rounds:
        try:
            manifest, raw = store.manifest(round)
        except InputError:
            continue  # store.verify() has said what is wrong with it
        walk.signature(store.manifest_file(round), raw, CHECKPOINT, f"round {round}")
        if manifest.run != run.name:
            found.problems.append(f"round {round} is of run {manifest.run}, not of {run.name}")
        if configured is not None and manifest.config_sha256 != configured:
            told = f"round {round} was trained with another configuration than {CONFIG} holds now"
            if (run / MODEL_FOLDER).exists() or manifest.version == __version__:
                found.problems.append(told)
            else:  # a key that a version adds changes the digest of what it resolves
                found.notes.append(f"{told}, or AISEEME {manifest.version or 'of old'} resolved it in another way")
    if len(found.problems) == before:
        found.verified.append(
            f"{len(rounds)} checkpoints, round {rounds[0]} to {rounds[-1]}, each naming the one before"
        )
