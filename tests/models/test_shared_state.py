"""What crosses the wire is the backbone and the head, in a fixed order, and nothing that is local."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aiseeme_models.errors import InputError
from aiseeme_models.pretext import pretext_tasks
from aiseeme_models.training.shared_state import (
    flatten,
    layout_of,
    load_flat,
    load_local,
    local_tensors,
)

TASKS = list(pretext_tasks)
NORMS = ["group", "group-ws", "batch", "batch-local"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", TASKS)
def test_local_state_is_never_in_the_vector(name, norm, tiny_task):
    task = tiny_task(name, norm)
    layout = layout_of(task, norm)
    before = flatten(task, layout)
    with torch.no_grad():
        for tensor in (*task.local.parameters(), *task.local.buffers()):
            tensor.fill_(3)
    assert np.array_equal(flatten(task, layout), before)
    assert all(entry.name.startswith((entry.room + ".",)) for entry in layout.entries)
    assert {entry.room for entry in layout.entries} == {"backbone", "head"}


@pytest.mark.parametrize("name", TASKS)
def test_all_shared_parameters_are_in_it_and_statistics_as_the_norm_says(name, tiny_task):
    parameters = sum(weight.numel() for weight in tiny_task(name).shared.parameters())
    assert layout_of(tiny_task(name), "group").size == parameters
    with_batch = tiny_task(name, "batch")
    parameters = sum(weight.numel() for weight in with_batch.shared.parameters())
    statistics = sum(b.numel() for b in with_batch.shared.buffers() if b.is_floating_point())
    assert statistics > 0
    layout = layout_of(with_batch, "batch")
    assert layout.size == parameters + statistics
    assert sum(part.stop - part.start for part in layout.statistic_slices) == statistics
    local = layout_of(tiny_task(name, "batch-local"), "batch-local")
    assert local.size == parameters
    assert {entry.kind for entry in local.entries} == {"parameter"}


def test_the_slices_of_the_statistics_are_where_the_statistics_are(tiny_task):
    task = tiny_task("simclr", "batch")
    layout = layout_of(task, "batch")
    before = flatten(task, layout)
    for buffer in task.shared.buffers():
        if buffer.is_floating_point():
            buffer.add_(1)
    changed = np.zeros(layout.size, dtype=bool)
    for part in layout.statistic_slices:
        changed[part] = True
    assert np.array_equal(flatten(task, layout) != before, changed)


@pytest.mark.parametrize("name", TASKS)
def test_the_slices_of_the_variances_are_where_batch_norms_variances_are(name, tiny_task):
    task = tiny_task(name, "batch")
    layout = layout_of(task, "batch")
    before = flatten(task, layout)
    layers = [layer for layer in task.shared.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.running_var.add_(1)
    changed = np.zeros(layout.size, dtype=bool)
    for part in layout.variance_slices:
        changed[part] = True
    assert changed.sum() == sum(layer.num_features for layer in layers) > 0
    assert np.array_equal(flatten(task, layout) != before, changed)
    assert layout_of(tiny_task(name, "batch-local"), "batch-local").variance_slices == ()
    assert layout_of(tiny_task(name), "group").variance_slices == ()


@pytest.mark.parametrize("norm", NORMS)
def test_a_vector_and_the_local_tensors_are_the_whole_task(norm, tiny_task):
    task, other = tiny_task("moco", norm, seed=1), tiny_task("moco", norm, seed=2)
    task.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for buffer in task.buffers():
            buffer.add_(1)
    task.begin_round()
    layout = layout_of(task, norm)
    vector = flatten(task, layout)
    assert vector.dtype == np.float32
    assert vector.shape == (layout.size,)
    load_flat(other, layout, vector)
    load_local(other, layout, local_tensors(task, layout))
    for name, tensor in task.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_the_vector_is_a_copy(tiny_task):
    task = tiny_task("rotation")
    layout = layout_of(task, "group")
    vector = flatten(task, layout)
    kept = vector.copy()
    with torch.no_grad():
        task.backbone.conv1.weight.add_(1)
    assert np.array_equal(vector, kept)
    vector.setflags(write=False)
    load_flat(task, layout, vector)
    assert np.array_equal(flatten(task, layout), kept)


def test_the_backbone_comes_first_and_can_be_handed_to_the_next_stage(tiny_task):
    task, heir = tiny_task("rotation", "batch", seed=1), tiny_task("simclr", "batch", seed=2)
    layout, next_layout = layout_of(task, "batch"), layout_of(heir, "batch")
    vector = flatten(heir, next_layout)
    vector[: layout.backbone_size] = flatten(task, layout)[: layout.backbone_size]
    load_flat(heir, next_layout, vector)
    for name, tensor in task.backbone.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(heir.backbone.state_dict()[name], tensor)
    assert next_layout.backbone_size == layout.backbone_size
    assert [e for e in next_layout.entries if e.room == "backbone"] == [
        e for e in layout.entries if e.room == "backbone"
    ]


def test_the_digest_is_that_of_names_and_shapes(tiny_task):
    def digest(name="simclr", norm="group", **options):
        return layout_of(tiny_task(name, norm, **options), norm).digest

    assert digest() == digest(seed=5)
    assert len(digest()) == 64
    others = [
        digest(projection_dim=64),
        digest(hidden_dim=99),
        digest(norm="batch"),
        digest("rotation"),
        digest(backbone="resnet18"),
    ]
    assert len({digest(), *others}) == 6


@pytest.mark.parametrize(
    "spoil",
    [
        lambda vector: vector[:-1],
        lambda vector: vector.astype(np.float64),
        lambda vector: vector[None],
        lambda vector: vector[:1],
        lambda vector: vector[:0],
    ],
)
def test_a_vector_that_does_not_fit_is_refused_and_changes_nothing(spoil, tiny_task):
    task = tiny_task("rotation")
    layout = layout_of(task, "group")
    vector = flatten(task, layout)
    with pytest.raises(InputError, match="do not fit"):
        load_flat(task, layout, spoil(vector + 1))
    assert np.array_equal(flatten(task, layout), vector)


def test_local_tensors_leave_out_what_every_round_makes_anew(tiny_task):
    task = tiny_task("moco")
    assert set(local_tensors(task, layout_of(task, "group"))) == {"local.queue", "local.position"}
    assert local_tensors(tiny_task("byol"), layout_of(tiny_task("byol"), "group")) == {}
    silo = tiny_task("rotation", "batch-local")
    assert "shared.backbone.bn1.running_mean" in local_tensors(silo, layout_of(silo, "batch-local"))


def test_local_tensors_of_another_stage_are_refused(tiny_task):
    task = tiny_task("moco", queue=64)
    layout = layout_of(task, "group")
    kept = local_tensors(task, layout)
    with pytest.raises(InputError, match="does not fit"):
        load_local(tiny_task("moco", queue=32), layout, kept)
    with pytest.raises(InputError, match="does not fit"):
        load_local(task, layout, {})
