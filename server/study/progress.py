"""A study as a person sees it: one line for each cell, and on a terminal a bar that shows what is being played."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from federation_configs.command_line import shown
from server.progress import Progress
from server.study.measures import title_of

if TYPE_CHECKING:
    from federation_configs.schema import FederationConfig
    from server.run_state import RunState
    from server.study.arms import Arm
    from server.study.bench import Bench
    from server.study.cells import Cell
    from server.study.compute import Compute


class StudyProgress(Progress):
    """Told of cells by the study, and of the rounds in them by the round loop."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._read: set[Path] = set()
        self._cells = self._done = 0
        self._playing = ""
        self._study_bars: Bars | None = None

    @contextmanager
    def reading(self, folder: Path) -> Iterator[Callable[[], None]]:
        """See `Progress.reading`; what was read for one seed need not be told of again."""
        if folder in self._read:
            yield lambda: None
            return
        self._read.add(folder)
        with super().reading(folder) as on_file:
            yield on_file

    def study_begins(
        self, bench: Bench, folder: Path, takes: Sequence[tuple[Arm, Compute]], seeds: int, tested: int
    ) -> None:
        """What will be compared, at which compute, by how many test images; the first seed's bench stands for all."""
        table = Table(title=shown(f"{bench.config.name}: what is compared"))
        for name in ("arm", "optimiser steps", "steps x images", "what it is"):
            table.add_column(name, justify="right" if "steps" in name else "left", overflow="fold")
        for arm, compute in takes:
            figures = (f"{compute.steps:,}", f"{compute.images:,}") if compute.images else ("-", "-")
            table.add_row(shown(arm.title), *figures, arm.says)
        self.console.print(table)
        counts = ((site.name, len(site.rows_of("train", bench.config.holdout))) for site in bench.sites)
        who = ", ".join(f"{name} {count}" for name, count in counts)
        self.say(f"training images with seed {bench.config.seed}: {who}; {tested} images test")
        self.say("steps x images counts an image once a step, however many views a task makes of it")
        self._cells = len(takes) * seeds
        self.say(f"{self._cells} cells ({len(takes)} arms, {seeds} seeds), files in {folder}")
        if self.console.is_terminal:
            self._study_bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._study_bars.start()
            self._cells_task = self._study_bars.add_task("cells", total=self._cells, detail="")

    def stop(self) -> None:
        """Take the bar away."""
        super().stop()
        if self._study_bars is not None:
            self._study_bars.stop()
            self._study_bars = None

    def cell_started(self, arm: Arm, seed: int) -> None:
        """An arm is played with a seed."""
        self._playing = f"{arm.title}, seed {seed}"
        self._tell(self._playing)

    def cell_done(self, cell: Cell, *, there: bool) -> None:
        """A cell is whole; ``there``: it was before this command."""
        self._done += 1
        measures = list(cell.models[0].scores)
        figures = ", ".join(f"{title_of(measure)} {cell.accuracy(measure):.3f}" for measure in measures)
        took = "was there" if there else f"{cell.seconds:.0f} s"
        self.say(f"{self._done}/{self._cells} seed {cell.seed}, {cell.title}: {figures} ({took})")
        for model in cell.models:
            for stage in model.stages:
                if stage.near_chance and not there:
                    self.say(f"    {model.name}: {stage.task} stayed near chance (loss {stage.loss:.3f})")
        if self._study_bars is not None:
            self._study_bars.update(self._cells_task, completed=self._done)

    def cell_failed(self, reason: str) -> None:
        """A cell could not be played; the study goes on without it."""
        self._done += 1
        self.say(f"{self._done}/{self._cells} FAILED: {reason}")

    def site_step(self, site: str, step: int, steps: int, loss: float) -> None:
        """See `Progress`: too much for a study."""

    def round_started(self, config: FederationConfig, state: RunState, round_number: int, attempt: int) -> None:
        """See `Observer`."""
        self._tell(f"{self._playing}: {config.curriculum.stage[state.stage].task} round {round_number}")

    def site_answered(self, site: str, images: int, seconds: float, loss: float | None) -> None:
        """See `Observer`."""

    def round_done(self, state: RunState, loss: float | None, heldout: float | None) -> None:
        """See `Observer`."""

    def stage_done(self, config: FederationConfig, state: RunState, stage: int) -> None:
        """See `Observer`."""

    def _tell(self, detail: str) -> None:
        if self._study_bars is not None:
            self._study_bars.update(self._cells_task, detail=shown(detail))
