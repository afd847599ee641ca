"""Which node is which site: every site describes itself before it is trained with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from aiseeme_models import __version__
from federation_configs.records import MalformedRecord, nonce_of, unpack_body
from federation_configs.schema import FederationConfig
from federation_configs.wire import PROTOCOL, DescribeReply, DescribeRequest
from server.classes import wrong_classes
from server.exchange import ask
from server.observer import Observer
from server.replies import NO_ANSWER, NOT_CONNECTED, WRONG_QUESTION, Missed, Refused, error_in
from server.request_signing import RequestSigner, pack_for_any
from server.run_state import RunState, SiteState

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

_LATER_DEADLINE_S = 60.0
_WAIT_S = 0.5

Owners = Callable[[], Mapping[int, str]]
"""Tells the site of each node whose key is registered, as it is now: keys are rotated and revoked during a run."""


class Roster:
    """The sites of a federation and the nodes they answer from.

    Where it is known whose node's key is whose (`owners`), only nodes of the federation's own sites are asked, each in
    its site's name, and a node that describes itself as another site is refused. Without, as in a simulation, a node is
    believed; one site cannot be two either way.

    Attributes:
        nodes: site names by node id, of the sites that described themselves.
        refused: why the other sites are not there.
    """

    def __init__(
        self,
        grid: Grid,
        config: FederationConfig,
        run: str,
        site_names: Sequence[str],
        clock: Callable[[], float],
        signer: RequestSigner | None = None,
        owners: Owners | None = None,
    ) -> None:
        self._grid, self._clock, self._signer, self._owners = grid, clock, signer, owners
        self._request = DescribeRequest(run=run, config=config)
        self._names = frozenset(site_names)
        self._federation = config.federation
        self.nodes: dict[int, str] = {}
        self.refused: dict[str, Refused] = {}

    def describe_missing(self, state: RunState, observer: Observer) -> None:
        """Ask every node that has not described itself yet, and note in ``state`` what the sites have."""
        owners = None if self._owners is None else self._owners()
        if owners is not None:  # a site whose key was rotated has another node now; one that is revoked has none
            self.nodes = {node: site for node, site in self.nodes.items() if owners.get(node) == site}
        missing = self._names - set(self.nodes.values())
        if not missing:
            return
        unknown: dict[int, str | None] = {
            node: None if owners is None else owners[node]
            for node in self._grid.get_node_ids()
            if node not in self.nodes and (owners is None or owners.get(node) in missing)
        }
        anonymous: list[Refused] = []
        named: dict[str, Refused] = {}
        # The first description may decode a hospital's whole folder; later, the others must not wait so long.
        deadline = self._federation.round_deadline_s
        deadline = deadline if not self.nodes else min(deadline, _LATER_DEADLINE_S)
        contents = pack_for_any(self._signer, "describe", self._request, unknown, valid_s=deadline)
        for node, message in ask(
            self._grid, contents, "query.describe", group="describe", deadline_s=deadline, clock=self._clock
        ):
            owner = unknown[node]
            described = self._check(message, nonce_of(contents[node]), owner)
            if isinstance(described, Refused):
                if owner is None:
                    anonymous.append(described)
                else:
                    named[owner] = described
                continue
            self.nodes[node] = described.site
            site = state.sites[described.site]
            site.images, site.validation = described.train, described.validation
            site.classes = None if described.classes is None else list(described.classes)
            site.rejected = {reason.value: count for reason, count in described.rejected.items()}
        absent = sorted(self._names - set(self.nodes.values()))
        # Whose node was asked is named; who is absent beside them has no node that is online.
        others = NOT_CONNECTED if owners is not None else _why(absent, anonymous)
        self.refused = {name: named.get(name, others) for name in absent}
        observer.sites_described(state, self.refused)

    def forget(self, node: int) -> None:
        """Have a node describe itself again before it is asked anything else: it is not what it said it was."""
        self.nodes.pop(node, None)

    def with_heldout(self, sites: Mapping[str, SiteState]) -> dict[int, str]:
        """The nodes whose sites have declared validation images; ``sites`` is what they declared."""
        return {node: name for node, name in self.nodes.items() if sites[name].validation > 1}

    def await_nodes(self, names: Iterable[str], patience_s: float, observer: Observer) -> None:
        """Wait until the nodes of these sites are connected, those of the sites that are not known yet too.

        Args:
            names: the sites.
            patience_s: seconds after which they are not waited for any more.
            observer: told who is waited for.
        """
        if patience_s <= 0:
            return
        names, told = set(names), False
        since = time.monotonic()
        while (away := self._away(names)) and time.monotonic() - since < patience_s:
            if not told:
                observer.note(f"waiting up to {patience_s:.0f} s for {', '.join(sorted(away))}")
                told = True
            time.sleep(_WAIT_S)

    def _away(self, names: set[str]) -> set[str]:
        """Those of the sites that are not connected; where nodes name themselves, those that may not be."""
        online = set(self._grid.get_node_ids())
        if self._owners is not None:
            owners = self._owners()
            return names - {owners[node] for node in online if node in owners}
        known = {site: node for node, site in self.nodes.items()}
        away = {name for name in names if name in known and known[name] not in online}
        strangers, unknown = len(online - set(self.nodes)), names - set(known)
        return away if strangers >= len(unknown) else away | unknown

    def _check(self, message: Message | None, nonce: str | None, owner: str | None) -> DescribeReply | Refused:
        if message is None:
            return NO_ANSWER
        if (error := error_in(message, nonce)) is not None:
            return error
        try:
            body = unpack_body(message.content, DescribeReply)
        except MalformedRecord as malformed:
            return Refused(Missed.MALFORMED, f"its description was refused: {malformed}")
        if body.nonce != nonce:
            return WRONG_QUESTION
        if owner is not None and body.site != owner:
            return Refused(Missed.MALFORMED, "it describes itself as another site than the one whose key its node has")
        if body.site not in self._names or body.site in self.nodes.values():
            return Refused(Missed.MALFORMED, "its description names a site that is not expected here, or is here twice")
        if (wrong := wrong_classes(self._request.config, body)) is not None:
            return Refused(Missed.MALFORMED, wrong)
        if body.protocol != PROTOCOL or body.version != __version__:
            return Refused(Missed.SITE_ERROR, "the coordinator and the site run different versions")
        if max(body.train, body.validation) > self._federation.max_images_per_site:
            limit = self._federation.max_images_per_site
            return Refused(Missed.IMPOSSIBLE_COUNT, f"it declares more than max_images_per_site = {limit} images")
        return body


def _why(absent: list[str], refusals: list[Refused]) -> Refused:
    """Why the absent sites are absent: a node without a valid description cannot be trusted to say which one it is."""
    sentences = sorted({refusal.sentence for refusal in refusals})
    if len(refusals) == len(absent) and len(sentences) == 1:
        return refusals[0]
    if not sentences:
        return NO_ANSWER
    return Refused(Missed.NO_ANSWER, f"it did not describe itself; nodes that did not: {', '.join(sentences)}")
