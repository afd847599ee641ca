"""What of a task crosses the wire, as one flat float32 vector, and what stays at the site."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.errors import InputError
from aiseeme_models.pretext.base import PretextTask

Room = Literal["backbone", "head"]
Kind = Literal["parameter", "statistic", "variance"]
_ROOMS: tuple[Room, ...] = ("backbone", "head")


@dataclass(frozen=True)
class LayoutEntry:
    """One tensor of the vector.

    Attributes:
        name: its state-dict name within ``task.shared``.
        shape: its shape.
        room: the backbone crosses from stage to stage; the head is dropped at a stage's end.
        kind: statistics of batch norm, of which variances cannot be negative, stay out of server optimisers.
        frozen: it is not trained for all: the whole stage it is what it was at its start.
    """

    name: str
    shape: tuple[int, ...]
    room: Room
    kind: Kind
    frozen: bool = False

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class SharedLayout:
    """The order of the tensors in the vector: all of the backbone's, then all of the head's."""

    entries: tuple[LayoutEntry, ...]

    @cached_property
    def size(self) -> int:
        """Length ``P`` of the vector."""
        return sum(entry.size for entry in self.entries)

    @cached_property
    def backbone_size(self) -> int:
        """The first so many values are the backbone's."""
        return sum(entry.size for entry in self.entries if entry.room == "backbone")

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of names, shapes, rooms and kinds in order, and of what is frozen."""
        rows = [
            [entry.name, list(entry.shape), entry.room, entry.kind, *(["frozen"] if entry.frozen else [])]
            for entry in self.entries
        ]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def statistic_slices(self) -> tuple[slice, ...]:
        """Where in the vector the statistics lie, variances included."""
        return self._slices("statistic", "variance")

    @cached_property
    def variance_slices(self) -> tuple[slice, ...]:
        """Where in the vector the variances lie: values that are never negative in an honest update."""
        return self._slices("variance")

    @cached_property
    def frozen_slices(self) -> tuple[slice, ...]:
        """Where in the vector the tensors lie that are not trained."""
        return tuple(here for entry, here in zip(self.entries, self.slices, strict=True) if entry.frozen)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where in the vector each tensor lies, in order."""
        return self._slices("parameter", "statistic", "variance")

    def _slices(self, *kinds: Kind) -> tuple[slice, ...]:
        slices, start = [], 0
        for entry in self.entries:
            if entry.kind in kinds:
                slices.append(slice(start, start + entry.size))
            start += entry.size
        return tuple(slices)


def layout_of(task: PretextTask, norm: Norm) -> SharedLayout:
    """The layout of ``task.shared``. Integer buffers are never in it, float buffers only under norm ``"batch"``."""
    return _layout({room: task.shared[room] for room in _ROOMS}, norm, task.is_frozen)


def backbone_layout(backbone: Backbone) -> SharedLayout:
    """The layout of a backbone alone: the same as the first part of a task's."""
    return _layout({"backbone": backbone}, backbone.norm, lambda name: False)


def _layout(rooms: Mapping[Room, nn.Module], norm: Norm, is_frozen: Callable[[str], bool]) -> SharedLayout:
    entries = []
    for room, module in rooms.items():
        parameters = {name for name, _ in module.named_parameters()}
        for name, tensor in module.state_dict().items():
            is_parameter = name in parameters
            if is_parameter or (norm == "batch" and tensor.is_floating_point()):
                kind: Kind = "parameter" if is_parameter else _kind_of_buffer(name)
                whole = f"{room}.{name}"
                entries.append(LayoutEntry(whole, tuple(tensor.shape), room, kind, is_frozen(whole)))
    return SharedLayout(tuple(entries))


def flatten(task: PretextTask, layout: SharedLayout) -> npt.NDArray[np.float32]:
    """The shared tensors as one float32 vector ``(P,)``, a copy."""
    return _flatten(_shared(task.shared, layout.entries))


def load_flat(task: PretextTask, layout: SharedLayout, vector: npt.NDArray[np.float32]) -> None:
    """Put a vector ``(P,)`` float32 into the task, and re-derive what depends on it (`PretextTask.begin_round`).

    Raises:
        InputError: wrong length, shape or dtype.
    """
    _check(vector, layout.size)
    _load(_shared(task.shared, layout.entries), vector)
    task.begin_round()


def flatten_backbone(backbone: Backbone) -> npt.NDArray[np.float32]:
    """A backbone's own part of the vector ``(B,)`` float32, a copy."""
    return _flatten(_shared(nn.ModuleDict({"backbone": backbone}), backbone_layout(backbone).entries))


def load_backbone(backbone: Backbone, layout: SharedLayout, vector: npt.NDArray[np.float32]) -> None:
    """Put the backbone's part of a vector, ``(layout.backbone_size,)`` float32, into a backbone outside a task.

    Raises:
        InputError: wrong length, shape or dtype.
    """
    _check(vector, layout.backbone_size)
    state = backbone.state_dict()
    names = [entry.name.removeprefix("backbone.") for entry in layout.entries if entry.room == "backbone"]
    _load([state[name] for name in names], vector)


def local_tensors(task: PretextTask, layout: SharedLayout) -> dict[str, Tensor]:
    """Everything that a site must keep between rounds besides the vector, as contiguous CPU copies.

    Queues and memory banks, batch norm's counters and, if they are not shared, its statistics; not what
    `PretextTask.begin_round` makes anew.
    """
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in _local(task, layout).items()}


def load_local(task: PretextTask, layout: SharedLayout, tensors: Mapping[str, Tensor]) -> None:
    """Put `local_tensors` back, and re-derive what depends on them.

    A memory bank of another number of images is left as it is: images came or went.

    Raises:
        InputError: the tensors are not those of this task.
    """
    own = _local(task, layout)
    banks = {f"local.{name}" for name in task.per_image}
    fits = {name: name in tensors and own[name].shape == tensors[name].shape for name in own}
    if own.keys() != tensors.keys() or not all(fits[name] for name in own.keys() - banks):
        raise InputError("the state kept at this site does not fit the task: it is of another stage or version")
    for name, tensor in own.items():
        if fits[name]:
            tensor.copy_(tensors[name])
    task.begin_round()


def _kind_of_buffer(name: str) -> Kind:
    """Batch norm calls its variances ``running_var``; its other float buffer is the mean."""
    return "variance" if name.rpartition(".")[2] == "running_var" else "statistic"


def _shared(shared: nn.ModuleDict, entries: tuple[LayoutEntry, ...]) -> list[Tensor]:
    state = shared.state_dict()
    return [state[entry.name] for entry in entries]


def _local(task: PretextTask, layout: SharedLayout) -> dict[str, Tensor]:
    shared = {f"shared.{entry.name}" for entry in layout.entries}
    rederived = tuple(f"local.{child}." for child in task.rederived)
    return {
        name: tensor
        for name, tensor in task.state_dict().items()
        if name not in shared and not name.startswith(rederived)
    }


def _flatten(tensors: list[Tensor]) -> npt.NDArray[np.float32]:
    if not tensors:
        return np.zeros(0, dtype=np.float32)
    flat: npt.NDArray[np.float32] = torch.cat([tensor.reshape(-1).cpu() for tensor in tensors]).numpy()
    return flat


def _check(vector: npt.NDArray[np.float32], size: int) -> None:
    if vector.dtype != np.float32 or vector.shape != (size,):
        raise InputError(
            f"the weights do not fit the model: float32 of shape ({size},) is needed, "
            f"got {vector.dtype} of shape {vector.shape}"
        )


def _load(tensors: list[Tensor], vector: npt.NDArray[np.float32]) -> None:
    # A read-only array is not written to; torch merely has no notion of one, so it is given a copy.
    source = torch.from_numpy(vector if vector.flags.writeable else vector.copy())
    start = 0
    for tensor in tensors:
        tensor.copy_(source[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
