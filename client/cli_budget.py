"""``aiseeme-site budget``: what was spent of the patients' privacy, what is left, what a federation would cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.printable import LONGEST_LINE, printable
from client.cli_options import Home, Json

if TYPE_CHECKING:
    from aiseeme_models.privacy.spending import Spend
    from client.privacy import PrivacyBudget
    from client.site_home import SiteHome
    from federation_configs.schema import FederationConfig


def register(app: typer.Typer) -> None:
    """Add the command to ``aiseeme-site``."""
    app.command()(budget)


def budget(
    config: Annotated[
        str | None,
        typer.Argument(help="A federation's TOML file, or the name of a ready-made one: what would it cost here?"),
    ] = None,
    home: Home = None,
    patients: Annotated[
        int | None,
        typer.Option(min=1, help="Training patients to count with, instead of looking at the scanned folders."),
    ] = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Where budget file and ledger do not agree: go on with the larger of what both say."
        ),
    ] = False,
    ledger_only: Annotated[
        bool,
        typer.Option(
            "--ledger-only",
            help="With --rebuild, where the budget file is gone or cannot be read: believe the ledger. Compare it "
            "before with a head that you noted down (`aiseeme-site ledger verify --head`).",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what was spent of the patients' privacy, what is left, and what a federation would cost before it begins."""
    from client.charges import BudgetBroken
    from client.ledger import Ledger, LedgerBroken
    from client.privacy import PrivacyBudget
    from client.site_home import site_home

    if ledger_only and not rebuild:
        raise InputError("--ledger-only belongs to --rebuild")
    place = site_home(home)
    own = PrivacyBudget(place.folder, Ledger.in_home(place.folder), place.config.privacy)
    if not place.folder.is_dir():
        raise InputError(f"{place.folder}: no site has its home here")
    try:
        spent = own.rebuild(ledger_only=ledger_only) if rebuild else own.spent()
    except BudgetBroken as problem:
        if rebuild:
            raise RunFailed(
                f"{problem}; compare the ledger with a head that you noted down (`aiseeme-site ledger verify --head`), "
                "then say --ledger-only too"
            ) from None
        raise RunFailed(
            f"{problem}; the site trains nothing privately until this is settled. Find out what happened; "
            "`aiseeme-site budget --rebuild` then goes on with the larger of what both say"
        ) from None
    except LedgerBroken as problem:
        raise RunFailed(str(problem)) from None
    answer = _told(own, spent)
    if config is not None:
        answer["config"] = _cost(place, own, spent, config, patients)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    for line in _lines(answer):
        typer.echo(printable(line, LONGEST_LINE))


def _told(own: PrivacyBudget, spent: tuple[Spend, ...]) -> dict[str, Any]:
    from dataclasses import asdict

    from aiseeme_models.privacy.accounting import epsilon

    limit, delta = own.options.epsilon, own.options.delta
    total = epsilon(spent, delta)
    return {
        "delta": delta,
        "budget": limit,
        "spent": total.value,
        "spent_rdp": total.rdp,
        "spent_prv": total.prv,
        "left": None if limit is None else max(0.0, limit - total.value),
        "charges": [asdict(one) for one in spent],
    }


def _cost(
    place: SiteHome, own: PrivacyBudget, spent: tuple[Spend, ...], reference: str, patients: int | None
) -> dict[str, Any]:
    from aiseeme_models.privacy.accounting import epsilon
    from federation_configs.loading import load_config
    from federation_configs.privacy_plan import local_plan, planned

    config = load_config(reference)
    noise = own.options.local_noise
    if config.privacy is None and noise is None:
        return {"name": config.name, "private": False, "allowed": own.options.epsilon is None}
    count = _patients(place, config) if patients is None else patients
    if config.privacy is None and noise is not None:
        plan = [one for _, one in local_plan(noise, config)]
    else:
        plan = [one for _, one in planned(config, count)]
    delta, limit = own.options.delta, own.options.epsilon
    after = epsilon([*spent, *plan], delta).value
    return {
        "name": config.name,
        "private": True,
        "patients": count,
        "alone": epsilon(plan, delta).value,
        "after": after,
        "allowed": limit is None or after <= limit,
    }


def _patients(place: SiteHome, config: FederationConfig) -> int:
    """As the site would count them when it is asked to describe itself."""
    from client.site import Site
    from client.survey import Survey

    site = Site(
        name="here",
        folder=place.folder,
        rows=[],
        store=place.store,
        state_folder=place.folder / "state",
        limits=place.config.intake.limits,
    )
    surveyed = Survey(place, site, place.config.policy.allowed_cohorts)(config.images, True)
    return surveyed.training_patients(config.holdout)


def _lines(answer: dict[str, Any]) -> list[str]:
    delta, limit = answer["delta"], answer["budget"]
    steps = sum(one["steps"] for one in answer["charges"])
    lines = [
        f"spent: epsilon {answer['spent']:.2f} at delta {delta:g}, by {steps:,} steps over all runs and coordinators",
        "budget: none is set ([privacy] epsilon in site.toml): private training is counted, and never refused"
        if limit is None
        else f"budget: epsilon {limit:g}, of which {answer['left']:.2f} is left",
    ]
    cost = answer.get("config")
    if cost is None:
        return lines
    if not cost["private"]:
        verdict = "which this site lets in" if cost["allowed"] else "which this site refuses"
        return [*lines, f"{cost['name']}: trains without differential privacy, {verdict}"]
    verdict = "within the budget" if cost["allowed"] else "MORE THAN THE BUDGET: this site would refuse it"
    return [
        *lines,
        f"{cost['name']}: epsilon {cost['alone']:.2f} by itself with {cost['patients']:,} training patients; with what "
        f"was spent before, {cost['after']:.2f}{'' if limit is None else f': {verdict}'}",
    ]
