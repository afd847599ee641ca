"""A whole federation on one machine: this module plays both sides, with the code that also runs for real."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aiseeme_models import __version__
from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.images.labels import PHANTOM_COLUMN
from aiseeme_models.training.device import choose_device
from client.app import make_client_app
from client.grouping import lasting_names
from client.own_head import lay_own_head_down
from client.scanning import CatalogueRow, Scan, scan
from client.site import Site
from client.site_home import SiteHome
from federation_configs.downstream import learns_labels
from federation_configs.loading import config_sha256, load_config, to_toml
from federation_configs.schema import FederationConfig
from server.asked_sites import Reached
from server.assessment import assess
from server.final_files import FinalFiles
from server.flower_adapter import site_index
from server.given_start import GivenStart, given_start
from server.global_model import backbone_of
from server.local_grid import LocalGrid
from server.partitions import Assignment, PartitionRow, assign, parse_partition, partition_table
from server.probing import probe_run
from server.progress import Progress
from server.registry import RunRegistry, new_run_id
from server.results import Results
from server.rounds import RoundLoop
from server.run_folder import CONFIG, SimulationPlan, existing_registry, held, registry_url

if TYPE_CHECKING:
    import numpy as np
    from flwr.serverapp import Grid
    from numpy.typing import NDArray

    from server.run_state import RunState


@dataclass(frozen=True)
class Hospitals:
    """The simulated sites and what a person is told about them."""

    sites: list[Site]
    table: list[PartitionRow]
    rows: list[CatalogueRow]
    left_out: list[tuple[str, dict[str, int]]]
    missing: int

    @property
    def images_sha256(self) -> str:
        """Digest of which image is at which site."""
        digest = hashlib.sha256()
        for site in self.sites:
            lines = sorted(f"{row.content} {row.point} {row.label}" for row in site.rows)
            digest.update("\n".join([site.name, *lines, ""]).encode())
        return digest.hexdigest()


def simulate(
    config: FederationConfig,
    data: Sequence[Path],
    *,
    sites: int | None,
    partition: str | None,
    engine: str,
    device: str,
    home: Path,
    progress: Progress,
    initial: Path | None = None,
    dealt_by: int | None = None,
) -> Results:
    """Play a federation from the start.

    Args:
        config: the federation.
        data: one folder that is dealt to ``sites`` sites by ``partition``, or one folder per site.
        sites: number of sites, for one folder.
        partition: how one folder is dealt, see `server.partitions`.
        engine: ``local`` (this process) or ``ray``.
        device: torch device of the sites.
        home: the folder of all runs.
        progress: shows what happens.
        initial: a run, model or file whose backbone it begins with; None: a fresh one.
        dealt_by: the seed by which one folder is dealt to sites; None: the configuration's.

    Raises:
        InputError: data, partition and configuration do not fit together.
        RunFailed: the run failed; its folder says why.
    """
    if engine not in ENGINES:
        raise InputError(f"--engine {engine}: there are {', '.join(ENGINES)}")
    given = None if initial is None else GivenStart.of(initial, config)
    run = new_run_id()
    folder = home / run
    home.mkdir(parents=True, exist_ok=True)
    hospitals = hospitals_of(config, data, sites, partition, device, home, folder, progress, dealt_by)
    if len(hospitals.sites) < config.federation.min_sites:
        raise InputError(
            f"{len(hospitals.sites)} sites are fewer than federation.min_sites = {config.federation.min_sites}:"
            " give more sites or lower min_sites"
        )
    plan = SimulationPlan(
        data=tuple(str(path.resolve()) for path in data),
        sites=sites,
        partition=partition,
        engine=engine,
        device=device,
        images_sha256=hospitals.images_sha256,
        threads=torch.get_num_threads(),
        versions=versions(),
        initial=given,
        dealt_by=dealt_by,
    )
    with held(folder):
        write_atomically(folder / CONFIG, to_toml(config).encode())
        plan.save(folder)
        registry = RunRegistry(registry_url(home))
        registry.create(
            id=run,
            name=config.name,
            seed=config.seed,
            config_sha256=config_sha256(config),
            version=__version__,
            rounds_total=config.rounds,
            sites_total=len(hospitals.sites),
            folder=str(folder.resolve()),
            pid=os.getpid(),
        )
        return _play(config, hospitals, plan, folder, registry, progress)


def resume(run: str, *, home: Path, progress: Progress) -> Results:
    """Go on with a run that was interrupted or failed, to the bits it would have had without.

    Raises:
        InputError: no such run, it is done, another process plays it, or its images are not those it began with.
        RunFailed: it failed again.
    """
    registry = existing_registry(home)
    row = registry.get(run)
    if row.status == "done":
        raise InputError(f"{row.id} is done; `aiseeme show {row.id}` shows it")
    folder = home / row.id
    with held(folder):
        config, plan = load_config(folder / CONFIG), SimulationPlan.load(folder)
        choose_device(plan.device)
        torch.set_num_threads(plan.threads)  # sums in another number of parts end in other bits
        if plan.versions != versions():
            progress.say(f"{row.id} began with {plan.versions} and goes on with {versions()}: the bits may differ")
        data = [Path(path) for path in plan.data]
        hospitals = hospitals_of(
            config, data, plan.sites, plan.partition, plan.device, home, folder, progress, plan.dealt_by
        )
        if hospitals.images_sha256 != plan.images_sha256:
            raise InputError(f"{row.id}: the images in {', '.join(plan.data)} are not those that the run began with")
        registry.update(row.id, {"status": "running", "reason": "", "pid": os.getpid()})
        return _play(config, hospitals, plan, folder, registry, progress)


def _in_words(failure: Exception) -> str:
    if isinstance(failure, OSError) and failure.strerror:
        return f"{failure.filename or 'a file'}: {failure.strerror}"
    return str(failure)


def versions() -> dict[str, str]:
    """What may change bits: the versions of AISEEME and torch."""
    return {"aiseeme": __version__, "torch": torch.__version__}


def hospitals_of(
    config: FederationConfig,
    data: Sequence[Path],
    sites: int | None,
    partition: str | None,
    device: str,
    home: Path,
    folder: Path,
    progress: Progress,
    dealt_by: int | None = None,
) -> Hospitals:
    """The simulated sites of a federation.

    Args:
        config: the federation.
        data, sites, partition, device, home, dealt_by: see `simulate`.
        folder: of the run; the sites' state goes below it.
        progress: shows what happens.

    Raises:
        InputError: they do not fit together.
    """
    if not data:
        raise InputError("--data: name a folder with images, or one folder per hospital")
    for path in data:
        if not path.is_dir():
            raise InputError(f"--data {path}: no such folder")
    if len(data) > 1 and (sites is not None or partition is not None):
        raise InputError("--sites and --partition deal ONE folder; with several --data each folder is a hospital")
    if len(data) == 1 and sites is None:
        raise InputError("--sites: say over how many hospitals the folder is dealt, or give --data once per hospital")
    # What is wrong with the partition is said before thousands of images are read.
    dealing = parse_partition(partition or "iid") if len(data) == 1 else None
    site_home = SiteHome(home)
    scans = [_scan(path, config, site_home, progress) for path in data]
    if dealing is None:
        assignment = Assignment(
            site_of_row=[index for index, one in enumerate(scans) for _ in one.rows],
            site_names=_folder_names(data),
        )
    else:
        rows = scans[0].rows
        columns = sorted({column for row in rows for column in row.columns})
        assignment = assign(
            dealing,
            sites=sites or 1,
            groups=lasting_names(rows),
            labels=[row.label for row in rows],
            columns={column: [row.columns.get(column, "") for row in rows] for column in columns},
            seed=config.seed if dealt_by is None else dealt_by,
        )
    return _deal(scans, assignment, site_home, folder, device, progress)


def _deal(
    scans: Sequence[Scan],
    assignment: Assignment,
    home: SiteHome,
    folder: Path,
    device: str,
    progress: Progress,
) -> Hospitals:
    placed = [(one, row) for one in scans for row in one.rows]
    rows = [row for _, row in placed]
    sites = []
    for index, name in enumerate(assignment.site_names):
        mine = [pair for pair, site in zip(placed, assignment.site_of_row, strict=True) if site == index]
        # Files that nobody can read have no label to be dealt by: with one folder the first site is told of them.
        one = scans[index] if len(scans) > 1 else scans[0]
        told = len(scans) > 1 or index == 0
        sites.append(
            Site(
                name=name,
                folder=one.root,
                rows=[row for _, row in mine],
                rejected=one.reasons if told else {},
                store=home.store,
                limits=home.config.intake.limits,
                state_folder=folder / "sites" / name,
                device=device,
                on_step=progress.site_step,
            )
        )
    return Hospitals(
        sites=sites,
        table=partition_table(assignment, [row.group for row in rows], [row.label for row in rows]),
        rows=rows,
        left_out=[(str(one.folder), one.reasons) for one in scans if one.reasons],
        missing=sum(len(one.missing) for one in scans),
    )


def _scan(path: Path, config: FederationConfig, home: SiteHome, progress: Progress) -> Scan:
    with progress.reading(path) as on_file:
        return scan(path, home, config.images.pipeline, on_file=on_file)


def _folder_names(data: Sequence[Path]) -> list[str]:
    """Site names from folder names; the folders' numbers where those are not names or not different."""
    names = ["".join(c if c.isalnum() and c.isascii() else "-" for c in path.resolve().name.lower()) for path in data]
    names = [name.strip("-")[:40] for name in names]
    return names if all(names) and len(set(names)) == len(names) else [f"site-{i + 1}" for i in range(len(data))]


def _play(
    config: FederationConfig,
    hospitals: Hospitals,
    plan: SimulationPlan,
    folder: Path,
    registry: RunRegistry,
    progress: Progress,
) -> Results:
    started = time.perf_counter()
    progress.start(config, folder, hospitals.table, hospitals.left_out, hospitals.missing)
    progress.on_state = lambda state: registry.update(folder.name, {"rounds_done": state.round})
    phantom = all(row.columns.get(PHANTOM_COLUMN) == "yes" for row in hospitals.rows)
    classes = {row.site: row.classes for row in hospitals.table}
    began_with = None if plan.initial is None else plan.initial.sentence
    files = FinalFiles(config, folder, classes=classes, phantom=phantom, initial=began_with)
    loops: list[RoundLoop] = []

    def make_loop(grid: Grid, clock: Callable[[], float], parallel: bool) -> RoundLoop:
        names = [site.name for site in hospitals.sites]
        begins = given_start(plan.initial, config, folder)
        loops.append(RoundLoop(grid, config, folder.name, folder, names, progress, clock, parallel, begins=begins))
        return loops[0]

    try:
        state, vector = ENGINES[plan.engine](make_loop, hospitals.sites)
        progress.stop()
        backbone = backbone_of(config, len(state.stages) - 1, vector)
        seconds = loops[0].earlier_s
        if learns_labels(config):
            assessed = assess(config, vector, hospitals.sites, run=folder.name, device=plan.device)
            for site in hospitals.sites:
                lay_own_head_down(site, folder.name)
            results = files.classified(
                state, vector, assessed, loops[0].tested, seconds + time.perf_counter() - started
            )
        else:
            store = SiteHome(folder.parent).store
            probe = probe_run(config, backbone, hospitals.rows, store, device=plan.device, say=progress.say)
            results = files.done(state, backbone, probe, seconds + time.perf_counter() - started)
    except (RunFailed, InputError, OSError) as failure:
        progress.stop()
        reason = _in_words(failure)
        registry.update(folder.name, {"status": "failed", "reason": reason, "pid": None})
        try:
            files.failed(reason, time.perf_counter() - started)
        except OSError as error:  # the disk that failed the run may not take its report either
            progress.say(f"the results of the failed run could not be written: {error.strerror}")
        raise RunFailed(reason) from failure
    finally:
        progress.stop()
    registry.finish(results)  # first: a run that is killed before it is resumed, and needs what its sites have kept
    for site in hospitals.sites:  # what else the sites kept between rounds has served its purpose
        shutil.rmtree(site.state_folder / "runs" / folder.name, ignore_errors=True)
    return results


def local_grid(sites: Sequence[Site]) -> LocalGrid:
    """A Grid of these sites in this process."""
    return LocalGrid(make_client_app(lambda context: sites[site_index(context)]), len(sites))


def reached(sites: Sequence[Site]) -> Reached:
    """The way to these sites in this process."""
    grid = local_grid(sites)
    return Reached(grid, [site.name for site in sites], grid.clock)


MakeLoop = Callable[["Grid", Callable[[], float], bool], RoundLoop]
Played = tuple["RunState", "NDArray[np.float32]"]


def _local(make_loop: MakeLoop, sites: Sequence[Site]) -> Played:
    grid = local_grid(sites)
    return make_loop(grid, grid.clock, False).play()


def _ray(make_loop: MakeLoop, sites: Sequence[Site]) -> Played:
    from server.ray_engine import play_with_ray

    # A progress bar cannot follow a site into another process, and Ray shows each process one GPU, as the first.
    use_gpu = sites[0].device.startswith("cuda")
    distant = [replace(site, on_step=None, device="cuda" if use_gpu else "cpu") for site in sites]
    client_app = make_client_app(lambda context: distant[site_index(context)])
    return play_with_ray(
        client_app, len(sites), lambda grid: make_loop(grid, time.monotonic, True).play(), use_gpu=use_gpu
    )


ENGINES: dict[str, Callable[[MakeLoop, Sequence[Site]], Played]] = {"local": _local, "ray": _ray}
