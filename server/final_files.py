"""What a run leaves behind when it ends, well or badly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiseeme_models import __version__
from aiseeme_models.downstream.classification import ClassificationOptions
from federation_configs.loading import config_sha256
from federation_configs.schema import FederationConfig
from server.checkpoints import CheckpointStore
from server.global_model import NEAR_CHANCE, save_head, save_weights, task_of
from server.metrics_log import FILE as METRICS
from server.metrics_log import read_lines, speeds
from server.model_manifest import MANIFEST_FILE, MODEL_FOLDER, ModelManifest
from server.probing import ProbeOutcome
from server.report import write_model_card, write_report
from server.results import Downstream, FederatedTest, Results, Seconds, SiteResult, StageResult
from server.run_folder import CONFIG
from server.run_state import RunState, StageState
from server.signed_files import MODEL, write_signed
from server.site_privacy import SitePrivacy

if TYPE_CHECKING:
    import numpy as np
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from numpy.typing import NDArray

    from aiseeme_models.backbones import Backbone


@dataclass(frozen=True)
class FinalFiles:
    """Writes the final files of one run.

    Attributes:
        config: the federation.
        folder: the run's folder.
        classes: class counts by site, where the images are labelled.
        phantom: whether the images are phantoms.
        initial: what the run began with, in words; None: with a fresh backbone.
        signing_key: signs the model's manifest; a researcher's simulation has none.
    """

    config: FederationConfig
    folder: Path
    classes: dict[str, dict[str, int]]
    phantom: bool = False
    initial: str | None = None
    signing_key: Ed25519PrivateKey | None = field(default=None, repr=False)

    def done(self, state: RunState, backbone: Backbone, probe: ProbeOutcome, seconds: float) -> Results:
        """Write model, results, model card and report of a finished run.

        Args:
            state: the last checkpoint's.
            backbone: the pretrained one.
            probe: its probe.
            seconds: wall time, of this process and of the rounds that others played before it.
        """
        digest = save_weights(self.folder / MODEL_FOLDER, backbone)
        self._vouch(state, digest)
        results = self._results(state, seconds).model_copy(
            update={
                "backbone_sha256": digest,
                "probe": probe.probe,
                "probe_note": probe.note,
                "baselines": probe.baselines,
                "reason": _participation(state),
            }
        )
        results.save(self.folder)
        write_model_card(self.folder)
        write_report(self.folder)
        return results

    def classified(
        self,
        state: RunState,
        vector: NDArray[np.float32],
        assessed: Downstream | str | None,
        tested: FederatedTest | None,
        seconds: float,
    ) -> Results:
        """Write model, results, model card and report of a finished run that trained a classifier.

        Args:
            state: the last checkpoint's.
            vector: ``(P,)`` float32, the last stage's.
            assessed: how well it does on images that are here, or why that is not known; None: none are.
            tested: what the sites told of it.
            seconds: as in `done`.
        """
        options = self.config.curriculum.stage[-1].options
        assert isinstance(options, ClassificationOptions)
        task = task_of(self.config, 0, vector)
        digest = save_weights(self.folder / MODEL_FOLDER, task.backbone)
        if options.head == "personal":  # the sites have the classifiers; what is here is the backbone
            self._vouch(state, digest)
        else:
            head = save_head(self.folder / MODEL_FOLDER, task.head)
            pooled = assessed.pooled if isinstance(assessed, Downstream) else None
            known_at = None if pooled is None or pooled.calibration is None else pooled.calibration.temperature
            self._vouch(state, digest, head_sha256=head, classes=options.names, temperature=known_at)
        known = Downstream(mode=options.mode, head=options.head, classes=list(options.names), labels=options.labels)
        note = assessed if isinstance(assessed, str) else None
        if isinstance(assessed, Downstream):
            known = assessed
        elif tested is None and note is None:
            note = "no site told how the classifier does on its test patients"
        results = self._results(state, seconds).model_copy(
            update={
                "backbone_sha256": digest,
                "reason": _participation(state),
                "probe_note": note,
                "downstream": known.model_copy(update={"federated": tested}),
            }
        )
        results.save(self.folder)
        write_model_card(self.folder)
        write_report(self.folder)
        return results

    def failed(self, reason: str, seconds: float) -> Results:
        """Write results and report of a run that failed; its checkpoints stay as they are."""
        checkpoint = self._checkpoints().latest()
        if checkpoint is not None:
            state = RunState.model_validate(checkpoint.manifest.state)
        else:
            state = RunState(stages=[StageState() for _ in self.config.curriculum.stage], sites={})
        results = self._results(state, seconds).model_copy(update={"status": "failed", "reason": reason})
        results.save(self.folder)
        write_report(self.folder)
        return results

    def _checkpoints(self) -> CheckpointStore:
        keep = self.config.federation.keep_checkpoints
        return CheckpointStore(self.folder / "checkpoints", keep, self.signing_key)

    def _vouch(self, state: RunState, weights_sha256: str, **of_classifier: Any) -> None:
        """Write the model's manifest, which names the last checkpoint's, signed where there is a key."""
        last, raw = self._checkpoints().manifest(state.round)
        manifest = ModelManifest(
            run=self.folder.name,
            backbone=self.config.model.backbone,
            norm=self.config.model.norm,
            images=self.config.images.model_dump(mode="json", exclude_none=True),
            config_sha256=config_sha256(self.config),
            sha256=weights_sha256,
            **of_classifier,
            version=__version__,
            round=last.round,
            parent_sha256=hashlib.sha256(raw).hexdigest(),
            config_file_sha256=hashlib.sha256((self.folder / CONFIG).read_bytes()).hexdigest(),
            layout_sha256=last.layout_sha256,
            sites={name: site.images for name, site in state.sites.items()},
        )
        write_signed(self.folder / MODEL_FOLDER / MANIFEST_FILE, manifest.to_bytes(), MODEL, self.signing_key)

    def _results(self, state: RunState, seconds: float) -> Results:
        options = self.config.curriculum.stage
        speed = speeds(read_lines(self.folder / METRICS)[0])
        return Results(
            run=self.folder.name,
            name=self.config.name,
            status="done",
            reason="",
            version=__version__,
            seed=self.config.seed,
            config_sha256=config_sha256(self.config),
            backbone_sha256=None,
            rounds_done=state.round,
            rounds_total=self.config.rounds,
            stages=[
                _stage(stage.title, stage.rounds, record) for stage, record in zip(options, state.stages, strict=True)
            ],
            sites=[
                SiteResult(
                    name=name,
                    images=site.images,
                    rejected=site.rejected,
                    rounds_answered=site.answered,
                    missed=site.missed,
                    classes=self.classes.get(name) or None,
                    epsilon=site.epsilon,
                    images_per_s=speed.get(name),
                )
                for name, site in state.sites.items()
            ],
            seconds=Seconds(
                total=max(seconds, state.rounds_s),
                training=state.training_s,
                overhead=state.rounds_s - state.training_s,
            ),
            weights_bytes=state.weights_bytes or None,
            phantom=self.phantom,
            initial=self.initial,
            site_epsilon=None
            if self.config.site_privacy is None
            else SitePrivacy(self.config, secret=False).spent(state.round),
            site_delta=None if self.config.site_privacy is None else self.config.site_privacy.delta,
            delta=None if self.config.privacy is None else self.config.privacy.delta,
        )


def _stage(task: str, rounds: int, record: StageState) -> StageResult:
    last = record.losses[-1] if record.losses else None
    near = last is not None and record.chance_loss is not None and last > NEAR_CHANCE * record.chance_loss
    return StageResult(
        task=task,
        rounds=rounds,
        rounds_done=record.rounds_done,
        stopped_by=record.stopped_by,
        loss_first=record.losses[0] if record.losses else None,
        loss_last=last,
        heldout_loss=record.heldout[-1] if record.heldout else None,
        chance_loss=record.chance_loss,
        near_chance=near,
        found=record.found,
        best_round=record.best_round,
    )


def _participation(state: RunState) -> str:
    """Success on a subset is never plain green: who was missing, in one line; empty if nobody was."""
    lacking = {name: len(site.missed) for name, site in state.sites.items() if site.missed}
    if not lacking:
        return ""
    complete = len(state.sites) - len(lacking)
    missing = ", ".join(f"{name} missed {count} of {state.round} rounds" for name, count in sorted(lacking.items()))
    return f"{complete} of {len(state.sites)} sites counted in every round: {missing}"
