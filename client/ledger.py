"""The site's ledger: what was asked, by whom, what was computed here, and what left. Append-only and hash-chained.

One JSON object a line. Every entry carries its number, its time, and the sha256 of the line before it (with its end of
line, so that ``tail -n 1 ledger.jsonl | sha256sum`` gives the head). Whoever can write the file can write another whole
chain: what proves that nothing was changed or cut off is a head that was noted down elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiseeme_models.atomic_files import flush_folder
from client.charges import SPENT, Charge
from client.ledger_chain import GENESIS, RECOVERED, TORN, Chain, Entry, LedgerBroken, line_of

LEDGER_FILE = "ledger.jsonl"

__all__ = ["GENESIS", "LEDGER_FILE", "Check", "Entry", "Ledger", "LedgerBroken"]


@dataclass(frozen=True)
class Check:
    """What `Ledger.check` found.

    Attributes:
        entries: how many there are.
        head: sha256 of the last entry's line.
        problems: what does not hold together, in words; empty for an unbroken chain.
        notes: what happened and is no tampering: writes that were cut off by a crash or a full disk.
    """

    entries: int
    head: str
    problems: list[str]
    notes: list[str]


class Ledger:
    """The ledger in a file. Several processes and threads may append; each entry is on the disk when `append` returns.

    Args:
        path: the file, readable by its owner only; made with the first entry.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        self._mutex = threading.RLock()
        self._file: io.BufferedRandom | None = None
        self._chain = Chain()
        self._nonces: set[str] = set()
        self._trainings: list[tuple[datetime, float]] = []
        self._comparisons: list[tuple[datetime, int]] = []
        self._charges: list[Charge] = []

    @classmethod
    def in_home(cls, folder: Path) -> Ledger:
        """The ledger of the site whose home is ``folder``."""
        return cls(folder / LEDGER_FILE)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other process or thread appends in the block, so that what was looked up still holds when it is entered.

        Raises:
            LedgerBroken: the chain is broken.
            OSError: the file cannot be opened for writing.
        """
        with self._mutex:
            if self._file is not None:
                yield
                return
            with self._opened() as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    self._file = file
                    for entry in self._chain.follow(file):
                        self._remember(entry)
                    yield
                finally:
                    self._file = None
                    fcntl.flock(file, fcntl.LOCK_UN)  # a process that was forked meanwhile holds it too

    def append(self, kind: str, **fields: Any) -> Entry:
        """Add an entry and have the disk keep it.

        Args:
            kind: what happened: asked, refused, started, answered, failed, started-up, joined, spent.
            fields: JSON values. Nothing that names a file, a patient or an exception.

        Raises:
            LedgerBroken: the chain is broken.
            OSError: the entry could not be written, for instance because the disk is full; then there is none.
        """
        with self.locked():
            if self._chain.torn:
                # One write: an end for the line that was cut off, which makes it no JSON, and the note of it.
                end = b"" if self._chain.torn.endswith(b"\n") else TORN
                lost = self._chain.torn + end
                noted = {"bytes": len(lost), "sha256": hashlib.sha256(lost).hexdigest()}
                self._write(RECOVERED, noted, lead=end)
            return self._write(kind, fields)

    def entries(self, on_problem: Callable[[str], None] | None = None) -> Iterator[Entry]:
        """Every entry in order, as the file has them now.

        Args:
            on_problem: told of each place where the chain is broken; the reading goes on behind it.

        Raises:
            LedgerBroken: the chain is broken, and no ``on_problem`` was given.
        """
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            yield from Chain(on_problem).follow(file)

    def check(self, head: str | None = None) -> Check:
        """Read the whole ledger, and say whether it is one unbroken chain.

        Args:
            head: a head that was noted down: there must be an entry with it, so that nothing up to that entry can have
                been changed or cut off.
        """
        problems: list[str] = []
        notes: list[str] = []
        chain = Chain(problems.append)
        count, found = 0, head in (None, GENESIS)
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # an entry that is being written is not one that was cut off
            for entry in chain.follow(file):
                count += 1
                found = found or entry.sha256 == head
                if entry.kind == RECOVERED:
                    notes.append(f"entry {entry.seq}: the write before it was cut off (a crash, a full disk)")
            if chain.torn:
                notes.append("the last line is incomplete: its write was cut off (a crash, a full disk)")
        if not found:
            problems.append(f"no entry has the head {head}: entries up to it were changed or cut off")
        return Check(count, chain.head, problems, notes)

    def verify(self, head: str | None = None) -> list[str]:
        """What is wrong with the ledger, in words; empty where nothing is. See `check`."""
        return self.check(head).problems

    @property
    def head(self) -> str:
        """sha256 of the last entry's line: noted down elsewhere, it proves later that nothing was changed or cut off.

        Raises:
            LedgerBroken: the chain is broken.
        """
        head = GENESIS
        for entry in self.entries():
            head = entry.sha256
        return head

    def epochs_since(self, when: datetime) -> float:
        """Passes over the site's images in the trainings that began since ``when`` (an aware time), in all runs."""
        with self.locked():
            return sum(epochs for begun, epochs in self._trainings if begun >= when)

    def comparisons_since(self, when: datetime) -> int:
        """As how many comparisons of models count those that began since ``when`` (an aware time)."""
        with self.locked():
            return sum(count for begun, count in self._comparisons if begun >= when)

    def knows(self, nonce: str) -> bool:
        """Whether a coordinator's request with this nonce is entered, by any process and at any time."""
        with self.locked():
            return nonce in self._nonces

    def charges(self) -> tuple[Charge, ...]:
        """What was charged to the site's privacy budget, in order."""
        with self.locked():
            return tuple(self._charges)

    def _opened(self) -> io.BufferedRandom:
        new = not self.path.exists()
        if new:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        if new:
            flush_folder(self.path.parent)
        return os.fdopen(descriptor, "r+b")

    def _write(self, kind: str, fields: dict[str, Any], lead: bytes = b"") -> Entry:
        assert self._file is not None
        now = datetime.fromtimestamp(self._clock(), UTC)
        line, entry = line_of(self._chain, now, kind, fields)
        descriptor = self._file.fileno()
        before = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, lead + line)
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):  # what stays of it is recovered from, as after a crash
                os.ftruncate(descriptor, before)
            raise
        self._chain.accept(entry, line, lead)
        self._remember(entry)
        return entry

    def _remember(self, entry: Entry) -> None:
        fields = entry.fields
        if entry.kind == "asked" and fields.get("coordinator") and isinstance(fields.get("nonce"), str):
            self._nonces.add(fields["nonce"])
        if entry.kind == "started" and isinstance(fields.get("epochs"), (int, float)):
            self._trainings.append((entry.time, float(fields["epochs"])))
        if entry.kind == "started" and fields.get("what") in ("analyse", "assess", "audit"):
            count = fields.get("comparisons")  # entries of older versions have none
            self._comparisons.append((entry.time, max(1, count) if isinstance(count, int) else 1))
        if entry.kind == SPENT:
            charge = Charge.read(entry.seq, entry.sha256, fields)
            if charge is None:
                raise LedgerBroken(
                    f"the ledger does not hold together: entry {entry.seq} is a charge that says nothing"
                )
            self._charges.append(charge)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # a disk that is nearly full takes a part, and fails with the next
        rest = rest[os.write(descriptor, rest) :]
