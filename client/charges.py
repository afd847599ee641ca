"""What the ledger says was spent of the patients' privacy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiseeme_models.privacy.spending import Spend

SPENT = "spent"
"""The kind of a ledger's entry that is a charge."""


class BudgetBroken(Exception):
    """The budget file and the ledger do not agree, so that nobody knows what was spent."""


@dataclass(frozen=True)
class Charge:
    """One charge of the ledger.

    Attributes:
        seq: number of its entry.
        sha256: of the entry's line.
        run, stage: what it was for; None where it makes good for charges that were lost.
        spend: the steps.
    """

    seq: int
    sha256: str
    run: str | None
    stage: int | None
    spend: Spend

    @classmethod
    def read(cls, seq: int, sha256: str, fields: dict[str, Any]) -> Charge | None:
        """The charge in an entry of kind ``spent``; None where it is none."""
        try:
            spend = Spend(float(fields["noise_multiplier"]), float(fields["sample_rate"]), int(fields["steps"]))
        except (KeyError, TypeError, ValueError):
            return None
        return cls(seq, sha256, fields.get("run"), fields.get("stage"), spend)
