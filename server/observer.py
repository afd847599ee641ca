"""Who watches a run: the terminal, the registry, a test."""

from __future__ import annotations

from typing import Protocol

from federation_configs.schema import FederationConfig
from server.replies import Refused
from server.run_state import RunState


class Observer(Protocol):
    """Told what happens, as it happens."""

    def sites_described(self, state: RunState, refused: dict[str, Refused]) -> None:
        """The sites said what they have."""

    def round_started(self, config: FederationConfig, state: RunState, round_number: int, attempt: int) -> None:
        """A round is asked for."""

    def site_answered(self, site: str, images: int, seconds: float, loss: float | None) -> None:
        """A site's reply counts; a site that protects its patients tells no loss."""

    def site_missed(self, site: str, why: Refused) -> None:
        """A site's reply does not count."""

    def round_done(self, state: RunState, loss: float | None, heldout: float | None) -> None:
        """A round is finished and its checkpoint written."""

    def stage_done(self, config: FederationConfig, state: RunState, stage: int) -> None:
        """A stage has ended."""

    def note(self, text: str) -> None:
        """Something that a person should know, in a sentence."""


class Silent:
    """An observer that watches in silence; others override what they care for."""

    def sites_described(self, state: RunState, refused: dict[str, Refused]) -> None:
        """See `Observer`."""

    def round_started(self, config: FederationConfig, state: RunState, round_number: int, attempt: int) -> None:
        """See `Observer`."""

    def site_answered(self, site: str, images: int, seconds: float, loss: float | None) -> None:
        """See `Observer`."""

    def site_missed(self, site: str, why: Refused) -> None:
        """See `Observer`."""

    def round_done(self, state: RunState, loss: float | None, heldout: float | None) -> None:
        """See `Observer`."""

    def stage_done(self, config: FederationConfig, state: RunState, stage: int) -> None:
        """See `Observer`."""

    def note(self, text: str) -> None:
        """See `Observer`."""
