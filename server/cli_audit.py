"""``aiseeme audit``: what a model ties together, where it looks, and what it gives away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aiseeme_models.errors import InputError
from aiseeme_models.printable import LONGEST_LINE, printable
from federation_configs.command_line import console
from server.cli_options import Device, Federation, Json, OwnImages, Partition, Runs, Sites, check_simulated

if TYPE_CHECKING:
    from server.bias_report import BiasReport

audit_app = typer.Typer(
    no_args_is_help=True, help="Audit a model: what it ties together, where it looks, what it gives away."
)


@audit_app.callback()
def _group() -> None:
    """Audit a model: what it ties together, where it looks, what it gives away."""


@audit_app.command()
def bias(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id or its beginning, or its folder.")],
    data: OwnImages = None,
    sites: Sites = None,
    partition: Partition = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(help="Two groups of images: sex=female:sex=male, age=0..39:age=60..", show_default=False),
    ] = None,
    attributes: Annotated[
        list[str] | None,
        typer.Option(help="Two attributes they may be tied to: label=mel,bcc:label=nv,bkl", show_default=False),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="A block, or BLOCK/map or BLOCK/pooled (default: all).", show_default=False),
    ] = None,
    untrained: Annotated[int, typer.Option(help="Untrained networks to compare with, 5 to 32.")] = 8,
    images: Annotated[
        int, typer.Option(help="Most images of a hospital, one of a patient: a multiple of 64, at most 1024.")
    ] = 512,
    subgroups: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns among whose values a classifier is tested: sex,site or age=..39,40..59,60..",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    runs: Runs = None,
    federation: Federation = None,
    as_json: Json = False,
) -> None:
    """Tell which groups of images a model ties to which attributes, beside what untrained networks do.

    Every pair of --groups is tested with every pair of --attributes, on test patients. A launched run's own hospitals
    are asked, which needs the federation to be served; with --data, and for a simulated run, some are simulated.
    """
    from aiseeme_models.analysis.bias import FEWEST_UNTRAINED
    from aiseeme_models.training.device import choose_device
    from federation_configs.audit_messages import LARGEST_AUDIT, MOST_UNTRAINED
    from federation_configs.wire import SMALLEST_COMPARISON
    from server.asked_audit import AskedAudit, parse_tests
    from server.audit_at_hospitals import audit_own, audit_simulated
    from server.model_reference import find_model
    from server.progress import Progress
    from server.run_folder import runs_home, was_launched
    from server.subgroups import parse_subgroups

    tests = parse_tests(groups or [], attributes or [])
    if not tests and not subgroups:
        raise InputError("say what to audit: --groups with --attributes, or --subgroups of a classifier, or both")
    if images % SMALLEST_COMPARISON or not SMALLEST_COMPARISON <= images <= LARGEST_AUDIT:
        raise InputError(
            f"--images {images}: give a multiple of {SMALLEST_COMPARISON} from {SMALLEST_COMPARISON} to {LARGEST_AUDIT}"
        )
    if not FEWEST_UNTRAINED <= untrained <= MOST_UNTRAINED:
        raise InputError(f"--untrained {untrained}: give {FEWEST_UNTRAINED} to {MOST_UNTRAINED} networks")
    asked = AskedAudit(tests, tuple(layers or ()), untrained, images, tuple(parse_subgroups(subgroups or [])))
    screen = console(stderr=as_json)
    home, progress = runs_home(runs, federation), Progress(screen)
    found = find_model(run, home)
    if not data and was_launched(found.folder.parent):
        check_simulated(sites=sites, partition=partition, device=device != "auto")
        report, file = audit_own(found, asked, progress)
    else:
        report, file = audit_simulated(
            found,
            data or [],
            asked,
            sites=sites,
            partition=partition,
            device=choose_device(device),
            home=home,
            progress=progress,
        )
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    _show(report)
    typer.echo(printable(f"figures: {file}", LONGEST_LINE))


def _show(report: BiasReport) -> None:
    from server.bias_tables import gaps_table, sites_table, subgroups_table, tests_table

    screen = console()
    if report.tests:
        screen.print(tests_table(report))
        screen.print(sites_table(report))
    if report.subgroups:
        screen.print(subgroups_table(report))
    if report.gaps:
        screen.print(gaps_table(report))
    for sentence in report.sentences:
        typer.echo(printable(sentence, LONGEST_LINE))
