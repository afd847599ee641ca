"""``aiseeme-site audit``: try to break this installation's differential privacy, on made-up images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from aiseeme_models.errors import InputError
from client.cli_options import Json
from federation_configs.command_line import console

if TYPE_CHECKING:
    from aiseeme_models.privacy.audit import AuditReport


_BACKBONE = "resnet-tiny"


def register(app: typer.Typer) -> None:
    """Add the command to ``aiseeme-site``."""
    app.command()(audit)


def audit(
    config: Annotated[str, typer.Argument(help="A TOML file with a [privacy] table, or a ready-made federation.")],
    stage: Annotated[int, typer.Option(min=1, help="Which stage of its curriculum.")] = 1,
    epsilon: Annotated[
        float, typer.Option(min=0.1, max=10, help="The claim that is put to the test: the noise is chosen for it.")
    ] = 1.0,
    canaries: Annotated[int, typer.Option(min=16, max=1000, help="Made-up patients whose presence is guessed.")] = 128,
    steps: Annotated[int, typer.Option(min=1, max=100, help="Training steps.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the made-up images and of who of them is there.")] = 0,
    as_json: Json = False,
) -> None:
    """Train on made-up images with canaries and try to tell which were there; exit code 1 where epsilon is refuted.

    The configuration's task, norm and clipping on the smallest backbone: the attack keeps every canary's gradient. No
    image of the hospital is read, and nothing is charged to its budget.
    """
    from aiseeme_models.backbones import build_backbone, initialise
    from aiseeme_models.curriculum.stage_tasks import build_task
    from aiseeme_models.privacy.accounting import noise_for
    from aiseeme_models.privacy.audit import audit as run_audit
    from aiseeme_models.seeding import generator
    from federation_configs.loading import load_config

    loaded = load_config(config)
    if loaded.privacy is None:
        raise InputError(f"{config}: it has no [privacy] table: there is no protection to audit")
    if stage > len(loaded.curriculum.stage):
        raise InputError(f"--stage {stage}: {loaded.name} has {len(loaded.curriculum.stage)} stages")
    options = loaded.privacy.model_copy(
        update={"noise_multiplier": noise_for(epsilon, loaded.privacy.delta, [(1.0, steps)])}
    )
    chosen, channels = loaded.curriculum.stage[stage - 1], loaded.images.resolved_preset.channels
    backbone = build_backbone(_BACKBONE, norm=loaded.model.norm, in_channels=channels)
    task = build_task(chosen.task, backbone, chosen.options, loaded.model.norm)
    initialise(task.shared, generator(seed, "audit"))
    task.reset_local(generator(seed, "audit", "local"))
    task.begin_round()
    with console(stderr=True).status(f"{canaries} canaries, {steps} steps"):
        report = run_audit(
            task, options, channels=channels, size=loaded.images.size, steps=steps, canaries=canaries, seed=seed
        )
    typer.echo(_json(report) if as_json else _words(report))
    if report.refutes:
        raise typer.Exit(1)


def _json(report: AuditReport) -> str:
    from dataclasses import asdict

    return json.dumps(asdict(report) | {"refutes": report.refutes}, indent=2)


def _words(report: AuditReport) -> str:
    verdict = (
        "REFUTED: patients are protected less than is claimed. Do not train with this installation."
        if report.refutes
        else "not refuted. That proves nothing by itself: a stronger attack may exist."
    )
    return "\n".join(
        [
            f"claimed by accounting:   epsilon {report.claimed:.2f} at delta {report.delta:g}",
            f"lower bound by guessing: epsilon {report.lower_bound:.2f} at {report.confidence:.0%} confidence"
            f" ({report.right} of {report.guesses} guesses right, {report.canaries} canaries)",
            f"membership by the loss:  AUC {report.loss_auc:.2f} (0.5 is chance)",
            verdict,
        ]
    )
