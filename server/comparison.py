"""Comparing backbones on hospitals' own images: the sites compute, and what comes back is averaged."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from aiseeme_models.analysis.comparison import paired_blocks
from aiseeme_models.backbones import Backbone
from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.training.shared_state import backbone_layout, flatten_backbone
from federation_configs.records import Enclosure
from federation_configs.schema import FederationConfig
from federation_configs.transfer import outgoing
from federation_configs.wire import AnalyseReply, AnalyseRequest, ComparedModel
from server.observer import Observer, Silent
from server.questions import Questions
from server.replies import Refused, check_analysis
from server.request_signing import RequestSigner
from server.roster import Owners, Roster
from server.run_state import RunState, SiteState, mean_over_sites

if TYPE_CHECKING:
    from flwr.serverapp import Grid


@dataclass(frozen=True)
class NamedBackbone:
    """A backbone and what a person calls it; ``architecture`` is its registered name."""

    name: str
    architecture: str
    backbone: Backbone


@dataclass(frozen=True)
class BlockMean:
    """Figures behind one block, the sites' means weighted by their numbers of images.

    Attributes:
        blocks: its names in the first and in the second backbone.
        cka: linear CKA; None where no site has one, as one backbone gives the same for all images.
        svcca: mean canonical correlation; None likewise.
        ranks: effective rank (RankMe) of the first's features and of the second's.
    """

    blocks: tuple[str, str]
    cka: float | None
    svcca: float | None
    ranks: tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """How alike two backbones are.

    Attributes:
        first, second: their names.
        blocks: from the first block to the last.
        images: how many each site used.
        refused: why other sites did not answer.
    """

    first: str
    second: str
    blocks: list[BlockMean]
    images: dict[str, int]
    refused: dict[str, str]


@dataclass
class Comparison:
    """Asks sites over a Grid how alike backbones are.

    Attributes:
        grid: Flower's Grid.
        config: says which images, how they are prepared, who is held out, and how long an answer may take.
        run: the id under which the sites are asked.
        site_names: the sites that belong to the federation.
        images: most images of a site to compare on.
        observer: told what happens.
        clock: seconds for deadlines.
        signer: signs every request; None in a simulation.
        owners: tells which node's key is which site's; None in a simulation.
    """

    grid: Grid
    config: FederationConfig
    run: str
    site_names: Sequence[str]
    images: int = 512
    observer: Observer = field(default_factory=Silent)
    clock: Callable[[], float] = time.monotonic
    signer: RequestSigner | None = field(default=None, repr=False)
    owners: Owners | None = None

    def of_all(self, backbones: Sequence[NamedBackbone]) -> list[Pair]:
        """Compare each backbone with each other one, in order.

        Raises:
            InputError: backbones for images of another number of channels.
            RunFailed: no site answered; the text says why.
        """
        for named in backbones:
            channels = self.config.images.resolved_preset.channels
            if named.backbone.in_channels != channels:
                raise InputError(
                    f"{named.name} takes images of {named.backbone.in_channels} channels; these have {channels}"
                )
        state = RunState(stages=[], sites={name: SiteState() for name in sorted(self.site_names)})
        roster = Roster(self.grid, self.config, self.run, self.site_names, self.clock, self.signer, self.owners)
        roster.describe_missing(state, self.observer)
        return [self._pair(first, second, roster, state) for first, second in itertools.combinations(backbones, 2)]

    def _pair(self, first: NamedBackbone, second: NamedBackbone, roster: Roster, state: RunState) -> Pair:
        asked = AnalyseRequest(
            run=self.run,
            config=self.config,
            models=(_told(first), _told(second)),
            images=self.images,
        )
        weights = np.concatenate([flatten_backbone(named.backbone) for named in (first, second)])
        beside = Enclosure(outgoing(weights, self.config.federation.transfer))
        blocks = paired_blocks(first.backbone, second.backbone)
        replies: dict[str, AnalyseReply] = {}
        refused = dict(roster.refused)

        def missed(name: str, why: Refused) -> None:
            refused[name] = why
            self.observer.site_missed(name, why)

        questions = Questions(self.grid, self.signer, self.config.federation.round_deadline_s, self.clock)
        for name, reply in questions.valid(
            "analyse",
            asked,
            roster.nodes,
            beside,
            lambda message, site, nonce: check_analysis(
                message,
                site=site,
                asked=asked,
                nonce=nonce,
                declared=state.sites[site].validation,
                blocks=len(blocks),
            ),
            missed,
        ):
            replies[name] = reply
            self.observer.site_answered(name, reply.images, reply.seconds, None)
        why = {name: reason.sentence for name, reason in sorted(refused.items())}
        if not replies:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in why.items())
            raise RunFailed(f"no site compared {first.name} with {second.name} ({reasons})")
        return Pair(
            first.name,
            second.name,
            [_mean(block, place, list(replies.values())) for place, block in enumerate(blocks)],
            {name: reply.images for name, reply in sorted(replies.items())},
            why,
        )


def _told(named: NamedBackbone) -> ComparedModel:
    digest = backbone_layout(named.backbone).digest
    return ComparedModel(backbone=named.architecture, norm=named.backbone.norm, layout_sha256=digest)


def _mean(block: tuple[str, str], place: int, replies: Sequence[AnalyseReply]) -> BlockMean:
    figures = [(reply.blocks[place], reply.images) for reply in replies]
    ranks = [mean_over_sites((one.ranks[which], images) for one, images in figures) for which in (0, 1)]
    assert ranks[0] is not None and ranks[1] is not None
    return BlockMean(
        block,
        mean_over_sites((one.cka, images) for one, images in figures if one.cka is not None),
        mean_over_sites((one.svcca, images) for one, images in figures if one.svcca is not None),
        (ranks[0], ranks[1]),
    )
