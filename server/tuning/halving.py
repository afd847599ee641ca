"""Successive halving over rounds, its trials spread over the sites."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiseeme_models.curriculum.tuning import Asha, Job
from aiseeme_models.errors import RunFailed
from federation_configs.loading import check_config
from federation_configs.wire import EvaluateRequest, ScoreRequest
from server.heldout import heldout_at_sites, score_at_sites
from server.tuning.settings import among, with_setting
from server.tuning.trial import Trial
from server.tuning.trial_round import TrialRound, diverged, play_together

if TYPE_CHECKING:
    from aiseeme_models.curriculum.tuning import Setting
    from federation_configs.schema import FederationConfig
    from server.tuning.found import FoundSetting
    from server.tuning.plan import SearchPlan
    from server.tuning.tuning import Tuning


@dataclass(eq=False)
class _Running:
    """A trial on its way.

    Attributes:
        job: which.
        trial: its state may be further on, where a search is repeated after a crash.
        rounds: of the whole trial.
        waves: how often it was asked to be trained, as this search sees it.
    """

    job: Job
    trial: Trial
    rounds: int
    waves: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether it has all its rounds, or is out."""
        state = self.trial.state
        return self.waves >= state.waves and (state.rounds >= self.rounds or state.out is not None)


class Halving:
    """Asynchronous successive halving in waves: in each every trial that runs is trained one round at its own sites.

    Sites take turns on a trial, and every trial takes as many steps a round, whichever site it is at. A setting that
    diverges at two sites is given up; a site that does not answer costs a turn. What is done next depends on what
    trials came to and on who is there, so a search that goes on after a crash is the same search.

    A setting begins anew at every rung, with its schedule over the rung's rounds, where the paper goes on with what it
    has: a rate is judged after it has come down. In the middle of a schedule the best rates look bad.

    Args:
        search: what is looked for.
        plan: what it has settled.
    """

    def __init__(self, search: Tuning, plan: SearchPlan) -> None:
        self._search, self._plan, tune, options = search, plan, search.tune, search.options
        self._settings = tune.settings(options.learning_rate, plan.sizes, search.config.seed)
        self._rungs = tune.rungs(options.rounds)
        self._sites = min(tune.sites, len(plan.sites))
        self._slots = len(plan.sites) // self._sites
        largest = max(plan.sizes)
        self._images = options.model_copy(update={"batch_size": largest}).steps(plan.fewest) * largest
        self._trials: dict[Job, Trial] = {}
        self._resting: set[str] = set()

    def play(self) -> FoundSetting:
        """Play all trials, and take the best setting.

        Raises:
            RunFailed: no setting is left, none can be judged, or no site answers.
        """
        search, running = self._search, list[_Running]()
        search.observer.note(
            f"stage {search.stage + 1}, {search.options.title}: {len(self._settings)} settings are tried, for"
            f" {', then '.join(map(str, self._rungs))} of {search.options.rounds} rounds, {self._slots} at a time"
        )
        asha = Asha(len(self._settings), len(self._rungs), search.tune.reduction)
        while True:
            while len(running) < self._slots and (job := asha.next_job()) is not None:
                running.append(self._begun(job))
            if not running:
                break
            self._wave(running)
            for one in [one for one in running if one.has_ended]:
                running.remove(one)
                asha.tell(one.job, self._error(one.trial))
                one.trial.vector = None
        best, states = asha.best(), [trial.state for trial in self._trials.values()]
        furthest = {job.candidate: trial for job, trial in sorted(self._trials.items(), key=lambda one: one[0].rung)}
        if best is None:
            why = "; ".join(f"{trial.setting.title}: {trial.state.out}" for trial in furthest.values())
            raise RunFailed(
                f"stage {search.stage + 1}, {search.options.title}: no setting can be used ({why}): give tune.lr lower"
                " rates"
            )
        return search.found(
            self._settings[best],
            [furthest[candidate].told for candidate in sorted(furthest)],
            judged_by=search.options.judged_by,
            steps=sum(state.steps for state in states),
            images=sum(state.images for state in states),
            seconds=sum(state.seconds for state in states),
        )

    def _begun(self, job: Job) -> _Running:
        search, setting, rounds = self._search, self._settings[job.candidate], self._rungs[job.rung]
        number = job.rung * len(self._settings) + job.candidate
        trial = Trial.open(number, setting, self._config(setting, rounds), search.trials_folder, search.key)
        self._trials[job] = trial
        return _Running(job, trial, rounds)

    def _config(self, setting: Setting, rounds: int) -> FederationConfig:
        """The federation with a setting, its stage as long as the trial: the schedule runs over that."""
        steps = max(1, self._images // setting.batch_size)
        config = with_setting(
            self._search.config,
            self._search.stage,
            setting,
            rounds=rounds,
            max_steps=steps,
            local_epochs=-(-steps // (self._plan.fewest // setting.batch_size)),
            stop="rounds",
            on_collapse="note",
        )
        return check_config(among(config.model_dump(mode="json"), self._sites), where="a trial")

    def _wave(self, running: list[_Running]) -> None:
        """A round of every trial, but of those that have had it already.

        Raises:
            RunFailed: quorum is missed.
        """
        waiting = [one for one in running if one.trial.state.waves <= one.waves]
        if waiting:
            self._search.gather()
        there = {name: node for node, name in self._search.roster.nodes.items() if name in self._plan.sites}
        if waiting and not there:
            raise RunFailed(f"stage {self._search.stage + 1}: none of the sites that could try a setting is there")
        placed = self._placed(running, there)
        asked = [(one, names) for one, names in zip(running, placed, strict=True) if one in waiting and names]
        rounds = [TrialRound(self._search, one.trial, {there[name]: name for name in names}) for one, names in asked]
        play_together(self._search, rounds, there)
        self._resting = {name for one in rounds for name in one.silent}
        idle = [one for one, names in zip(running, placed, strict=True) if one in waiting and not names]
        for one in running:
            one.waves += one not in idle

    def _placed(self, running: list[_Running], there: Mapping[str, int]) -> list[list[str]]:
        """The sites of every trial: the next ones in turn that are free, so that its rounds are at different sites.

        A site that said nothing about a trial, or at which it diverged, is not asked for it again before all others
        were. One that said nothing the last time comes after the others.
        """
        names, placed = self._plan.sites, []
        free = [name for name in names if name in there]
        for one in running:
            first = (one.trial.number + one.waves) * self._sites % len(names)
            in_turn = sorted([*names[first:], *names[:first]], key=lambda name: name in self._resting)
            before = {*one.trial.state.silent, *one.trial.state.diverged}
            left_out = set() if before >= there.keys() else before
            chosen = [name for name in in_turn if name in free and name not in left_out][: self._sites]
            free = [name for name in free if name not in chosen]
            placed.append(chosen)
        return placed

    def _error(self, trial: Trial) -> float:
        """What a trial came to: told by the sites that have held-out images, once."""
        if trial.error is not None:
            return trial.error
        search, state = self._search, trial.state
        beside = search.beside(trial.resume(search.model))
        question = search.question(trial.config, trial.number, state.rounds - 1)
        told: float | None
        bad: list[str] = []
        if search.options.judged_by == "heldout":
            told, seconds = heldout_at_sites(
                search.questions,
                EvaluateRequest(**question),
                search.judges,
                search.sites,
                beside,
                search.observer,
                lambda site, why: bad.append(site) if diverged(why) else None,
            )
            search.training_s += 0.0 if search.parallel else seconds
            lacking = "held-out loss"
        else:
            score = score_at_sites(
                search.questions, ScoreRequest(**question), search.judges, search.sites, beside, search.observer
            )
            told = None if score is None else 1 - score
            lacking = "score, which takes 64 labelled validation images of two classes or more"
        if bad:
            state.out = "its held-out loss is no number"
        elif told is None:
            raise RunFailed(f"stage {search.stage + 1}: no site could judge a setting: none told a {lacking}")
        else:
            state.error = told
            what = {"heldout": "held-out loss", "probe": "probe's error"}[search.options.judged_by]
            search.observer.note(f"{trial.setting.title}, rounds {state.rounds}: {what} {told:.4g}")
        trial.save(search.run, search.stage, state.waves + 1, search.model)
        return math.inf if told is None or bad else told
