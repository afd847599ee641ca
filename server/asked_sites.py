"""Sites that are asked about models that are finished: once, over a Grid, outside any run's rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.training.shared_state import backbone_layout
from federation_configs.schema import FederationConfig
from federation_configs.wire import ComparedModel, WeightedRequest
from server.observer import Observer, Silent
from server.questions import Questions
from server.replies import Refused
from server.request_signing import RequestSigner
from server.roster import Owners, Roster
from server.run_state import RunState, SiteState

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

    from aiseeme_models.backbones import Backbone
    from federation_configs.audit_messages import AuditReply
    from federation_configs.records import Enclosure
    from federation_configs.wire import AnalyseReply

Told = TypeVar("Told", "AnalyseReply", "AuditReply")


@dataclass(frozen=True)
class NamedBackbone:
    """A backbone and what a person calls it; ``architecture`` is its registered name."""

    name: str
    architecture: str
    backbone: Backbone

    @property
    def told(self) -> ComparedModel:
        """What a request says of it."""
        digest = backbone_layout(self.backbone).digest
        return ComparedModel(backbone=self.architecture, norm=self.backbone.norm, layout_sha256=digest)


@dataclass(frozen=True)
class Reached:
    """The sites of a federation, and the way to them.

    Attributes:
        grid: Flower's Grid.
        names: the sites' names.
        clock: seconds for deadlines.
        signer: signs every request; None in a simulation.
        owners: tells which node's key is which site's; None in a simulation.
        patience_s: how long sites that are not connected are waited for.
        gone: those of the names that are not waited for.
    """

    grid: Grid
    names: Sequence[str]
    clock: Callable[[], float] = time.monotonic
    signer: RequestSigner | None = field(default=None, repr=False)
    owners: Owners | None = None
    patience_s: float = 0.0
    gone: Sequence[str] = ()


@dataclass
class AskedSites:
    """Asks the sites of a federation.

    Attributes:
        sites: who is asked, and how.
        config: says which images, how they are prepared, who is held out, and how long an answer may take.
        run: the id under which the sites are asked.
        observer: told what happens.
    """

    sites: Reached
    config: FederationConfig
    run: str
    observer: Observer = field(default_factory=Silent)

    def described(self) -> tuple[Roster, RunState]:
        """Have the sites describe themselves."""
        sites = self.sites
        state = RunState(stages=[], sites={name: SiteState() for name in sorted(sites.names)})
        roster = Roster(sites.grid, self.config, self.run, sites.names, sites.clock, sites.signer, sites.owners)
        roster.await_nodes(set(sites.names) - set(sites.gone), sites.patience_s, self.observer)
        roster.describe_missing(state, self.observer)
        return roster, state

    def check_channels(self, named: NamedBackbone) -> None:
        """Refuse a backbone for other images than the configuration's.

        Raises:
            InputError: with the channels of both.
        """
        channels = self.config.images.resolved_preset.channels
        if named.backbone.in_channels != channels:
            raise InputError(
                f"{named.name} takes images of {named.backbone.in_channels} channels; these have {channels}"
            )

    def answers(
        self,
        kind: str,
        asked: WeightedRequest,
        beside: Enclosure,
        roster: Roster,
        check: Callable[[Message, str, str | None], Told | Refused],
        failure: str,
    ) -> tuple[dict[str, Told], Mapping[str, str]]:
        """The valid replies by site, and why the other sites have none, in words.

        Args:
            kind, asked, beside, check: see `Questions.valid`.
            roster: who is asked.
            failure: what no site did, for an error.

        Raises:
            RunFailed: no site answered; the text says why.
        """
        replies: dict[str, Told] = {}
        refused = dict(roster.refused)

        def missed(name: str, why: Refused) -> None:
            refused[name] = why
            self.observer.site_missed(name, why)

        deadline_s = self.config.federation.round_deadline_s
        questions = Questions(self.sites.grid, self.sites.signer, deadline_s, self.sites.clock)
        for name, reply in questions.valid(kind, asked, roster.nodes, beside, check, missed):
            replies[name] = reply
            self.observer.site_answered(name, reply.images, reply.seconds, None)
        why = {name: reason.sentence for name, reason in sorted(refused.items())}
        if not replies:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in why.items())
            raise RunFailed(f"no site {failure} ({reasons})")
        return dict(sorted(replies.items())), why
