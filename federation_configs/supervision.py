"""Processes that are kept alive: started again when they end or go deaf, and ended with the process that keeps them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer

from aiseeme_models.printable import LONGEST_LINE, printable

_PR_SET_PDEATHSIG = 1
_LOG_LIMIT = 20_000_000
_FIRST_DELAY_S, _LONGEST_DELAY_S = 1.0, 15.0
_LONGEST_WORDS = 2_000
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_STEADY_S = 60.0  # a process that lived so long is started again at once


@dataclass
class Kept:
    """One process that is kept alive.

    Attributes:
        name: what it is called in messages and log names.
        command: what is started; made anew for each start.
        environment: its whole environment.
        log: the file that takes its output; None: it goes where this process's goes.
        is_deaf: whether it lives and does nothing any more; it is then killed and started again.
        patience_s: how long after a start ``is_deaf`` is not asked.
        process: the running one.
    """

    name: str
    command: Callable[[], Sequence[str]]
    environment: Mapping[str, str]
    log: Path | None
    is_deaf: Callable[[], bool] | None = None
    patience_s: float = 30.0
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    starts: int = field(default=0, init=False)
    _started: float = field(default=0.0, init=False)
    _next: float = field(default=0.0, init=False)
    _delay: float = field(default=_FIRST_DELAY_S, init=False)

    @property
    def runs(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it; what it prints is appended to its log."""
        with contextlib.ExitStack() as opened:
            output = None
            if self.log is not None:
                self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                opened.callback(os.close, output)
            self.process = subprocess.Popen(
                list(self.command()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(self.environment),
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self.starts += 1
        self._started = time.monotonic()

    def tend(self, say: Callable[[str], None]) -> None:
        """Start it again where it has ended or gone deaf; call this about once a second."""
        now = time.monotonic()
        if self.process is None:
            if now >= self._next:
                self._try_to_start(say, now)
            return
        code = self.process.poll()
        if code is None:
            self.shorten_log()
            if self.is_deaf is not None and now - self._started > self.patience_s and self.is_deaf():
                say(f"{self.name} lives but does nothing any more: it is killed and started again")
                self.end(0.0)
                self._next = now
            return
        steady = now - self._started > _STEADY_S
        self._delay = _FIRST_DELAY_S if steady else min(self._delay * 2, _LONGEST_DELAY_S)
        self._next = now + (0.0 if steady else self._delay)
        say(f"{self.name} ended ({_in_words(code)}); it is started again in {max(0.0, self._next - now):.0f} s")
        if code > 0 and (words := self._last_words()):
            say(f"the last line of its log: {words}")
        kill_group(self.process.pid, signal.SIGKILL)  # what it had started
        self.process = None

    def _last_words(self) -> str:
        """The last line of its log, which often says why it ended."""
        if self.log is None:
            return ""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _LONGEST_WORDS))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
            return printable(_COLOURS.sub("", lines[-1]), LONGEST_LINE) if lines else ""
        return ""

    def shorten_log(self) -> None:
        """Keep its log below a size."""
        if self.log is not None:
            _shorten(self.log)

    def _try_to_start(self, say: Callable[[str], None], now: float) -> None:
        """Start it, or try again later: a disk that is full or a table of processes that is, may not be so for ever."""
        try:
            self.start()
        except OSError as error:
            self._delay = min(self._delay * 2, _LONGEST_DELAY_S)
            self._next = now + self._delay
            say(f"{self.name} cannot be started ({error.strerror}); it is tried again in {self._delay:.0f} s")

    def end(self, grace_s: float) -> None:
        """End it with all it started: asked first, killed after ``grace_s`` seconds."""
        if self.process is None:
            return
        if grace_s > 0 and self.process.poll() is None:
            kill_group(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        kill_group(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


def end_all(kept: Sequence[Kept], grace_s: float = 10.0) -> None:
    """End processes in the reverse order of their start, all asked first."""
    for one in reversed(kept):
        if one.runs and one.process is not None:
            kill_group(one.process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for one in reversed(kept):
        if one.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0.0, deadline - time.monotonic()))
        one.end(0.0)


def kill_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that leads its group, and to all in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


class StopAsked:
    """Whether SIGTERM or SIGINT came; a second one ends the process as usual."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)

    def wait(self, seconds: float) -> None:
        """Sleep, but not longer than until the signal."""
        end = time.monotonic() + seconds
        while not self.asked and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))


def say(text: str) -> None:
    """Show a line, with the time, to who keeps an eye on a service."""
    typer.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")


def _end_with_parent() -> None:
    """In a new child: have the kernel end it when the process that started it is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _shorten(log: Path) -> None:
    """Keep a log below a size: its writer appends, so what was copied away can be cut off."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LOG_LIMIT:
            shutil.copyfile(log, log.with_suffix(log.suffix + ".1"))
            log.with_suffix(log.suffix + ".1").chmod(0o600)
            os.truncate(log, 0)


def _in_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
