"""Looking for a stage's settings: the sites try them in turn, and the coordinator settles on one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aiseeme_models.curriculum.tuning import Setting, TuneOptions
from aiseeme_models.errors import RunFailed
from federation_configs.loading import config_sha256
from federation_configs.records import Enclosure
from federation_configs.transfer import outgoing
from federation_configs.wire import FitRequest, RangeRequest
from server.replies import check_fit, check_range
from server.tuning.found import FoundSetting, TriedSetting
from server.tuning.halving import Halving
from server.tuning.plan import SearchPlan
from server.tuning.settings import with_setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from aiseeme_models.curriculum.stages import Stage
    from federation_configs.schema import FederationConfig
    from server.global_model import StageModel
    from server.observer import Observer
    from server.questions import Questions
    from server.roster import Roster
    from server.run_state import SiteState
    from server.teachers import Teachers

_FOLDER = "tuning"


@dataclass
class Tuning:
    """Finds the settings of one stage of a run.

    Attributes:
        config: the federation, with what was found for earlier stages.
        stage: index of the stage, whose ``tune`` says what is tried.
        run: the run's id.
        folder: the run's folder.
        round: absolute number of the round that the stage would begin with.
        model: what the stage starts from.
        teacher: hash of the backbone that it distils from.
        sites: what the sites have declared.
        roster: which node is which site.
        questions: how sites are asked.
        teachers: send the stage's teacher.
        observer: told what happens.
        gather: sees that enough sites are there; called before every wave of trials.
        classes: what requests say of classes, where the stage learns labels.
        key: signs the trials' checkpoints.
        parallel: whether sites work at the same time.
        training_s: seconds that sites have worked on the critical path, in this process.
    """

    config: FederationConfig
    stage: int
    run: str
    folder: Path
    round: int
    model: StageModel
    teacher: str | None
    sites: Mapping[str, SiteState]
    roster: Roster
    questions: Questions
    teachers: Teachers
    observer: Observer
    gather: Callable[[], None]
    classes: Mapping[str, Any] = field(default_factory=dict)
    key: Ed25519PrivateKey | None = field(default=None, repr=False)
    parallel: bool = True
    training_s: float = field(default=0.0, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def find(self) -> FoundSetting:
        """Try what the stage's ``tune`` asks for, and settle on one. A resumed search gives the same setting.

        Raises:
            RunFailed: no setting can be judged, or all of them fail.
        """
        self.gather()
        plan = SearchPlan.load(self.trials_folder, config_sha256(self.config))
        if plan is None:
            plan = self._settle()
            plan.save(self.trials_folder)
        self.notes = list(plan.notes)
        return _METHODS[self.tune.method](self, plan)

    @property
    def options(self) -> Stage:
        """The stage's."""
        return self.config.curriculum.stage[self.stage]

    @property
    def tune(self) -> TuneOptions:
        """The stage's."""
        assert self.options.tune is not None
        return self.options.tune

    @property
    def is_blind_to_collapse(self) -> bool:
        """Whether a setting that makes all features one may be judged to be good.

        A loss that has a level of knowing nothing is at that level then, and a probe tells nothing apart: what they say
        is enough, and a collapse in the first steps may be overcome.
        """
        return self.options.judged_by == "heldout" and self.model.chance_loss is None

    @property
    def trials_folder(self) -> Path:
        """Where the trials' checkpoints are."""
        return self.folder / _FOLDER / f"stage-{self.stage:03d}"

    def question(self, config: FederationConfig, trial: int | None, round_in_stage: int) -> dict[str, Any]:
        """What every request of a search says."""
        return {
            "run": self.run,
            "config": config,
            "trial": trial,
            "round": self.round + round_in_stage,
            "stage": self.stage,
            "round_in_stage": round_in_stage,
            "layout_sha256": self.model.layout.digest,
            **self.classes,
        }

    def beside(self, vector: np.ndarray[Any, np.dtype[np.float32]]) -> Enclosure:
        """Weights as they travel."""
        return Enclosure(outgoing(vector, self.config.federation.transfer))

    def lowest(self, batch_size: int) -> FederationConfig:
        """The federation with a setting that can be measured with; which rate it has does not matter."""
        lowest, _ = self.tune.rates(self.options.learning_rate)
        return with_setting(self.config, self.stage, Setting(lowest, batch_size))

    @property
    def judges(self) -> dict[int, str]:
        """The nodes whose sites have declared held-out images."""
        return self.roster.with_heldout(self.sites)

    def able(self, batch_size: int) -> dict[int, str]:
        """The nodes whose sites have images for a batch, by site."""
        nodes = sorted(self.roster.nodes.items(), key=lambda pair: pair[1])
        return {node: name for node, name in nodes if self.sites[name].images >= batch_size}

    def found(
        self, setting: Setting, tried: list[TriedSetting], *, judged_by: Any, steps: int, images: int, seconds: float
    ) -> FoundSetting:
        """The result, with its cost beside that of the stage."""
        played = with_setting(self.config, self.stage, setting).curriculum.stage[self.stage]
        own = sum(
            played.rounds * played.steps(self.sites[name].images) * played.batch_size
            for name in self.able(setting.batch_size).values()
        )
        found = FoundSetting(
            lr=setting.lr,
            batch_size=setting.batch_size,
            method=self.tune.method,
            judged_by=judged_by,
            tried=tried,
            notes=self.notes,
            steps=steps,
            images=images,
            share=images / max(own, 1),
            seconds=seconds,
        )
        self.observer.note(f"stage {self.stage + 1}, {self.options.title}: {found.sentence}")
        return found

    def note(self, text: str) -> None:
        """Tell what a person should know, now and in the results."""
        self.notes.append(text)
        self.observer.note(text)

    def _settle(self) -> SearchPlan:
        """Which batch sizes and sites there are for the search."""
        if self.tune.method == "asha" and not self.judges:
            raise RunFailed(
                f"stage {self.stage + 1}: lr = 'auto' judges by held-out images, and no site has 5 of them: a larger"
                " holdout.validation gives more"
            )
        sizes = self._fitting(sorted(self.options.batch_sizes))
        sites = tuple(self.able(max(sizes)).values())
        if not sites:
            raise RunFailed(f"stage {self.stage + 1}: no site has the {max(sizes)} training images of a batch")
        return SearchPlan(
            config_sha256=config_sha256(self.config),
            sizes=tuple(sizes),
            sites=sites,
            fewest=min(self.sites[name].images for name in sites),
            notes=tuple(self.notes),
        )

    def _fitting(self, sizes: list[int]) -> list[int]:
        """The batch sizes for which every site has the images, and the memory; one alone is not asked about.

        A site that does not tell may have no memory for more than the smallest.
        """
        nodes = self.able(min(sizes))
        if len(sizes) == 1 or not nodes:
            return sizes
        fewest = min(self.sites[name].images for name in nodes.values())
        fitting = [size for size in sizes if size <= fewest]
        if len(fitting) < len(sizes):
            self.note(f"batch sizes above {fewest} are left out: a site has no more training images")
        config = self.lowest(fitting[-1])
        asked = FitRequest(**self.question(config, None, 0), sizes=tuple(fitting))
        replies = self.questions.valid(
            "fit",
            asked,
            nodes,
            self.beside(self.model.vector),
            lambda message, site, nonce: check_fit(message, site=site, asked=asked, nonce=nonce),
            lambda site, why: self.note(f"{site} did not tell which batch fits: {why.sentence}"),
        )
        told = {site: reply.largest for site, reply in replies}
        for site in sorted(nodes.values()):
            most = told.get(site, sizes[0])
            larger = [size for size in fitting if size > most]
            if larger and site in told:
                self.note(f"batch sizes from {min(larger)} do not fit in the memory of {site}")
            fitting = [size for size in fitting if size <= most]
        if not fitting:
            raise RunFailed(f"stage {self.stage + 1}: none of tune.batch_sizes fits in the memory of every site")
        return fitting


def _by_range(search: Tuning, plan: SearchPlan) -> FoundSetting:
    """The median of the rates that the sites' range tests suggest, weighted by their images."""
    size, low_high = max(plan.sizes), search.tune.rates(search.options.learning_rate)
    config = search.lowest(size)
    asked = RangeRequest(**search.question(config, None, 0), rates=low_high, steps=search.tune.steps)
    replies = dict(
        search.questions.valid(
            "range",
            asked,
            search.able(size),
            search.beside(search.model.vector),
            lambda message, site, nonce: check_range(
                message, site=site, asked=asked, nonce=nonce, declared=search.sites[site].images
            ),
            lambda site, why: search.note(f"{site} made no range test: {why.sentence}"),
        )
    )
    seconds = [reply.seconds for reply in replies.values()]
    search.training_s += (max(seconds) if search.parallel else sum(seconds)) if seconds else 0.0
    told = sorted((reply.rate, reply.images) for reply in replies.values() if reply.rate is not None)
    if not told:
        raise RunFailed(
            f"stage {search.stage + 1}, {search.options.title}: no site's range test suggests a rate (the loss falls at"
            f" none between {low_high[0]:.2g} and {low_high[1]:.2g}, or the site made no test): give tune more steps or"
            " other rates, or take method = 'asha'"
        )
    passed = list(accumulate(images for _, images in told))
    rate = next(one for (one, _), so_far in zip(told, passed, strict=True) if 2 * so_far >= passed[-1])
    steps = search.tune.steps * len(replies)
    return search.found(
        Setting(rate, size),
        [TriedSetting(lr=suggested, batch_size=size, rounds=0) for suggested, _ in told],
        judged_by=None,
        steps=steps,
        images=steps * size,
        seconds=sum(seconds),
    )


_METHODS = {"asha": lambda search, plan: Halving(search, plan).play(), "range": _by_range}


def forget_trials(folder: Path) -> None:
    """Remove what a search left in a run's folder; what it came to is in the run's checkpoints by then."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)
