"""How the ledger's lines hang together: numbered, each with the hash of the one before, and writes that were cut off.

A cut-off write leaves a last line without an end. It is never read as an entry: the next append ends it with `TORN`,
which makes it no JSON, and puts a ``recovered`` entry behind it that names its bytes by their hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

from aiseeme_models.errors import RunFailed

GENESIS = "0" * 64
"""What the first entry names as the line before it; the head of an empty ledger."""
TORN = b"#torn\n"
RECOVERED = "recovered"

_OWN = ("seq", "time", "previous", "kind")


class LedgerBroken(RunFailed):
    """The ledger is not one unbroken chain; nothing may be added to it."""


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        seq: its number, from 1.
        time: when it was written (UTC).
        previous: sha256 of the line before it.
        kind: asked, refused, started, answered, failed, started-up, joined, recovered.
        fields: what else it says.
        sha256: of its own line, with its end.
    """

    seq: int
    time: datetime
    previous: str
    kind: str
    fields: dict[str, Any]
    sha256: str

    def as_json(self) -> dict[str, Any]:
        """The entry as the ledger has it."""
        own = {"seq": self.seq, "time": _text(self.time), "previous": self.previous, "kind": self.kind}
        return own | self.fields


class Chain:
    """Follows a ledger, entry by entry, and goes on later where it stopped.

    Args:
        on_problem: told of each place where the chain is broken, and then goes on; without, that raises.

    Attributes:
        seq: number of the last entry, 0 before the first.
        head: sha256 of its line.
        torn: what stands behind it and is no entry: a write that was cut off.
    """

    def __init__(self, on_problem: Callable[[str], None] | None = None) -> None:
        self.seq, self.head, self.torn = 0, GENESIS, b""
        self._on_problem = on_problem
        self._lines, self._offset, self._last = 0, 0, 0

    def follow(self, file: IO[bytes]) -> Iterator[Entry]:
        """The entries from where it stopped to the end of ``file``.

        Raises:
            LedgerBroken: the chain is broken.
        """
        self._still_there(file)
        self.torn = b""
        for line in file:
            if not line.endswith(b"\n") or line.endswith(TORN):
                self.torn += line
                continue
            entry = self._read(line)
            if entry is None:
                self._pass(line)
                continue
            self.accept(entry, line)
            yield entry

    def accept(self, entry: Entry, line: bytes, lead: bytes = b"") -> None:
        """Go on behind ``entry``, whose ``line`` stands in the file, after ``lead`` where a cut-off write was ended."""
        self._pass(lead + line)
        self.seq, self.head, self._last = entry.seq, entry.sha256, len(line)

    def _pass(self, text: bytes) -> None:
        passed = self.torn + text
        self._lines, self._offset, self.torn = self._lines + passed.count(b"\n"), self._offset + len(passed), b""

    def _still_there(self, file: IO[bytes]) -> None:
        """The entry at which it stopped must be where it was."""
        if self._last:
            file.seek(self._offset - self._last)
            if hashlib.sha256(file.read(self._last)).hexdigest() != self.head:
                self._problem(f"entry {self.seq} is no longer where it was: the ledger was changed while it was used")
        file.seek(self._offset)

    def _read(self, line: bytes) -> Entry | None:
        entry, number = entry_of(line), self._lines + self.torn.count(b"\n") + 1
        if entry is None:
            self._problem(f"line {number}: this is no entry")
            return None
        where = f"line {number} (entry {entry.seq})"
        if entry.seq != self.seq + 1:
            self._problem(f"{where}: entry {self.seq + 1} was expected: entries are missing, added or in another order")
        elif entry.previous != self.head:
            self._problem(f"{where}: what stands before it was changed, or is not what it followed")
        lost = {"bytes": len(self.torn), "sha256": hashlib.sha256(self.torn).hexdigest()}
        if (entry.kind == RECOVERED) != bool(self.torn) or (self.torn and entry.fields != lost):
            self._problem(f"{where}: the line before it and what is said of it do not agree")
        return entry

    def _problem(self, text: str) -> None:
        if self._on_problem is None:
            raise LedgerBroken(f"the ledger does not hold together: {text}; `aiseeme-site ledger verify` says more")
        self._on_problem(text)


def line_of(chain: Chain, time: datetime, kind: str, fields: dict[str, Any]) -> tuple[bytes, Entry]:
    """The line that goes on with ``chain``, and its entry."""
    if clash := set(_OWN) & set(fields):
        raise ValueError(f"every entry has its own {', '.join(sorted(clash))}")
    entry = {"seq": chain.seq + 1, "time": _text(time), "previous": chain.head, "kind": kind} | fields
    line = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    read = entry_of(line)
    assert read is not None
    return line, read


def entry_of(line: bytes) -> Entry | None:
    """The entry in a line; None where it is none."""
    try:
        data = json.loads(line)
        own = {name: data.pop(name) for name in _OWN}
        when = datetime.fromisoformat(own["time"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if type(own["seq"]) is not int or when.tzinfo is None or not isinstance(own["kind"], str):
        return None
    digest = hashlib.sha256(line).hexdigest()
    return Entry(own["seq"], when, str(own["previous"]), own["kind"], data, digest)


def _text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")
