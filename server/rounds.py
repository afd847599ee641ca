"""The round loop: quorum, deadlines, checked replies, a checkpoint each round, and resume to the same bits."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.errors import RunFailed
from federation_configs.downstream import learns_labels
from federation_configs.loading import config_sha256
from federation_configs.records import Enclosure
from federation_configs.schema import FederationConfig
from federation_configs.transfer import outgoing, restored
from federation_configs.wire import (
    AssessRequest,
    EvaluateRequest,
    ScoreRequest,
    TeachRequest,
    TrainReply,
    TrainRequest,
)
from server.aggregation import Aggregation
from server.best_round import BestRounds
from server.checkpoint_manifest import CountedSite
from server.checkpoints import CheckpointStore
from server.classes import admitted_classes, count_classes, note_difficulties, question_of_classes
from server.collapse import collapse_in, ways_out
from server.federated_test import test_at_sites
from server.folding import aggregation_for, folded, forget_what_was_wrong
from server.global_model import StageModel, start_of_stage
from server.heldout import heldout_at_sites, score_at_sites
from server.metrics_log import MetricsLog
from server.observer import Observer, Silent
from server.questions import Questions
from server.quorum import Quorum
from server.replies import (
    NO_ANSWER,
    Refused,
)
from server.request_signing import RequestSigner
from server.roster import Owners, Roster
from server.round_lines import round_lines
from server.run_start import Start, first_state, state_in
from server.run_state import RunState, mean_over_sites
from server.site_privacy import SitePrivacy
from server.teachers import Teachers
from server.tuning.settings import with_found
from server.tuning.tuning import Tuning, forget_trials

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from flwr.serverapp import Grid

    from aiseeme_models.curriculum.stages import Stage
    from server.results import FederatedTest


@dataclass
class RoundLoop:
    """Plays a federation's curriculum over a Grid.

    Attributes:
        grid: Flower's Grid: in-process, Ray's, or a SuperLink's.
        config: the federation.
        run: the run's id.
        folder: the run's folder; checkpoints and metrics are written below it.
        site_names: the sites that belong to the federation; none else may answer.
        observer: told what happens.
        clock: seconds for deadlines.
        parallel: whether sites work at the same time (then the slowest is what a round costs, else their sum).
        signing_key: signs every checkpoint's manifest; a resumed run trusts none that it did not sign.
        signer: signs every request, and the global weights with it; None in a simulation.
        owners: tells which node's key is which site's; None in a simulation, where a node is believed.
        rejoin_s: how long sites whose connection is gone are waited for, where quorum is missed; 0 in a simulation.
        begins: where the run begins; None: at its first stage, with a fresh backbone.
        earlier_s: wall seconds of the rounds that other processes played before this one.
        tested: what the sites told of a classifier when it was trained; None: none was, or nobody told.
    """

    grid: Grid
    config: FederationConfig
    run: str
    folder: Path
    site_names: Sequence[str]
    observer: Observer = field(default_factory=Silent)
    clock: Callable[[], float] = time.monotonic
    parallel: bool = True
    signing_key: Ed25519PrivateKey | None = field(default=None, repr=False)
    signer: RequestSigner | None = field(default=None, repr=False)
    owners: Owners | None = None
    rejoin_s: float = 0.0
    begins: Start | None = None
    earlier_s: float = field(default=0.0, init=False)
    tested: FederatedTest | None = field(default=None, init=False)

    def play(self) -> tuple[RunState, NDArray[np.float32]]:
        """Play what is left of the run. Gives its state and the last stage's flat vector ``(P,)``.

        Raises:
            RunFailed: the quorum was missed ``round_retries`` + 1 times, the backbone has collapsed, or a checkpoint
                could not be written.
        """
        started = time.perf_counter()
        keep = self.config.federation.keep_checkpoints
        self._store = CheckpointStore(self.folder / "checkpoints", keep, self.signing_key)
        self._metrics = MetricsLog(self.folder)
        self._quorum = Quorum(self.config.federation, len(self.site_names))
        self._teachers = Teachers(self.config, self.folder)
        self._best = BestRounds(self.folder, keep + 1)
        self._questions = Questions(self.grid, self.signer, self.config.federation.round_deadline_s, self.clock)
        self._roster = Roster(self.grid, self.config, self.run, self.site_names, self.clock, self.signer, self.owners)
        state, model, aggregation = self._restore()
        self._found = with_found(self.config, [stage.found for stage in state.stages])
        vector = model.vector
        while not state.finished:
            self._gather(state)
            count_classes(state, self._options(state))
            if self._options(state).tune is not None:
                self._tune(state, model)
            stage_index = state.stage
            vector, lines = self._round(state, model, aggregation, vector)
            self._check_collapse(state, lines)
            if self._options(state).choose == "best":
                stage = state.stages[state.stage]
                self._best.consider(stage_index, stage, state.round + 1, lines[-1]["heldout_loss"], vector)
            stage_ended = state.advance(self._options(state))
            if stage_ended:
                vector = self._best.chosen(stage_index, state.stages[stage_index], vector)
            lines[-1]["seconds"] = time.perf_counter() - started
            state.rounds_s += lines[-1]["seconds"]
            started = time.perf_counter()
            if stage_ended and not state.finished:
                backbone = vector[: model.layout.backbone_size]
                model = start_of_stage(self.config, state.stage, backbone)
                aggregation, vector = aggregation_for(self.config.federation, model.layout), model.vector
                state.stages[state.stage].chance_loss = model.chance_loss
                state.stages[state.stage].teacher = self._teachers.start_stage(state.stage, backbone)
            self._metrics.append(lines)
            counted = {
                line["site"]: CountedSite(images=line["images"], epsilon=line.get("epsilon"))
                for line in lines
                if "images" in line
            }
            self._save(state, model, aggregation, vector, stage_index, counted)
            forget_trials(self.folder)
            self.observer.round_done(state, lines[-1]["loss"], lines[-1]["heldout_loss"])
            if stage_ended:
                self.observer.stage_done(self.config, state, stage_index)
        if learns_labels(self.config):
            self.tested = self._test(state, model, vector)
        self._best.forget()  # last: a run that is killed before may have to go back a round
        return state, vector

    def _test(self, state: RunState, model: StageModel, vector: NDArray[np.float32]) -> FederatedTest | None:
        """Have the sites test the classifier that was trained."""
        if not self._roster.nodes:  # the run was done when it was gone on with
            self._gather(state)
        ended = state.model_copy(update={"round": state.round - 1, "round_in_stage": 0})  # in the last round's name
        asked = AssessRequest(**self._question(ended, model))
        return test_at_sites(self._questions, asked, self._roster.nodes, self._beside(vector), self.observer)

    def _options(self, state: RunState) -> Stage:
        """Those of the stage that is being played."""
        return self._found.curriculum.stage[state.stage]

    def _tune(self, state: RunState, model: StageModel) -> None:
        """Find what the stage that begins asks for; its trials are not rounds of the run."""
        search = Tuning(
            config=self._found,
            stage=state.stage,
            run=self.run,
            folder=self.folder,
            round=state.round + 1,
            model=model,
            teacher=state.stages[state.stage].teacher,
            sites=state.sites,
            roster=self._roster,
            questions=self._questions,
            teachers=self._teachers,
            observer=self.observer,
            gather=lambda: self._gather(state),
            classes=question_of_classes(state.stages[state.stage]),
            key=self.signing_key,
            parallel=self.parallel,
        )
        stage = state.stages[state.stage]
        stage.found = search.find()
        state.training_s += search.training_s
        self._found = with_found(self.config, [one.found for one in state.stages])
        stage.chance_loss = start_of_stage(self._found, state.stage, None).chance_loss

    def _restore(self) -> tuple[RunState, StageModel, Aggregation]:
        checkpoint = self._store.latest()
        for warning in self._store.warnings:
            self.observer.note(warning)
        if checkpoint is None and self._store.rounds():
            raise RunFailed(f"{self.folder}: none of its checkpoints can be used, so the run cannot go on")
        if checkpoint is None:
            state, model = first_state(self.config, self.site_names, self.begins)
            if state.stage and self.begins is not None:
                teacher = self._teachers.start_stage(state.stage, self.begins.backbone)
                state.stages[state.stage].teacher = teacher
            aggregation = aggregation_for(self.config.federation, model.layout)
            self._save(state, model, aggregation, model.vector, state.stage, {})
            return state, model, aggregation
        state, model = state_in(checkpoint, self.run, self.config, self.folder)
        aggregation = aggregation_for(self.config.federation, model.layout)
        aggregation.load_state(checkpoint.optimizer_state)
        self._teachers.resume(state.stage, state.stages[state.stage].teacher)
        self._metrics.cut_after(state.round)
        self._best.cut_after(state.round)
        self.earlier_s = state.rounds_s
        return state, model, aggregation

    def _gather(self, state: RunState) -> None:
        """Let the sites describe themselves; a federation without a quorum of them does not begin a round."""
        if not self._roster.nodes:
            self._roster.await_nodes(self.site_names, self.rejoin_s, self.observer)
        for _ in range(self.config.federation.round_retries + 1):
            self._roster.describe_missing(state, self.observer)
            if self._quorum.is_met(self._roster.nodes.values()):
                return
            self._roster.await_nodes(self.site_names, self.rejoin_s, self.observer)
        raise RunFailed(self._quorum.lost(state.round + 1, len(self._roster.nodes), self._roster.refused))

    def _round(
        self, state: RunState, model: StageModel, aggregation: Aggregation, vector: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
        number = state.round + 1
        asked = TrainRequest(
            **self._question(state, model),
            proximal_mu=aggregation.proximal_mu,
            ema_tau=aggregation.ema_tau,
            teacher=state.stages[state.stage].teacher,
            admitted=admitted_classes(self._options(state), state.stages[state.stage], state.round_in_stage),
        )
        # Not what the sites have declared so far: one may describe itself while the round goes on, and the same replies
        # must give the same bits whatever the sites declared that did not answer.
        most = len(self.site_names) * self.config.federation.max_images_per_site
        hidden = self.config.site_privacy is not None
        private = SitePrivacy(self.config, secret=self.signer is not None) if hidden else None
        aggregation.start_round(vector, max_weight=most, scratch=self.folder / "scratch")
        counted: dict[str, TrainReply] = {}
        refused: dict[str, Refused] = {}
        transfer = self.config.federation.transfer
        beside = self._beside(vector)
        whole = partial(restored, weights=vector, transfer=transfer, variances=model.layout.variance_slices)
        restore = whole if private is None else lambda answered: private.clipped(whole(answered), vector)
        for attempt in range(self.config.federation.round_retries + 1):
            if attempt:
                missing = [name for name in self.site_names if name not in counted]
                self._roster.await_nodes(missing, self.rejoin_s, self.observer)
                self._roster.describe_missing(state, self.observer)
            self.observer.round_started(self._found, state, number, attempt)
            self._teachers.teach(
                self._questions, TeachRequest(**self._question(state, model)), self._roster.nodes, self.observer
            )
            self._collect(state, asked, beside, restore, aggregation, counted, refused)
            if self._quorum.is_met(counted):
                break
        else:
            shutil.rmtree(self.folder / "scratch", ignore_errors=True)  # the sites' updates do not stay behind
            raise RunFailed(self._quorum.lost(number, len(counted), refused))
        state.weights_bytes += 2 * len(counted) * beside.size * np.dtype(transfer).itemsize
        del beside  # a second copy of the global weights
        for name, site in state.sites.items():
            if name in counted:
                site.answered += 1
            else:
                site.miss(number, refused.get(name, NO_ANSWER))
        before, vector = vector, aggregation.finish_round()
        if private is not None:
            vector = private.noised(vector, len(counted), number)
        for frozen in model.layout.frozen_slices:  # a mean of equal numbers may round, and nobody else may move them
            vector[frozen] = before[frozen]
        loss = mean_over_sites(
            (reply.loss, reply.images) for reply in counted.values() if reply.loss is not None
        )  # None where patients are protected
        for name, reply in counted.items():
            state.sites[name].epsilon = reply.epsilon
        heldout = self._heldout(state, model, vector)
        stage, options = state.stages[state.stage], self._options(state)
        note_difficulties(options, stage, counted)
        if loss is not None:
            stage.losses.append(loss)
        if heldout is not None:
            stage.heldout.append(heldout)
        score = self._score(state, model, vector) if options.stop == "probe" else None
        if score is not None:
            stage.scores.append(score)
        seconds = [reply.seconds for reply in counted.values()]
        state.training_s += max(seconds) if self.parallel else sum(seconds)
        summary = {"loss": loss, "heldout_loss": heldout} | ({} if score is None else {"score": score})
        lines = round_lines(
            {"round": number, "stage": state.stage, "task": options.task},
            options,
            counted,
            refused,
            summary | {"answered": len(counted), "invited": len(state.sites)},
        )
        return vector, lines

    def _collect(
        self,
        state: RunState,
        asked: TrainRequest,
        beside: Enclosure,
        restore: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        aggregation: Aggregation,
        counted: dict[str, TrainReply],
        refused: dict[str, Refused],
    ) -> None:
        """Ask the sites that have not counted yet, and fold each valid reply in as it comes."""
        refused.update(self._roster.refused)
        nodes = {node: name for node, name in self._roster.nodes.items() if name not in counted}
        for answer in self._questions.ask("train", asked, nodes, beside):
            name = answer.site
            outcome = folded(answer, asked, aggregation, restore, declared=state.sites[name].images, size=beside.size)
            if isinstance(outcome, Refused):
                refused[name] = outcome
                self.observer.site_missed(name, outcome)
                forget_what_was_wrong(answer, outcome, self._teachers, self._roster)
            else:
                refused.pop(name, None)
                counted[name] = outcome
                self.observer.site_answered(name, outcome.images, outcome.seconds, outcome.loss)

    def _heldout(self, state: RunState, model: StageModel, vector: NDArray[np.float32]) -> float | None:
        """The held-out pretext loss of the new global weights: where it decides, and at the end of every stage."""
        options = self._options(state)
        if self.config.privacy is not None:  # sites do not tell it
            return None
        last = state.round_in_stage + 1 == options.rounds
        if options.stop == "rounds" and options.choose == "last" and not last:
            return None
        asked = EvaluateRequest(**self._question(state, model))
        loss, seconds = heldout_at_sites(
            self._questions,
            asked,
            self._roster.with_heldout(state.sites),
            state.sites,
            self._beside(vector),
            self.observer,
        )
        if not self.parallel:
            state.training_s += seconds
        return loss

    def _score(self, state: RunState, model: StageModel, vector: NDArray[np.float32]) -> float | None:
        """How well the new global backbone tells the sites' own labels."""
        asked = ScoreRequest(**self._question(state, model))
        return score_at_sites(
            self._questions,
            asked,
            self._roster.with_heldout(state.sites),
            state.sites,
            self._beside(vector),
            self.observer,
        )

    def _beside(self, vector: NDArray[np.float32]) -> Enclosure:
        return Enclosure(outgoing(vector, self.config.federation.transfer))

    def _check_collapse(self, state: RunState, lines: list[dict[str, Any]]) -> None:
        """Stop where most of the sites that counted have seen collapse. No checkpoint is written of the round."""
        options = self._options(state)
        seen = collapse_in(lines, options.task, state.stage)
        if seen is None:
            return
        if options.on_collapse == "note":
            self.observer.note(seen)
            return
        self._metrics.append(lines)
        raise RunFailed(f"{seen}. {ways_out(self.config.model.norm)}")

    def _question(self, state: RunState, model: StageModel) -> dict[str, Any]:
        return {
            "run": self.run,
            "config": self._found,
            "round": state.round + 1,
            "stage": state.stage,
            "round_in_stage": state.round_in_stage,
            "layout_sha256": model.layout.digest,
            **question_of_classes(state.stages[state.stage]),
        }

    def _save(
        self,
        state: RunState,
        model: StageModel,
        aggregation: Aggregation,
        vector: NDArray[np.float32],
        played: int,
        counted: dict[str, CountedSite],
    ) -> None:
        """Write the checkpoint of the round that was ``played`` in that stage; ``state`` says what comes next."""
        self._store.save(
            run=self.run,
            round=state.round,
            stage=played,
            round_in_stage=state.stages[played].rounds_done,
            config_sha256=config_sha256(self.config),
            layout_sha256=model.layout.digest,
            state=state.model_dump(mode="json"),
            vector=vector,
            optimizer_state=aggregation.state(),
            sites=counted,
        )
