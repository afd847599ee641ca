"""A run as a person sees it: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from aiseeme_models.printable import LONGEST_LINE
from federation_configs.command_line import shown
from server.observer import Silent

if TYPE_CHECKING:
    from aiseeme_models.curriculum.stages import Stage
    from federation_configs.schema import FederationConfig
    from server.partitions import PartitionRow
    from server.replies import Refused
    from server.run_state import RunState

_LISTED = 10
_RECENT_ROUNDS = 3


class Progress(Silent):
    """Shows stage, round, sites, loss, images/s and the time that is left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.on_state: Callable[[RunState], object] = lambda state: None
        self._bars: Bars | None = None
        self._config: FederationConfig | None = None
        self._stage: int | None = None
        self._options: Stage | None = None
        self._round_speed: list[float] = []
        self._rounds_s_before = 0.0
        self._recent_s: deque[float] = deque(maxlen=_RECENT_ROUNDS)

    def say(self, text: str) -> None:
        """One line of text, shown as it is."""
        self.console.print(shown(text, LONGEST_LINE), highlight=False, soft_wrap=True)

    @contextmanager
    def reading(self, folder: Path) -> Iterator[Callable[[], None]]:
        """While images are read; gives what to call per image."""
        if not self.console.is_terminal:
            self.say(f"reading {folder}")
            yield lambda: None
            return
        with Bars(
            TextColumn("reading {task.fields[folder]}"), TextColumn("{task.completed} new files"), console=self.console
        ) as bars:
            task = bars.add_task("", folder=shown(str(folder)), total=None)
            yield lambda: bars.advance(task)

    def start(
        self,
        config: FederationConfig,
        folder: Path,
        table: Sequence[PartitionRow],
        left_out: Sequence[tuple[str, dict[str, int]]],
        missing: int,
    ) -> None:
        """Who takes part in a simulation, with what."""
        classes = list(table[0].classes) if table else []
        title = (
            f"{shown(config.name)}: {len(table)} simulated hospitals (a group is a patient or lesion, never divided)"
        )
        sites = Table(title=title)
        for title in ("site", "images", "groups", *classes):
            sites.add_column(shown(title), justify="left" if title == "site" else "right", no_wrap=True)
        for row in table:
            sites.add_row(shown(row.site), str(row.images), str(row.groups), *(str(row.classes[c]) for c in classes))
        self.console.print(sites)
        for where, reasons in left_out[:_LISTED]:
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            names = f"aiseeme-site images {where} --left-out --home {folder.parent}"
            self.say(f"left out of {where}: {counts}; `{names}` names the files")
        if missing:
            self.say(f"labels.csv names {missing} files that are not there")
        self.begin(config, folder)

    def begin(self, config: FederationConfig, folder: Path) -> None:
        """A run begins or goes on."""
        self._config = config
        self.say(
            f"run {folder.name}: {config.rounds} rounds in {len(config.curriculum.stage)} stages, files in {folder}"
        )
        if self.console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bars.start()
            self._rounds_task = self._bars.add_task("rounds", total=config.rounds, detail="")
            self._step_task = self._bars.add_task("site", total=None, detail="")

    def stop(self) -> None:
        """Take the bar away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def site_step(self, site: str, step: int, steps: int, loss: float) -> None:
        """A site of this machine made an optimiser step."""
        if self._bars is not None:
            self._bars.update(
                self._step_task, description=shown(site), completed=step, total=steps, detail=f"loss {loss:.3f}"
            )

    def round_started(self, config: FederationConfig, state: RunState, round_number: int, attempt: int) -> None:
        """See `Observer`."""
        options = config.curriculum.stage[state.stage]
        if not attempt:
            self._round_speed.clear()
            self._rounds_s_before = state.rounds_s
        if state.stage != self._stage:
            self._recent_s.clear()
        self._stage, self._options = state.stage, options
        if attempt:
            self.say(
                f"round {round_number}: asking the missing sites again ({attempt} of {config.federation.round_retries})"
            )
        if self._bars is not None:
            self._bars.update(
                self._rounds_task,
                completed=state.round,
                detail=f"stage {state.stage + 1}/{len(state.stages)} {options.title}",
            )

    def sites_described(self, state: RunState, refused: dict[str, Refused]) -> None:
        """See `Observer`."""
        for site, why in refused.items():
            self.say(f"{site} is not there: {why.sentence}")

    def site_answered(self, site: str, images: int, seconds: float, loss: float | None) -> None:
        """See `Observer`."""
        seen = images if self._options is None else self._options.images_seen(images)
        self._round_speed.append(seen / max(seconds, 1e-9))

    def site_missed(self, site: str, why: Refused) -> None:
        """See `Observer`."""
        self.say(f"{site} does not count: {why.sentence}")

    def round_done(self, state: RunState, loss: float | None, heldout: float | None) -> None:
        """See `Observer`."""
        self.on_state(state)
        if self._bars is not None:
            self._bars.update(self._rounds_task, completed=state.round)
        assert self._config is not None
        speed = sum(self._round_speed) / len(self._round_speed) if self._round_speed else 0.0
        # Rounds of another stage take another time, and the first ones of a run are slow.
        self._recent_s.append(state.rounds_s - self._rounds_s_before)
        left = sum(self._recent_s) / len(self._recent_s) * _rounds_left(self._config, state)
        answered = len(self._round_speed)
        spent = [site.epsilon for site in state.sites.values() if site.epsilon is not None]
        parts = ([] if loss is None else [f"loss {loss:.3f}"]) + ([f"epsilon {max(spent):.2f}"] if spent else [])
        parts += [] if heldout is None else [f"held-out {heldout:.3f}"]
        self.say(
            f"{time.strftime('%H:%M:%S')} round {state.round}/{self._config.rounds}: {', '.join(parts)},"
            f" {answered}/{len(state.sites)} sites, {speed:.0f} images/s, about {_duration(left)} left"
        )

    def stage_done(self, config: FederationConfig, state: RunState, stage: int) -> None:
        """See `Observer`."""
        record = state.stages[stage]
        self.say(
            f"stage {stage + 1}/{len(state.stages)} {config.curriculum.stage[stage].title} ended by {record.stopped_by}"
            f" after {record.rounds_done} rounds"
        )

    def note(self, text: str) -> None:
        """See `Observer`."""
        self.say(text)


def _rounds_left(config: FederationConfig, state: RunState) -> int:
    """The most rounds that can still come; a plateau may have ended stages before."""
    if state.finished:
        return 0
    return sum(stage.rounds for stage in config.curriculum.stage[state.stage :]) - state.round_in_stage


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
