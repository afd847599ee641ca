"""The privacy that this site has spent on its patients, over all rounds, runs and coordinators, and what is left of it.

Every private round is charged before it begins: an entry in the ledger, then the budget file, both on the disk before
the first image is looked at. Nothing is given back, whatever becomes of the round. The two check each other: the ledger
tells when the file was edited or put back to an older state, the file when the ledger was cut off.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, ValidationError

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.options import Options
from aiseeme_models.privacy.accounting import Epsilon, epsilon
from aiseeme_models.privacy.spending import History, Spend, merged
from client.charges import SPENT, BudgetBroken, Charge
from client.refusals import Refusal
from federation_configs.site_errors import SiteError

if TYPE_CHECKING:
    from client.ledger import Ledger
    from client.site_config import BudgetOptions

BUDGET_FILE = "privacy_budget.json"

_Noise = Annotated[float, Field(gt=0)]
_Rate = Annotated[float, Field(gt=0, le=1)]
_Steps = Annotated[int, Field(ge=1)]


class _File(Options):
    """``privacy_budget.json``.

    Attributes:
        format: version of this layout.
        seq, entry: number and sha256 of the ledger's last charge that it knows of.
        settings: noise multiplier, sample rate and steps of everything charged up to there.
    """

    format: int = Field(ge=1, le=1)
    seq: int = Field(ge=1)
    entry: str = Field(pattern=r"^[0-9a-f]{64}$")
    settings: tuple[tuple[_Noise, _Rate, _Steps], ...] = Field(strict=False)


class PrivacyBudget:
    """What a site may spend, and has spent.

    Args:
        folder: the site's home.
        ledger: its ledger.
        options: the ``[privacy]`` table of site.toml.
    """

    def __init__(self, folder: Path, ledger: Ledger, options: BudgetOptions) -> None:
        self.path, self.options = folder / BUDGET_FILE, options
        self._ledger = ledger

    def charge(self, spend: Spend, *, run: str, round: int, stage: int) -> History:
        """Charge a round that is about to begin; what the run has been charged by now, this round included.

        Raises:
            Refusal: BUDGET_EXCEEDED: then nothing is charged.
            BudgetBroken: budget file and ledger do not agree.
            LedgerBroken, OSError: the ledger or the file cannot be written: then the round must not begin.
        """
        with self._ledger.locked():
            charges = self._agreed()
            after = merged([*(one.spend for one in charges), spend])
            total = epsilon(after, self.options.delta)
            if self._exceeds(total):
                raise Refusal(SiteError.BUDGET_EXCEEDED)
            told = {"delta": self.options.delta, "epsilon_rdp": total.rdp, "epsilon_prv": total.prv}
            entry = self._ledger.append(SPENT, run=run, round=round, stage=stage, **asdict(spend), **told)
            self._write(entry.seq, entry.sha256, after)
        return merged([*(one.spend for one in charges if one.run == run), spend])

    def would_exceed(self, plan: Sequence[tuple[int, Spend]], *, run: str) -> bool:
        """Whether what is left of a run would exceed the budget. Nothing is charged.

        Args:
            plan: stage and steps of all of the run's rounds, as far as none was played yet.
            run: charges for it so far are taken from the plan.

        Raises:
            BudgetBroken, LedgerBroken, OSError: as in `charge`.
        """
        if self.options.epsilon is None:
            return False
        with self._ledger.locked():
            charges = self._agreed()
        done: dict[int | None, int] = {}
        for charge in charges:
            if charge.run == run:
                done[charge.stage] = done.get(charge.stage, 0) + charge.spend.steps
        ahead = []
        for stage, spend in plan:
            steps = spend.steps - done.get(stage, 0)
            if steps > 0:
                ahead.append(Spend(spend.noise_multiplier, spend.sample_rate, steps))
        return self._exceeds(epsilon([*(one.spend for one in charges), *ahead], self.options.delta))

    def spent(self) -> History:
        """Everything that was charged.

        Raises:
            BudgetBroken, LedgerBroken, OSError: as in `charge`.
        """
        if not self.path.exists() and not self._ledger.path.exists():
            return ()  # nothing is made by looking
        with self._ledger.locked():
            return merged(one.spend for one in self._agreed())

    def rebuild(self, *, ledger_only: bool = False) -> History:
        """Make file and ledger agree again, at the larger of what both say; that it was done is in the ledger.

        Args:
            ledger_only: go on with what the ledger says where the file is gone or cannot be read. A ledger that was cut
                off then goes unnoticed, unless it is compared with a head that was noted down.

        Raises:
            BudgetBroken: the file is gone or cannot be read, and ``ledger_only`` was not said.
            LedgerBroken, OSError: the ledger or the file cannot be written.
        """
        with self._ledger.locked():
            charges = self._ledger.charges()
            try:
                file = self._read()
            except BudgetBroken:
                file = None
            if file is None and charges and not ledger_only:
                raise BudgetBroken(
                    f"{self.path.name} is gone or cannot be read, so that a cut-off ledger would not show"
                )
            known = {(one.noise_multiplier, one.sample_rate): one.steps for one in merged(c.spend for c in charges)}
            self._ledger.append("budget-rebuilt", file=None if file is None else file.seq, charges=len(charges))
            for noise, rate, steps in () if file is None else file.settings:
                lost = steps - known.get((noise, rate), 0)
                if lost > 0:
                    made_good = asdict(Spend(noise, rate, lost))
                    self._ledger.append(SPENT, run=None, round=None, stage=None, **made_good)
            charges = self._ledger.charges()
            history = merged(one.spend for one in charges)
            if charges:
                self._write(charges[-1].seq, charges[-1].sha256, history)
            else:
                self.path.unlink(missing_ok=True)
        return history

    def _exceeds(self, total: Epsilon) -> bool:
        return self.options.epsilon is not None and total.value > self.options.epsilon

    def _agreed(self) -> Sequence[Charge]:
        """The ledger's charges, once the file has been found to agree with them."""
        charges, file = self._ledger.charges(), self._read()
        if file is None:
            if len(charges) > 1:
                raise BudgetBroken(f"{self.path.name} is not there, though the ledger has {len(charges)} charges")
            return charges
        known = [one for one in charges if one.seq <= file.seq]
        if not known or (known[-1].seq, known[-1].sha256) != (file.seq, file.entry):
            raise BudgetBroken(
                f"{self.path.name} knows of a charge in entry {file.seq} that the ledger does not have: the ledger was "
                "cut off or put back to an older state"
            )
        if _settings(merged(one.spend for one in known)) != file.settings:
            raise BudgetBroken(
                f"{self.path.name} does not say what the ledger has up to entry {file.seq}: it was edited"
            )
        if len(charges) > len(known) + 1:  # one more is a crash between the two writes
            raise BudgetBroken(
                f"{self.path.name} ends with entry {file.seq}, and the ledger has {len(charges) - len(known)} charges "
                "behind it: the file was put back to an older state"
            )
        return charges

    def _read(self) -> _File | None:
        if not self.path.exists():
            return None
        try:
            return _File.model_validate_json(self.path.read_bytes())
        except ValidationError:
            raise BudgetBroken(f"{self.path.name} is not the budget file of this version: it was edited") from None

    def _write(self, seq: int, entry: str, history: Iterable[Spend]) -> None:
        file = _File(format=1, seq=seq, entry=entry, settings=_settings(history))
        text = json.dumps(file.model_dump(mode="json"), indent=1) + "\n"
        write_atomically(self.path, text.encode(), private=True)


def _settings(history: Iterable[Spend]) -> tuple[tuple[float, float, int], ...]:
    return tuple((one.noise_multiplier, one.sample_rate, one.steps) for one in history)
