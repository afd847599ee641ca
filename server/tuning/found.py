"""What came of looking for a stage's settings, as checkpoints, results and reports hold it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TriedSetting(_Part):
    """One setting that was tried.

    Attributes:
        lr, batch_size: the setting.
        rounds: how many rounds it was trained.
        error: when it was last judged: the held-out loss, or 1 - balanced accuracy; None where it never was.
        out: why it was given up; None where it was only not as good as others.
    """

    lr: float
    batch_size: int
    rounds: int
    error: float | None = None
    out: str | None = None


class FoundSetting(_Part):
    """The setting that was taken, and what finding it took.

    Attributes:
        lr, batch_size: the setting.
        method: ``asha`` or ``range``.
        judged_by: ``heldout`` or ``probe``; None for a range test, which judges by the training loss.
        tried: the settings; with a range test the rates that the sites suggested.
        notes: what else decided, in sentences: batch sizes that were left out.
        steps: optimiser steps at all sites.
        images: images in them.
        share: ``images`` as a share of those that the stage's own rounds take at the same sites.
        seconds: of training and judging, added up over the sites.
    """

    lr: float
    batch_size: int
    method: Literal["asha", "range"]
    judged_by: Literal["heldout", "probe"] | None
    tried: list[TriedSetting]
    notes: list[str] = Field(default_factory=list)
    steps: int
    images: int
    share: float
    seconds: float

    @property
    def sentence(self) -> str:
        """For people."""
        how = {
            "asha": f"of {len(self.tried)} settings by successive halving",
            "range": f"by range tests ({len(self.tried)} suggested a rate)",
        }
        return (
            f"lr {self.lr:.3g} and batch {self.batch_size} were found {how[self.method]}, which took"
            f" {100 * self.share:.0f} % of the images of the stage itself"
        )
