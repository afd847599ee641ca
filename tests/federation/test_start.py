"""A run that begins at a later stage, or from given weights, is the run that it would have been."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aiseeme_models.errors import InputError
from server.global_model import backbone_of, flat_backbone, new_backbone, read_backbone, save_weights
from server.run_start import Start
from tests.conftest import tiny_config

ROTATION = {"task": "rotation", "rounds": 2, "batch_size": 4, "lr": 0.01}
SIMCLR = {"task": "simclr", "rounds": 2, "batch_size": 4, "lr": 0.01}


def configured(*stages, norm="group"):
    return tiny_config(model={"backbone": "tiny", "norm": norm}, curriculum={"stage": list(stages)})


@pytest.mark.parametrize("norm", ["group", "batch", "batch-local"])
@pytest.mark.parametrize("distill", [None, {"weight": 1.0, "kind": "mse"}])
def test_two_runs_of_one_stage_each_give_the_bits_of_a_run_of_both(norm, distill, federation):
    if norm == "batch-local" and distill:
        pytest.skip("refused: no teacher's statistics are known")
    last = SIMCLR | ({"distill": distill} if distill else {})
    whole = federation(configured(ROTATION, last, norm=norm), where="whole").play()[1]
    alone = configured(ROTATION, norm=norm)
    first = backbone_of(alone, 0, federation(alone, where="first").play()[1])
    both = configured(ROTATION, last, norm=norm)
    loop = federation(both, where="second").loop()
    loop.begins = Start(1, flat_backbone(both, 1, first))
    state, second = loop.play()
    np.testing.assert_array_equal(second, whole)
    assert (state.round, state.stages[1].rounds_done) == (4, 2)


def test_a_run_that_begins_later_is_resumed_to_the_same_bits(federation):
    both = configured(ROTATION, SIMCLR)
    begins = Start(1, flat_backbone(both, 1, new_backbone(configured(ROTATION))))
    whole = federation(both, where="whole").loop()
    whole.begins = begins
    crashed = federation(both, where="crashed")

    class Crash(BaseException):
        pass

    def crash(*_):
        raise Crash

    loop = crashed.loop()
    loop.begins = begins
    loop.observer.round_done = crash
    with pytest.raises(Crash):
        loop.play()
    loop = crashed.loop()
    loop.begins = begins
    np.testing.assert_array_equal(loop.play()[1], whole.play()[1])


def test_given_weights_are_where_the_run_begins(federation):
    config = configured(SIMCLR)
    other = new_backbone(tiny_config(seed=11))
    given = federation(config, where="given").loop()
    given.begins = Start(0, flat_backbone(config, 0, other))
    fresh = federation(config, where="fresh").play()[1]
    assert (given.play()[1] != fresh).any()


def test_weights_come_back_from_a_file_of_torchvision_s_names(tmp_path):
    config = tiny_config()
    written = new_backbone(tiny_config(seed=11))
    save_weights(tmp_path, written)
    tensors = written.state_dict() | {"fc.weight": torch.zeros(5, 8), "fc.bias": torch.zeros(5)}
    save_file(tensors, tmp_path / "with-head.safetensors")
    for name in ("backbone.safetensors", "with-head.safetensors"):
        read = read_backbone(tmp_path / name, config)
        assert all(torch.equal(value, written.state_dict()[key]) for key, value in read.state_dict().items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "conv2.bias"}, "not those of a tiny with group norm"),
        (lambda t: t | {"conv2.bias": torch.zeros(9)}, "not those of a tiny"),
        (lambda t: t | {"extra": torch.zeros(1)}, "not those of a tiny"),
        (lambda t: t | {"conv2.bias": torch.full((8,), float("nan"))}, "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, says, tmp_path):
    tensors = {key: value.contiguous() for key, value in new_backbone(tiny_config()).state_dict().items()}
    save_file(change(tensors), tmp_path / "given.safetensors")
    with pytest.raises(InputError, match=says):
        read_backbone(tmp_path / "given.safetensors", tiny_config())


def test_a_pickle_is_refused_unopened(tmp_path):
    torch.save(new_backbone(tiny_config()).state_dict(), tmp_path / "given.safetensors")
    with pytest.raises(InputError, match="may run code"):
        read_backbone(tmp_path / "given.safetensors", tiny_config())
