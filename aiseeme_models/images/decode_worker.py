"""A process that decodes files for `DecodePool`, so that a decoder's crash, hang or hunger costs one file.

It reads one JSON task per line from its standard input and answers with JSON lines; decoded squares go through
shared memory. It imports no torch and no pydantic: it starts in a quarter of a second.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import resource
import select
import signal
import sys
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from aiseeme_models.images.picture import Picture
from aiseeme_models.images.pipeline import Pipeline, square
from aiseeme_models.images.reading import read_bytes, read_pictures
from aiseeme_models.images.rejection import ImageRejected, RejectReason

HEADER_BYTES = 64
"""Shared memory starts with the id of the file at work (int64, -1 between files); the slots follow."""

IDLE = -1
_LINES_AT_ONCE = 32


class Worker:
    """The loop of the process.

    Args:
        settings: what the pool passes on the command line.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        window = settings["pipeline"].pop("window")
        self.pipeline = Pipeline(**settings["pipeline"], window=None if window is None else (window[0], window[1]))
        self.admitted = frozenset(RejectReason(reason) for reason in settings["admitted"])
        self.seconds = float(settings["seconds"])
        slots = int(settings["slots"])
        self.memory = mmap.mmap(int(settings["memory_fd"]), 0)
        self.at_work = np.frombuffer(self.memory, np.int64, 1)
        count = slots * int(np.prod(self.pipeline.shape))
        self.slots = np.frombuffer(self.memory, np.uint8, count, HEADER_BYTES).reshape(slots, *self.pipeline.shape)
        self.used = 0
        self.answers = os.dup(1)
        self.lines: list[bytes] = []
        self.tasks: deque[Any] = deque()
        self.rest = b""
        limit = int(settings["memory_bytes"])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        # What decoders print may quote the file.
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        warnings.simplefilter("ignore")

    def run(self) -> None:
        """Work until standard input is closed."""
        self._say({"ready": True})
        while (task := self._next()) is not None:
            self._decode(int(task["id"]), Path(task["path"]))

    def _decode(self, number: int, path: Path) -> None:
        """Answer for one file. The alarm is left to the system's default: it ends this process, whatever it is in."""
        self.at_work[0] = number
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        found: list[dict[str, Any]] = []
        content, reason, handed_over = "", None, False
        try:
            data = read_bytes(path)
            content = hashlib.sha256(data).hexdigest()
            for picture in read_pictures(data, self.pipeline.reading):
                if self.used == len(self.slots):
                    self._hand_over({"id": number, "content": content, "pictures": found})
                    handed_over, found = True, []
                found.append(self._entry(picture))
            if not found and not handed_over:
                reason = RejectReason.NO_PIXELS
        except ImageRejected as rejected:
            reason = rejected.reason
        except MemoryError:
            reason = RejectReason.TOO_LARGE
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._say({"id": number, "pictures": found, "content": content, "reason": reason})
        self.at_work[0] = IDLE
        if self.used == len(self.slots):
            self._hand_over({})

    def _entry(self, picture: Picture) -> dict[str, Any]:
        """One image: what the catalogue keeps of it, and its square in a slot if the policy lets it in."""
        image, quality = square(picture.pixels, self.pipeline)
        findings = picture.findings + ((RejectReason.NEAR_BLANK,) if quality.near_blank else ())
        slot = None
        if self.admitted.issuperset(findings):
            slot = self.used
            self.slots[slot] = image
            self.used += 1
        return {
            "frame": picture.frame,
            "slot": slot,
            "facts": list(vars(picture.facts).values()),
            "subject": list(vars(picture.subject).values()),
            "pixel_hash": picture.pixel_hash,
            "findings": findings,
            "saturated": quality.saturated,
        }

    def _hand_over(self, part: dict[str, Any]) -> None:
        """All slots are full: give them away and wait until the pool has copied them."""
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)  # waiting for the pool is not the file's time
        self._say({"full": True} | part)
        self._flush()
        later = []
        while (line := self._next()) is not None and line != "go":
            later.append(line)
        self.tasks.extendleft(reversed(later))
        if line is None:
            raise SystemExit(0)
        self.used = 0
        signal.setitimer(signal.ITIMER_REAL, left)

    def _say(self, answer: dict[str, Any]) -> None:
        self.lines.append(json.dumps(answer, separators=(",", ":")).encode())
        if len(self.lines) >= _LINES_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(line + b"\n" for line in self.lines)
        self.lines.clear()
        while data:
            data = data[os.write(self.answers, data) :]

    def _next(self) -> Any:
        """The next line of standard input, or None at its end; answers are sent before this waits."""
        while not self.tasks:
            if not select.select([0], [], [], 0)[0]:
                self._flush()
            read = os.read(0, 65536)
            if not read:
                self._flush()
                return None
            *lines, self.rest = (self.rest + read).split(b"\n")
            self.tasks.extend(json.loads(line) for line in lines)
        return self.tasks.popleft()


if __name__ == "__main__":
    # Only the pool decides when this ends; Ctrl-C reaches every process of a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Worker(json.loads(sys.argv[1])).run()
