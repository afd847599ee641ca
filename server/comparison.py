"""Comparing backbones on hospitals' own images: the sites compute, and what comes back is averaged."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aiseeme_models.analysis.comparison import paired_blocks
from aiseeme_models.training.shared_state import flatten_backbone
from federation_configs.records import Enclosure
from federation_configs.transfer import outgoing
from federation_configs.wire import AnalyseReply, AnalyseRequest
from server.asked_sites import AskedSites, NamedBackbone
from server.replies import check_analysis
from server.run_state import mean_over_sites

if TYPE_CHECKING:
    from server.roster import Roster
    from server.run_state import RunState


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
class Comparison(AskedSites):
    """Asks sites over a Grid how alike backbones are.

    Attributes:
        images: most images of a site to compare on.
    """

    images: int = 512

    def of_all(self, backbones: Sequence[NamedBackbone]) -> list[Pair]:
        """Compare each backbone with each other one, in order.

        Raises:
            InputError: backbones for images of another number of channels.
            RunFailed: no site answered; the text says why.
        """
        for named in backbones:
            self.check_channels(named)
        roster, state = self.described()
        return [self._pair(first, second, roster, state) for first, second in itertools.combinations(backbones, 2)]

    def _pair(self, first: NamedBackbone, second: NamedBackbone, roster: Roster, state: RunState) -> Pair:
        asked = AnalyseRequest(run=self.run, config=self.config, models=(first.told, second.told), images=self.images)
        weights = np.concatenate([flatten_backbone(named.backbone) for named in (first, second)])
        blocks = paired_blocks(first.backbone, second.backbone)
        replies, why = self.answers(
            "analyse",
            asked,
            Enclosure(outgoing(weights, self.config.federation.transfer)),
            roster,
            lambda message, site, nonce: check_analysis(
                message,
                site=site,
                asked=asked,
                nonce=nonce,
                declared=state.sites[site].validation,
                blocks=len(blocks),
            ),
            f"compared {first.name} with {second.name}",
        )
        return Pair(
            first.name,
            second.name,
            [_mean(block, place, list(replies.values())) for place, block in enumerate(blocks)],
            {name: reply.images for name, reply in replies.items()},
            dict(why),
        )


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
