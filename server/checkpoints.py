"""A run's checkpoints: one weights file and one manifest per round, chained by their hashes.

``round-0007.safetensors`` holds the global model and the aggregation's state, ``round-0007.json`` says what it is. The
manifest is written last, and whole or not at all: a checkpoint exists once its manifest does. Each manifest names the
hash of the one before, so that an edited one is found out by its successor. A coordinator that has a signing key signs
every manifest (``round-0007.sig``, written before the manifest), which vouches for the newest one too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue, ValidationError

from aiseeme_models import __version__
from aiseeme_models.atomic_files import TEMPORARY_SUFFIX, Watch, replacing, unwatched
from aiseeme_models.errors import InputError, RunFailed
from server.checkpoint_manifest import CheckpointManifest, CountedSite, sha256_of
from server.signed_files import CHECKPOINT, distrust, signature_file, write_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Vector = npt.NDArray[np.float32]

MANIFEST_NAME = re.compile(r"round-(\d{4,9})\.json")
WEIGHTS_NAME = re.compile(r"round-(\d{4,9})\.safetensors")
SIGNATURE_NAME = re.compile(r"round-(\d{4,9})\.sig")
VECTOR = "vector"
OPTIMIZER = "optimizer."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back and verified: ``vector`` (P,) float32, ``optimizer_state`` named float32 vectors."""

    manifest: CheckpointManifest
    vector: Vector
    optimizer_state: dict[str, Vector] = field(default_factory=dict)


class CheckpointDamaged(Exception):
    """A checkpoint cannot be trusted; the text says which and why."""


class CheckpointStore:
    """The checkpoints of one run, in one folder.

    One process writes; any number may read. Manifests are kept for ever, weights of the last ``keep`` rounds and of
    the last round of every stage.

    Args:
        folder: made when it does not exist.
        keep: at least 2, so that there is one to go back to.
        signing_key: signs what is saved. Where there is one, a manifest that it did not sign is not trusted.
        watch: is told each step of a save just before it is taken.

    Attributes:
        warnings: what was skipped or could not be tidied up so far, for people.

    Raises:
        InputError: ``keep`` is below 2.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        signing_key: Ed25519PrivateKey | None = None,
        *,
        watch: Watch = unwatched,
    ) -> None:
        if keep < 2:
            raise InputError(f"{keep} checkpoints to keep: expected at least 2, so that there is one to go back to")
        self.folder = folder
        self.keep = keep
        self.warnings: list[str] = []
        self._signing_key = signing_key
        self._watch = watch

    def save(
        self,
        *,
        run: str,
        round: int,
        stage: int,
        round_in_stage: int,
        config_sha256: str,
        layout_sha256: str,
        vector: Vector,
        optimizer_state: Mapping[str, Vector],
        state: dict[str, JsonValue],
        sites: Mapping[str, CountedSite] | None = None,
    ) -> CheckpointManifest:
        """Write the checkpoint of a round, then drop what is no longer needed.

        Rounds after this one are dropped too: a run that saves an earlier round again had to go back behind them.

        A process that is killed in here, at any point, leaves either the whole checkpoint or the one before it.

        Raises:
            RunFailed: it could not be written, for instance because the disk is full; earlier ones are untouched.
            ValueError: ``state`` holds a number that is not finite.
        """
        weights = self._weights(round)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(f"round-*{TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)
            with replacing(weights, self._watch) as temporary:
                _write_tensors(temporary, vector, optimizer_state)
                digest = sha256_of(temporary)
            manifest = CheckpointManifest(
                run=run,
                round=round,
                stage=stage,
                round_in_stage=round_in_stage,
                config_sha256=config_sha256,
                layout_sha256=layout_sha256,
                weights_file=weights.name,
                weights_sha256=digest,
                parent_sha256=self._parent_of(round),
                state=state,
                sites=dict(sites or {}),
                version=__version__,
            )
            text = json.dumps(manifest.model_dump(mode="json"), allow_nan=False, indent=1, sort_keys=True) + "\n"
            self._sign(round, text.encode())
            with replacing(self.manifest_file(round), self._watch) as temporary:
                temporary.write_bytes(text.encode())
        except OSError as error:
            raise RunFailed(
                f"the checkpoint of round {round} could not be written to {self.folder}: {error.strerror or error}; "
                f"the ones before it are untouched, and the run can be resumed from there"
            ) from error
        self._prune(round)
        return manifest

    def rounds(self) -> list[int]:
        """The rounds that have a manifest, in order; none where there is no folder yet."""
        return sorted(_numbered(self.folder, MANIFEST_NAME))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be trusted, or none; damaged ones on the way are named in ``warnings``."""
        for round in reversed(self.rounds()):
            try:
                return self._read(round)
            except CheckpointDamaged as damage:
                self.warnings.append(f"skipped a damaged checkpoint: {damage}")
        return None

    def load(self, round: int) -> Checkpoint:
        """The checkpoint of one round.

        Raises:
            InputError: there is none, its weights are no longer kept, or it is damaged.
        """
        if not self.manifest_file(round).is_file():
            raise InputError(f"there is no checkpoint of round {round} in {self.folder}: there are {self.rounds()}")
        try:
            return self._read(round)
        except CheckpointDamaged as damage:
            raise InputError(str(damage)) from damage

    def manifest(self, round: int) -> tuple[CheckpointManifest, bytes]:
        """The manifest of one round and its bytes, whose hash is what its successor names.

        Raises:
            InputError: there is none or it is damaged.
        """
        try:
            raw = self._raw(round)
            return self._parse(round, raw), raw
        except CheckpointDamaged as damage:
            raise InputError(f"the manifest of round {round} in {self.folder}: {damage}") from None

    def manifest_file(self, round: int) -> Path:
        """Where the manifest of a round is."""
        return self.folder / f"round-{round:04d}.json"

    def verify(self) -> list[str]:
        """Walk the chain from the first round to the last: what is wrong with it, nothing if it is whole."""
        problems: list[str] = []
        rounds = self.rounds()
        kept = self._to_keep(rounds)
        before: CheckpointManifest | None = None
        parent: str | None = None
        for position, round in enumerate(rounds):
            if position and round != rounds[position - 1] + 1:
                problems.append(f"the manifests between round {rounds[position - 1]} and round {round} are missing")
            raw = b""
            try:
                raw = self._raw(round)
                manifest = self._parse(round, raw)
                if manifest.parent_sha256 != parent:
                    problems.append(f"round {round} does not follow the manifest before it: one of the two was changed")
                if before is not None:
                    problems += _breaks(before, manifest)
                before = manifest
                if round in kept or self._weights(round).exists():
                    self._weights_bytes(manifest)
            except CheckpointDamaged as damage:
                problems.append(str(damage))
            parent = hashlib.sha256(raw).hexdigest()
        return problems

    def leftovers(self) -> list[int]:
        """The rounds with weights or a signature but no manifest: what a kill in the middle of a save leaves."""
        found = {*_numbered(self.folder, WEIGHTS_NAME), *_numbered(self.folder, SIGNATURE_NAME)}
        return sorted(found - set(self.rounds()))

    def _weights(self, round: int) -> Path:
        return self.folder / f"round-{round:04d}.safetensors"

    def _sign(self, round: int, content: bytes) -> None:
        manifest = self.manifest_file(round)
        if self._signing_key is not None:
            write_signature(manifest, content, CHECKPOINT, self._signing_key, self._watch)
        else:  # of a manifest that is about to be replaced
            signature_file(manifest).unlink(missing_ok=True)

    def _parent_of(self, round: int) -> str | None:
        earlier = [number for number in self.rounds() if number < round]
        return hashlib.sha256(self.manifest_file(earlier[-1]).read_bytes()).hexdigest() if earlier else None

    def _raw(self, round: int) -> bytes:
        try:
            return self.manifest_file(round).read_bytes()
        except OSError as error:
            raise CheckpointDamaged(f"{self.manifest_file(round).name} cannot be read: {error.strerror}") from error

    def _parse(self, round: int, raw: bytes) -> CheckpointManifest:
        name = self.manifest_file(round).name
        try:
            manifest = CheckpointManifest.model_validate_json(raw)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, fault["loc"])) or "the file"
            raise CheckpointDamaged(f"{name} is no manifest: {where}: {fault['msg']}") from error
        if manifest.round != round:
            raise CheckpointDamaged(f"{name} speaks of round {manifest.round}")
        if manifest.weights_file != self._weights(round).name:
            raise CheckpointDamaged(f"{name} names a weights file that is not its own")
        return manifest

    def _weights_bytes(self, manifest: CheckpointManifest) -> bytes:
        file = self._weights(manifest.round)
        if file.is_symlink():
            raise CheckpointDamaged(f"{file.name} is a link: a checkpoint is a file of its own")
        try:
            raw = file.read_bytes()
        except FileNotFoundError as error:
            raise CheckpointDamaged(f"{file.name} is not there (older weights are not kept)") from error
        except OSError as error:
            raise CheckpointDamaged(f"{file.name} cannot be read: {error.strerror}") from error
        if hashlib.sha256(raw).hexdigest() != manifest.weights_sha256:
            raise CheckpointDamaged(f"{file.name} is not the file that its manifest was written for")
        return raw

    def _read(self, round: int) -> Checkpoint:
        raw = self._raw(round)
        if self._signing_key is not None:
            doubt = distrust(self.manifest_file(round), raw, CHECKPOINT, self._signing_key.public_key())
            if doubt is not None:
                raise CheckpointDamaged(doubt)
        manifest = self._parse(round, raw)
        tensors = _read_tensors(self._weights_bytes(manifest), self._weights(round).name)
        return Checkpoint(manifest, tensors.pop(VECTOR), {name[len(OPTIMIZER) :]: tensors[name] for name in tensors})

    def _to_keep(self, rounds: list[int]) -> set[int]:
        """The rounds whose weights stay: the last ``keep``, and the last of every stage."""
        kept = set(rounds[-self.keep :])
        return kept | {round for round in rounds[: -self.keep] if self._ends_stage(round)}

    def _stage_of(self, round: int) -> int | None:
        try:
            return self._parse(round, self._raw(round)).stage
        except CheckpointDamaged:
            return None

    def _prune(self, newest: int) -> None:
        """Remove weights that need not stay, and rounds after ``newest``, behind which the run went back."""
        self._watch("prune")
        rounds = [round for round in self.rounds() if round <= newest]
        on_disk = sorted(_numbered(self.folder, WEIGHTS_NAME))
        # Only the manifests beside weights are read, and there are few: a save must not get slower with every round.
        candidates = [round for round in on_disk if round in set(rounds[: -self.keep])]
        spare = [self._weights(round) for round in candidates if not self._ends_stage(round)]
        spare += [self.manifest_file(round) for round in self.rounds() if round > newest]
        spare += [self._weights(round) for round in on_disk if round > newest]
        signed = _numbered(self.folder, SIGNATURE_NAME)
        spare += [signature_file(self.manifest_file(round)) for round in signed if round > newest]
        for file in spare:
            try:
                file.unlink()
            except OSError as error:
                self.warnings.append(f"{file.name} is no longer needed but could not be removed: {error.strerror}")

    def _ends_stage(self, round: int) -> bool:
        """Whether the next round is of another stage, or this cannot be told."""
        stage = self._stage_of(round)
        return stage is None or stage != self._stage_of(round + 1)


def _write_tensors(path: Path, vector: Vector, optimizer_state: Mapping[str, Vector]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = {VECTOR: vector, **{OPTIMIZER + name: values for name, values in optimizer_state.items()}}
    for name, values in tensors.items():
        if values.dtype != np.float32 or values.ndim != 1:
            raise TypeError(f"{name}: a checkpoint holds flat float32 vectors, not {values.dtype} {values.shape}")
    try:
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, path)
    except SafetensorError as error:  # the library reports a full disk as an error of its own
        raise OSError(str(error)) from error


def _read_tensors(raw: bytes, name: str) -> dict[str, Vector]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(raw)
    except SafetensorError as error:
        raise CheckpointDamaged(f"{name} is no safetensors file: {error}") from error
    foreign = [key for key in tensors if key != VECTOR and not key.startswith(OPTIMIZER)]
    if VECTOR not in tensors or foreign or any(t.dtype != np.float32 or t.ndim != 1 for t in tensors.values()):
        raise CheckpointDamaged(f"{name} does not hold a model as flat float32 vectors")
    return {key: tensor if tensor.flags.writeable else tensor.copy() for key, tensor in tensors.items()}


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    """The numbers in the names of a folder's files that have the pattern's form and are written the usual way."""
    if not folder.is_dir():
        return []
    found = ((entry.name, pattern.fullmatch(entry.name)) for entry in folder.iterdir())
    return [int(match[1]) for name, match in found if match and name.startswith(f"round-{int(match[1]):04d}.")]


def _breaks(before: CheckpointManifest, after: CheckpointManifest) -> list[str]:
    """What two manifests in a row contradict each other in."""
    changed = [key for key in ("run", "config_sha256") if getattr(before, key) != getattr(after, key)]
    if after.stage < before.stage:
        changed.append("stage")
    return [f"round {after.round} has another {key} than round {before.round}" for key in changed]
