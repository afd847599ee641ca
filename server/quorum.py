"""Whether enough sites are there for a round, and what is said where they are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from federation_configs.schema import FederationOptions
    from server.replies import Refused


@dataclass(frozen=True)
class Quorum:
    """``min_sites`` of the sites, and all of ``required_sites`` among them.

    Attributes:
        options: the federation's.
        sites: how many sites belong to it.
    """

    options: FederationOptions
    sites: int

    def is_met(self, names: Iterable[str]) -> bool:
        """Whether these sites are enough."""
        there = set(names)
        return len(there) >= self.options.min_sites and there.issuperset(self.options.required_sites)

    def lost(self, round_number: int, valid: int, refused: Mapping[str, Refused]) -> str:
        """A sentence for people, with why sites did not count."""
        required = self.options.required_sites
        also = f" with {', '.join(required)} among them" if required else ""
        reasons = "; ".join(f"{name}: {why.sentence}" for name, why in sorted(refused.items()))
        return (
            f"round {round_number}: {valid} of {self.sites} sites gave a valid reply and min_sites is"
            f" {self.options.min_sites}{also} ({reasons})"
        )
