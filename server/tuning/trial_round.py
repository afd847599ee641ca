"""One round of several trials at the same time, each at sites of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from federation_configs.site_errors import SiteError
from federation_configs.transfer import restored
from federation_configs.wire import TeachRequest, TrainReply, TrainRequest
from server.folding import aggregation_for, folded, forget_what_was_wrong
from server.replies import Missed, Refused

if TYPE_CHECKING:
    from server.questions import Answer
    from server.tuning.trial import Trial
    from server.tuning.tuning import Tuning

_DIVERGED = frozenset({Missed.NOT_FINITE, Missed.OUT_OF_RANGE, Missed.NEGATIVE_VARIANCE})


def diverged(why: Refused) -> bool:
    """Whether an answer says that training has diverged: its loss is no number, or its weights are none to use."""
    return why.code in _DIVERGED or why.sentence == SiteError.NON_FINITE_LOSS.sentence


@dataclass
class TrialRound:
    """A trial's round while it is played.

    Attributes:
        search: the search that it belongs to.
        trial: what is trained.
        nodes: at which sites.
        counted: their replies that hold.
        silent: sites that said nothing about the setting.
    """

    search: Tuning
    trial: Trial
    nodes: dict[int, str]
    counted: list[TrainReply] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        federation = self.trial.config.federation
        self.vector = self.trial.resume(self.search.model)
        self.aggregation = aggregation_for(federation, self.search.model.layout)
        self.aggregation.load_state(self.trial.optimizer_state)
        # Of all its sites, whoever is there: the same replies must give the same bits.
        most = federation.min_sites * federation.max_images_per_site
        self.aggregation.start_round(self.vector, max_weight=most, scratch=self.trial.store.folder / "scratch")
        question = self.search.question(self.trial.config, self.trial.number, self.trial.state.rounds)
        self.lesson = TeachRequest(**question)
        self.asked = TrainRequest(
            **question,
            proximal_mu=self.aggregation.proximal_mu,
            ema_tau=self.aggregation.ema_tau,
            teacher=self.search.teacher,
        )

    def take(self, answer: Answer) -> None:
        """Fold an answer in, or see why it does not count."""
        federation, variances = self.trial.config.federation, self.search.model.layout.variance_slices
        outcome = folded(
            answer,
            self.asked,
            self.aggregation,
            partial(restored, weights=self.vector, transfer=federation.transfer, variances=variances),
            declared=self.search.sites[answer.site].images,
            size=self.vector.size,
        )
        if isinstance(outcome, TrainReply):
            self.counted.append(outcome)
            self.search.observer.site_answered(answer.site, outcome.images, outcome.seconds, outcome.loss)
            return
        self.search.observer.site_missed(answer.site, outcome)
        if diverged(outcome):
            self.trial.state.diverged = sorted({*self.trial.state.diverged, answer.site})
            return
        self.silent.append(answer.site)
        forget_what_was_wrong(answer, outcome, self.search.teachers, self.search.roster)

    def finish(self, there: Collection[str]) -> None:
        """Close the round, and write how far the trial has come.

        Args:
            there: the sites that could train it.
        """
        state, retries = self.trial.state, self.search.config.federation.round_retries
        state.waves += 1
        state.failed = 0 if self.counted else state.failed + 1
        state.silent = [] if self.counted else sorted({*state.silent, *self.silent})
        if self.counted:
            state.rounds += 1
            state.steps += sum(reply.steps for reply in self.counted)
            state.images += sum(reply.steps for reply in self.counted) * self.trial.setting.batch_size
            state.seconds += sum(reply.seconds for reply in self.counted)
            self.trial.vector, self.trial.optimizer_state = self.aggregation.finish_round(), self.aggregation.state()
        elif len(state.diverged) >= min(2, len(there)):
            state.out = "training diverged"
        elif state.failed > retries and {*there} <= {*state.silent, *state.diverged}:
            state.out = "no site could train with it"
        collapsed = 2 * sum(bool(reply.collapsed) for reply in self.counted) > len(self.counted)
        if collapsed and self.search.is_blind_to_collapse:
            state.out = "its features became nearly the same for all images"
        self.trial.save(self.search.run, self.search.stage, state.waves, self.search.model)


def play_together(search: Tuning, rounds: Sequence[TrialRound], there: Collection[str]) -> None:
    """Play trials' rounds at the same time; ``there`` are the sites that could train any of them."""
    at = {name: one for one in rounds for name in one.nodes.values()}
    for one in rounds:
        search.teachers.teach(search.questions, one.lesson, one.nodes, search.observer)
    questions = [(one.asked, one.nodes, search.beside(one.vector)) for one in rounds]
    for answer in search.questions.ask_each("train", questions):
        at[answer.site].take(answer)
    seconds = [reply.seconds for one in rounds for reply in one.counted]
    if seconds:
        search.training_s += max(seconds) if search.parallel else sum(seconds)
    for one in rounds:
        one.finish(there)
