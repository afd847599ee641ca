"""Decoding files in processes of their own: a crash, a hang or a decompression bomb costs one file and nothing else."""

from __future__ import annotations

import json
import mmap
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.images.decode_worker import HEADER_BYTES, IDLE
from aiseeme_models.images.picture import ImageFacts, Subject
from aiseeme_models.images.pipeline import Pipeline
from aiseeme_models.images.rejection import RejectReason

_SLAB_BYTES = 32 * 2**20
_MOST_SLOTS = 512
# What is sent to a worker ahead of time must fit into a pipe, or both sides could wait for each other.
_PIPE_BYTES = 60_000
_AHEAD_BYTES = 8 * 2**20
_RESTARTS_IN_A_ROW = 5
# Freed memory is kept: giving 10 MB arrays back to the system and taking them again cost as much as decoding them.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


@dataclass(frozen=True)
class DecodeLimits:
    """What one file may cost.

    Attributes:
        seconds: wall time; a file that takes longer is TIMED_OUT.
        memory_bytes: address space of a decoding process; what needs more is TOO_LARGE (or crashes its decoder).
        workers: processes; None for one per core.
    """

    seconds: float = 120.0
    memory_bytes: int = 4 * 2**30
    workers: int | None = None


@dataclass(frozen=True)
class DecodeTask:
    """A file to decode.

    Attributes:
        number: names it in the outcome; at least 0.
        path: where it is.
        size: in bytes, to spread the work.
    """

    number: int
    path: Path
    size: int = 0


@dataclass(frozen=True)
class DecodedImage:
    """One image of a decoded file.

    Attributes:
        file: number of the file's task.
        frame: its number in the file.
        facts: what the header says.
        subject: whose it is, in clear: hash it before it is stored.
        pixel_hash: equal for equal images; see `Picture.pixel_hash`.
        findings: what a policy may object to.
        saturated: much of it is as bright as can be.
        square: ``(C, S, S)`` uint8, or None where a finding is not admitted.
    """

    file: int
    frame: int
    facts: ImageFacts
    subject: Subject
    pixel_hash: str
    findings: tuple[RejectReason, ...]
    saturated: bool
    square: NDArray[np.uint8] | None


@dataclass(frozen=True)
class DecodedFile:
    """What became of a file.

    Attributes:
        number: of the task.
        content: sha256 of the bytes that were decoded, in hex; "" where they could not be read.
        reason: why nothing of it can be used, or None.
        images: its images, none where there is a reason.
    """

    number: int
    content: str
    reason: RejectReason | None
    images: tuple[DecodedImage, ...] = ()


OnPart = Callable[[str, DecodedImage], None]


@dataclass(eq=False)
class _Process:
    """A worker and what it has been given."""

    process: subprocess.Popen[bytes]
    memory: mmap.mmap
    slots: NDArray[np.uint8]
    waiting: dict[int, tuple[DecodeTask, int]] = field(default_factory=dict)
    partial: dict[int, list[DecodedImage]] = field(default_factory=dict)
    rest: bytes = b""
    ready: bool = False

    @property
    def at_work(self) -> int:
        return int(np.frombuffer(self.memory, np.int64, 1)[0])


class DecodePool:
    """Decodes files in parallel; a context manager, so that its processes end with it.

    Args:
        pipeline: what images become.
        limits: what one file may cost.
        admitted: findings that do not keep an image out.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        limits: DecodeLimits = DecodeLimits(),
        admitted: frozenset[RejectReason] = frozenset(),
    ) -> None:
        self.pipeline, self.limits, self.admitted = pipeline, limits, admitted
        self._slot_bytes = int(np.prod(pipeline.shape))
        self._slots = max(1, min(_MOST_SLOTS, _SLAB_BYTES // self._slot_bytes))
        self._selector = selectors.DefaultSelector()
        self._processes: list[_Process] = []
        self._restarts = 0
        self._on_part: OnPart | None = None

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, whatever they are doing."""
        for worker in self._processes:
            self._selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
            worker.process.kill()
            worker.process.communicate()
        self._processes.clear()

    def decode(self, tasks: Iterable[DecodeTask], on_part: OnPart | None = None) -> Iterator[DecodedFile]:
        """The outcome of every task, as they are ready.

        Args:
            tasks: what to decode; taken as there is room for them.
            on_part: gets content hash and image of files of so many images that they come in parts. Those images have
                no square any more in the file's outcome, so that memory does not grow with a file. The file may still
                turn out to be rejected.

        Raises:
            RuntimeError: no worker can be kept alive, whatever it is given.
        """
        self._on_part = on_part
        upcoming = iter(tasks)
        again: deque[DecodeTask] = deque()
        first = next(upcoming, None)
        if first is None:
            return
        again.append(first)
        wanted = self.limits.workers or os.cpu_count() or 1
        while len(self._processes) < wanted:
            self._start()
        exhausted = False
        while True:
            for worker in self._processes:
                exhausted = self._feed(worker, again, upcoming) or exhausted
            if exhausted and not again and not any(worker.waiting for worker in self._processes):
                return
            for key, _ in self._selector.select():
                worker = key.data
                data = os.read(key.fd, 1 << 20)
                if data:
                    yield from self._answers(worker, data)
                else:
                    yield from self._ended(worker, again)

    def _start(self) -> None:
        size = HEADER_BYTES + self._slots * self._slot_bytes
        fd = os.memfd_create("aiseeme-decode", 0)
        os.ftruncate(fd, size)
        memory = mmap.mmap(fd, size)
        np.frombuffer(memory, np.int64, 1)[0] = IDLE
        settings = {
            "pipeline": asdict(self.pipeline),
            "admitted": sorted(self.admitted),
            "seconds": self.limits.seconds,
            "memory_bytes": self.limits.memory_bytes,
            "slots": self._slots,
            "memory_fd": fd,
        }
        # -P: a file called numpy.py in the current folder must not be imported.
        command = [sys.executable, "-P", "-m", "aiseeme_models.images.decode_worker", json.dumps(settings)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=(fd,),
            env=os.environ | _ENVIRONMENT,
        )
        os.close(fd)
        slots = np.frombuffer(memory, np.uint8, self._slots * self._slot_bytes, HEADER_BYTES)
        worker = _Process(process, memory, slots.reshape(self._slots, *self.pipeline.shape))
        self._processes.append(worker)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]

    def _feed(self, worker: _Process, again: deque[DecodeTask], upcoming: Iterator[DecodeTask]) -> bool:
        """Give ``worker`` enough to do; whether there are no further tasks."""
        lines: list[bytes] = []
        ahead = sum(length for _, length in worker.waiting.values())
        ahead_bytes = sum(task.size for task, _ in worker.waiting.values())
        exhausted = False
        while not worker.waiting or (ahead < _PIPE_BYTES // 2 and ahead_bytes < _AHEAD_BYTES):
            task = again.popleft() if again else next(upcoming, None)
            if task is None:
                exhausted = True
                break
            line = json.dumps({"id": task.number, "path": str(task.path)}).encode() + b"\n"
            worker.waiting[task.number] = (task, len(line))
            ahead, ahead_bytes = ahead + len(line), ahead_bytes + task.size
            lines.append(line)
        if lines:
            self._write(worker, b"".join(lines))
        return exhausted

    @staticmethod
    def _write(worker: _Process, data: bytes) -> None:
        assert worker.process.stdin is not None
        try:
            while data:
                data = data[worker.process.stdin.write(data) or 0 :]
        except BrokenPipeError:
            return  # it ended: its answers end too, and `_ended` gives its tasks to another

    def _answers(self, worker: _Process, data: bytes) -> Iterator[DecodedFile]:
        *lines, worker.rest = (worker.rest + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "ready" in answer:
                worker.ready = True
                continue
            number = answer.get("id")
            if number is not None:
                images = worker.partial.setdefault(number, [])
                part = [self._image(worker, number, entry) for entry in answer["pictures"]]
                if "full" in answer and self._on_part is not None:
                    for image in part:
                        self._on_part(answer["content"], image)
                    part = [replace(image, square=None) for image in part]
                images += part
            if "full" in answer:
                self._write(worker, b'"go"\n')
                continue
            self._restarts = 0
            del worker.waiting[number]
            images = worker.partial.pop(number)
            reason = None if answer["reason"] is None else RejectReason(answer["reason"])
            yield DecodedFile(number, answer["content"], reason, () if reason else tuple(images))

    @staticmethod
    def _image(worker: _Process, number: int, entry: dict[str, Any]) -> DecodedImage:
        return DecodedImage(
            file=number,
            frame=entry["frame"],
            facts=ImageFacts(*entry["facts"]),
            subject=Subject(*entry["subject"]),
            pixel_hash=entry["pixel_hash"],
            findings=tuple(RejectReason(finding) for finding in entry["findings"]),
            saturated=entry["saturated"],
            square=None if entry["slot"] is None else worker.slots[entry["slot"]].copy(),
        )

    def _ended(self, worker: _Process, again: deque[DecodeTask]) -> Iterator[DecodedFile]:
        """A worker ended on a file: that file is at fault, the rest of its tasks are for another worker."""
        culprit = worker.at_work
        self._selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        worker.process.communicate()
        self._processes.remove(worker)
        code = worker.process.returncode
        if culprit in worker.waiting:
            del worker.waiting[culprit]
            timed_out = code == -signal.SIGALRM
            yield DecodedFile(culprit, "", RejectReason.TIMED_OUT if timed_out else RejectReason.DECODER_CRASHED)
        else:
            self._restarts += 1
            if self._restarts > _RESTARTS_IN_A_ROW or not worker.ready:
                raise RuntimeError(f"the decoding process ends by itself with code {code}")
        again.extendleft(task for task, _ in reversed(worker.waiting.values()))
        self._start()
