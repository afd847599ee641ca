"""How much the amount of unlabelled images matters: pretraining on a share of each site's patients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from server.study.arms import Arm, Pretrained, StudyKind, Untrained, study_kinds
from server.study.dealing import Share

if TYPE_CHECKING:
    from federation_configs.schema import FederationConfig

Fraction = Annotated[float, Field(gt=0, le=1)]


@study_kinds.register("volume")
class Volume(StudyKind):
    """The same curriculum, in equally many optimiser steps, on shares of each site's training patients.

    The labelled images that the probes are fitted on stay the same.

    Attributes:
        fractions: the shares.
    """

    fractions: tuple[Fraction, ...] = Field(default=(0.1, 0.25, 0.5, 1.0), min_length=2, strict=False)

    def arms(self, config: FederationConfig) -> Iterable[Arm]:
        """The largest share first."""
        for fraction in sorted(set(self.fractions), reverse=True):
            percent = f"{100 * fraction:g}"
            yield Pretrained(
                f"patients-{percent.replace('.', '_')}",
                f"{percent} % of the patients",
                "pretraining on a share of each site's training patients, in as many steps as on all",
                stages=config.curriculum.stage,
                dealing=Share(fraction),
            )
        yield Untrained("random", "none (random)", "the backbone before any training; fine-tuned: from scratch")
