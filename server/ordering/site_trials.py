"""Sequences of stages tried as short federations over simulated hospitals, judged by what the hospitals tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from aiseeme_models.errors import RunFailed
from federation_configs.records import Enclosure
from federation_configs.transfer import outgoing
from federation_configs.wire import ScoreRequest
from server.asked_sites import NamedBackbone
from server.comparison import Comparison
from server.global_model import flat_backbone, start_of_stage
from server.heldout import score_at_sites
from server.questions import Questions
from server.roster import Roster
from server.run_state import RunState, SiteState
from server.simulation import local_grid, reached
from server.study.bench import Bench
from server.study.dealing import Training

if TYPE_CHECKING:
    from aiseeme_models.backbones import Backbone
    from aiseeme_models.curriculum.stages import Stage
    from server.observer import Observer

_RUN = "trial"


@dataclass
class SiteTrials:
    """See `aiseeme_models.curriculum.ordering.Trials`. A stage after a given sequence is played once.

    Attributes:
        bench: plays stages, and keeps what is played.
        stages: the candidates, as long as a trial is to be.
        probe: which probe the sites make.
        observer: told what happens.
        tried: called with a sequence and its score.
        scores: what was asked so far, by sequence.
    """

    bench: Bench
    stages: Sequence[Stage]
    probe: Literal["knn", "linear"]
    observer: Observer
    tried: Callable[[tuple[int, ...], float], None]
    scores: dict[tuple[int, ...], float] = field(default_factory=dict)
    _rounds: dict[tuple[int, ...], int] = field(default_factory=dict)
    _distances: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = field(default_factory=dict)

    def score(self, sequence: tuple[int, ...]) -> float:
        """Mean balanced accuracy of the sites' probes.

        Raises:
            RunFailed: a stage failed, or no site could score it.
        """
        if sequence not in self.scores:
            self.scores[sequence] = self._asked(self._backbone(sequence))
            self.tried(sequence, self.scores[sequence])
        return self.scores[sequence]

    def distance(self, first: tuple[int, ...], second: tuple[int, ...]) -> float:
        """``1 - CKA`` of the last features.

        Raises:
            RunFailed: a stage failed, or no site could compare.
        """
        key = (first, second) if first <= second else (second, first)
        if key not in self._distances:
            config = self.bench.config
            comparison = Comparison(reached(self.bench.sites), config, _RUN, self.observer)
            named = [
                NamedBackbone(str(number), config.model.backbone, self._backbone(one)) for number, one in enumerate(key)
            ]
            cka = comparison.of_all(named)[0].blocks[-1].cka
            self._distances[key] = 1.0 if cka is None else 1 - cka  # features that are one have nothing in common
        return self._distances[key]

    def _backbone(self, sequence: tuple[int, ...]) -> Backbone:
        if not sequence:
            return self.bench.random()
        stages = tuple(self.stages[number] for number in sequence)
        backbone, played = self.bench.train(Training("trial", tuple(self.bench.sites), stages), None)
        self._rounds |= {sequence[: place + 1]: stage.rounds for place, stage in enumerate(played)}
        return backbone

    @property
    def rounds(self) -> int:
        """Federated rounds behind what was asked so far; a stage after the same ones counts once."""
        return sum(self._rounds.values())

    def _asked(self, backbone: Backbone) -> float:
        config = self.bench.config
        model = start_of_stage(config, 0, flat_backbone(config, 0, backbone))
        grid = local_grid(self.bench.sites)
        names = [site.name for site in self.bench.sites]
        state = RunState(stages=[], sites={name: SiteState() for name in sorted(names)})
        roster = Roster(grid, config, _RUN, names, grid.clock, None, None)
        roster.describe_missing(state, self.observer)
        asked = ScoreRequest(
            run=_RUN,
            config=config,
            round=1,
            stage=0,
            round_in_stage=0,
            layout_sha256=model.layout.digest,
            probe=self.probe,
        )
        questions = Questions(grid, None, config.federation.round_deadline_s, grid.clock)
        beside = Enclosure(outgoing(model.vector, config.federation.transfer))
        score = score_at_sites(questions, asked, roster.nodes, state.sites, beside, self.observer)
        if score is None:
            raise RunFailed(
                "no site could score a trial: each needs 64 labelled validation images of two classes or more; a larger"
                " holdout.validation gives more"
            )
        return score
