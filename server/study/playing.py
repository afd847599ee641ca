"""A study from its command to its table: every arm with every seed, each played once."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.downstream.folds import folds_version
from aiseeme_models.errors import InputError, RunFailed
from client.site_home import SiteHome
from federation_configs.loading import check_config, config_sha256, to_toml
from server.global_model import read_backbone
from server.model_manifest import WEIGHTS_FILE
from server.probing import ProbeImages, probe_images
from server.run_folder import CONFIG, held
from server.simulation import ENGINES, hospitals_of, versions
from server.study.arms import Arm, StudyKind
from server.study.bench import Bench
from server.study.cells import Cell
from server.study.compute import check_equal
from server.study.measures import measures_of
from server.study.plan import StudyPlan
from server.study.plot import write_plot
from server.study.table import StudyTable, study_table, write_table

if TYPE_CHECKING:
    from aiseeme_models.downstream.finetune import FineTuneOptions
    from client.site import Site
    from federation_configs.schema import FederationConfig
    from server.study.progress import StudyProgress

STUDIES = "studies"


@dataclass(frozen=True)
class Asked:
    """What a study is to be, beside its configuration.

    Attributes:
        kind: the kind's registered name.
        options: the kind's own.
        data: one folder that is dealt to ``sites`` sites by ``partition``, or one folder per site.
        sites: number of sites, for one folder.
        partition: how one folder is dealt, see `server.partitions`.
        seeds: how many; the first is the configuration's, the others follow it.
        finetune: the fine-tunings that are measured.
        folds: in how many folds of patients probes are measured too; 0: in none.
        initial: given weights, for kinds that have arms from them.
        engine: ``local`` or ``ray``.
        device: torch device.
        name: of the study's folder; None: made of kind and configuration.
    """

    kind: str
    options: StudyKind
    data: tuple[Path, ...]
    sites: int | None
    partition: str | None
    seeds: int
    finetune: tuple[FineTuneOptions, ...]
    folds: int
    initial: Path | None
    engine: str
    device: str
    name: str | None = None


def play_study(config: FederationConfig, asked: Asked, *, home: Path, progress: StudyProgress) -> StudyTable:
    """Play what is lacking of a study, and write its table and plot.

    Seeds are played one after the other, every arm with one before the next: after each the table is written anew. A
    cell that is there is not played again; a larger ``seeds`` adds to a study that is there. A cell that fails (a
    learning rate that diverges) is named in the table and tried again by the next command.

    Args:
        config: the federation.
        asked: the study.
        home: the folder of all runs.
        progress: shows what happens.

    Raises:
        InputError: data, configuration and study do not fit together, or the folder holds another study.
        RunFailed: a cell of the arm that the others are compared with failed; the ones before it are there.
    """
    if asked.engine not in ENGINES:
        raise InputError(f"--engine {asked.engine}: there are {', '.join(ENGINES)}")
    _check_comparable(config)
    arms = list(asked.options.arms(_scored_all_the_same(config)))
    folder = study_folder(home, config, asked)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        plan = _plan(config, asked)
        plan.check_folder(folder)
        # Everything that can be wrong is found before the first hour of training.
        benches = _benches(config, asked, folder, home, progress)
        for bench, images in benches:
            takes = [(arm, arm.compute(bench.config, bench.sites)) for arm in arms]
            check_equal({arm.title: compute for arm, compute in takes if compute.images})
            if bench is benches[0][0]:
                progress.study_begins(bench, folder, takes, asked.seeds, len(images.test.labels))
        plan.save(folder)
        write_atomically(folder / CONFIG, to_toml(config).encode())
        cells: list[Cell] = []
        failed: list[str] = []
        for bench, images in benches:
            for arm in arms:
                try:
                    cells.append(_cell(arm, bench, folder, progress))
                except RunFailed as failure:
                    if arm is arms[0]:  # nothing to compare the others with
                        raise
                    failed.append(str(failure))
                    progress.cell_failed(str(failure))
            table = study_table(
                asked.kind,
                config.name,
                arms,
                cells,
                measures_of(asked.finetune, asked.folds),
                train_images=len(images.train.labels),
                test_images=len(images.test.labels),
                tested=asked.options.tested,
                failed=failed,
            )
            write_table(folder, table)
            write_plot(folder, table)
        return table


def _benches(
    config: FederationConfig, asked: Asked, folder: Path, home: Path, progress: StudyProgress
) -> list[tuple[Bench, ProbeImages]]:
    """One for each seed: its sites, dealt and large enough, and what probes train and test on.

    Raises:
        InputError: what is lacking.
    """
    benches = []
    for seed in range(config.seed, config.seed + asked.seeds):
        seeded = check_config(config.model_dump(mode="json") | {"seed": seed}, where="the study")
        hospitals = hospitals_of(
            seeded, asked.data, asked.sites, asked.partition, asked.device, home, folder / "gathered", progress
        )
        _check_batches(seeded, hospitals.sites)
        store = SiteHome(home).store
        images = probe_images(seeded, hospitals.rows, store, device=asked.device, tested=asked.options.tested)
        if isinstance(images, str):
            raise InputError(f"a study needs labels to compare by: {images}")
        bench = Bench(
            config=seeded,
            sites=hospitals.sites,
            images=images,
            initial=asked.initial,
            finetune=asked.finetune,
            folds=asked.folds,
            folders=len(asked.data),
            home=home,
            engine=asked.engine,
            observer=progress,
        )
        bench.check_folds()
        benches.append((bench, images))
    return benches


def _check_batches(config: FederationConfig, sites: list[Site]) -> None:
    for site in sites:
        count = len(site.rows_of("train", config.holdout))
        for stage in config.curriculum.stage:
            if count < stage.batch_size:
                raise InputError(
                    f"{site.name} has {count} training images with seed {config.seed}, fewer than batch_size ="
                    f" {stage.batch_size} of {stage.task}: use a smaller batch, fewer sites or another partition"
                )


def study_folder(home: Path, config: FederationConfig, asked: Asked) -> Path:
    """Where a study's files are.

    Raises:
        InputError: its name is no folder's name.
    """
    name = f"{asked.kind}-{config.name}" if asked.name is None else asked.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise InputError(f"--name {name}: letters, digits, dots, dashes and underscores make a study's name")
    return home / STUDIES / name


def _cell(arm: Arm, bench: Bench, folder: Path, progress: StudyProgress) -> Cell:
    place = folder / "cells" / arm.name / f"seed-{bench.config.seed}"
    cell = Cell.load(place)
    if cell is not None:
        progress.cell_done(cell, there=True)
        return cell
    started = time.perf_counter()
    progress.cell_started(arm, bench.config.seed)
    try:
        models = arm.play(bench)
    except (RunFailed, InputError) as failure:
        raise RunFailed(f"{arm.title}, seed {bench.config.seed}: {failure}") from failure
    cell = Cell(
        arm=arm.name,
        title=arm.title,
        says=arm.says,
        seed=bench.config.seed,
        models=models,
        seconds=time.perf_counter() - started,
    )
    expected = arm.compute(bench.config, bench.sites)
    if (cell.steps, cell.images) != (expected.steps, expected.images):
        raise RunFailed(
            f"{arm.title}, seed {cell.seed}: its sites made {cell.steps:,} steps with {cell.images:,} images where"
            f" {expected.steps:,} with {expected.images:,} were planned: compute would not be equal"
        )
    cell.save(place)
    progress.cell_done(cell, there=False)
    return cell


def _scored_all_the_same(config: FederationConfig) -> FederationConfig:
    """The federation with stages that go on where features collapse: leaving such seeds out would flatter an arm."""
    stages = [stage.model_dump(mode="json") | {"on_collapse": "note"} for stage in config.curriculum.stage]
    return check_config(config.model_dump(mode="json") | {"curriculum": {"stage": stages}}, where="the study")


def _check_comparable(config: FederationConfig) -> None:
    """Refuse what makes arms stop or weigh patients otherwise than by the plan.

    Raises:
        InputError: what it is.
    """
    if config.privacy is not None or config.site_privacy is not None:
        raise InputError("a study compares without [privacy] and [site_privacy]: take them out")
    for index, stage in enumerate(config.curriculum.stage):
        if stage.tune is not None:
            raise InputError(
                f"curriculum.stage.{index} ({stage.task}): lr = 'auto' would find other settings for each arm, at a"
                " cost of its own: a study needs a number"
            )
        if stage.stop != "rounds":
            raise InputError(
                f"curriculum.stage.{index} ({stage.task}): stop = {stage.stop!r} would end arms after different work:"
                " a study needs stop = 'rounds'"
            )


def _plan(config: FederationConfig, asked: Asked) -> StudyPlan:
    return StudyPlan(
        kind=asked.kind,
        options=asked.options.model_dump(mode="json"),
        config_sha256=config_sha256(config),
        data=tuple(str(path.resolve()) for path in asked.data),
        sites=asked.sites,
        partition=asked.partition,
        finetune=asked.finetune,
        folds=asked.folds,
        initial_sha256=None if asked.initial is None else _weights_sha256(asked.initial, config),
        device=asked.device,
        threads=torch.get_num_threads(),
        versions=versions() | (folds_version() if asked.folds else {}),
    )


def _weights_sha256(initial: Path, config: FederationConfig) -> str:
    read_backbone(initial, config)  # what is wrong with it is said now
    files = [initial / "model" / WEIGHTS_FILE, initial / WEIGHTS_FILE, initial]
    return hashlib.sha256(next(file for file in files if file.is_file()).read_bytes()).hexdigest()
