"""How many images a training step may have on this device, measured by making steps."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from aiseeme_models.curriculum.tuning.ladder import STEPS_OF_A_SIZE, ladder
from aiseeme_models.errors import is_out_of_memory
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.pretext.base import PretextTask
from aiseeme_models.training.loop import Images, NonFiniteLoss, train_round
from aiseeme_models.training.options import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHARE = 0.9  # of what is free; a step of another moment may need a little more
_SAMPLE_S = 0.002
_GROUP = Path("/sys/fs/cgroup")


class Usage:
    """What a process or a GPU uses, in bytes.

    Attributes:
        before: when `watched` was entered.
        peak: at most, while it was open.
        limit: how many there may be.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.before = 0
        self.peak = 0
        self.limit = 0

    def watched(self) -> AbstractContextManager[None]:
        """Measure ``peak``, in bytes, while this is open."""
        return self._cuda() if self._device.type == "cuda" else self._process()

    @contextmanager
    def _cuda(self) -> Iterator[None]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self.before = torch.cuda.memory_reserved(self._device)
        free, total = torch.cuda.mem_get_info(self._device)
        fraction = torch.cuda.get_per_process_memory_fraction(self._device)
        self.limit = int(_SHARE * min(free + torch.cuda.memory_reserved(self._device), fraction * total))
        try:
            yield
        finally:
            self.peak = torch.cuda.max_memory_reserved(self._device)

    @contextmanager
    def _process(self) -> Iterator[None]:
        process, over = psutil.Process(), threading.Event()
        _give_back()
        self.before = self.peak = process.memory_info().rss
        self.limit = int(_SHARE * (self.peak + _free_memory()))

        def sample() -> None:
            while not over.wait(_SAMPLE_S):
                self.peak = max(self.peak, process.memory_info().rss)

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        try:
            yield
        finally:
            over.set()
            sampler.join()


def largest_batch(
    task: PretextTask,
    images: Images,
    options: TrainingOptions,
    sizes: Sequence[int],
    *,
    augmentation: BatchAugmentation,
    seed: int,
    device: torch.device,
    usage: Usage | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> int:
    """The largest of some batch sizes with which the task can be trained in this device's memory; 0: none.

    Steps are made with one size after the other, the smallest first, no more than twice the one before. A size is not
    tried where it would not fit if it took in proportion to the one before: a CPU's process would be killed, not told.

    The task is trained on the way, so its weights are of no use afterwards.

    Args:
        task: any weights; changed in place.
        images: the site's training images; sizes above their number count as too large.
        options: the stage's.
        sizes: batch sizes.
        augmentation, seed, device: as in `training.loop.train_round`.
        usage: measures memory; default: that of the device.
        on_step: as in `training.loop.train_round`; what it raises ends the measurement.
    """
    usage = Usage(device) if usage is None else usage
    largest, last, taken = 0, 0, 0
    for size in ladder(sizes):
        if size > len(images) or size < task.minimum_batch:
            continue
        if last and usage.before + taken * size / last > usage.limit:
            break
        few = {"batch_size": size, "local_epochs": STEPS_OF_A_SIZE, "max_steps": STEPS_OF_A_SIZE}
        short = options.model_copy(update=few)
        try:
            with usage.watched():
                train_round(
                    task,
                    images,
                    short,
                    augmentation=augmentation,
                    seed=seed,
                    stage_progress=(0.0, 0.0),
                    device=device,
                    on_step=on_step,
                )
        except NonFiniteLoss:
            pass  # a rate that is too high takes as much memory
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            break
        if usage.peak > usage.limit:
            break
        last, taken = size, max(0, usage.peak - usage.before)
        if size in sizes:
            largest = size
    return largest


def _give_back() -> None:
    """Have the allocator give back what it holds and does not use, so that what a step takes can be seen."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # glibc has it, others do not
        ctypes.CDLL(None).malloc_trim(0)


def _free_memory() -> int:
    """Bytes that this process may still take: of the machine's, of its control group's, and of its own limit."""
    free: list[int] = [psutil.virtual_memory().available]
    data, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if data != resource.RLIM_INFINITY:
        free.append(max(0, data - psutil.Process().memory_info().data))
    try:
        most, used = (_GROUP / "memory.max").read_text(), int((_GROUP / "memory.current").read_text())
        told = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return min(free)  # no control group, or an old kind
    if most.strip() != "max":
        cached = sum(int(told.get(kind, 0)) for kind in ("inactive_file", "active_file", "slab_reclaimable"))
        free.append(max(0, int(most) - used + cached))  # what is cached of files is given up when it is needed
    return min(free)
