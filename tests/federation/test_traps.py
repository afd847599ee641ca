"""Known traps of the libraries underneath, shown, and that we do not fall into them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from monai.losses import ContrastiveLoss
from torch.utils._python_dispatch import TorchDispatchMode

from aiseeme_models.backbones import build_backbone
from aiseeme_models.curriculum.stage_tasks import build_task
from aiseeme_models.pretext import pretext_tasks
from aiseeme_models.pretext.simclr import nt_xent
from aiseeme_models.training.shared_state import layout_of
from federation_configs.aggregation import FedAvgOptions
from federation_configs.flower import FLWR_VERSION
from server.aggregation import UpdateRefused, build_aggregation
from server.final_files import _stage
from server.flower_adapter import act_as, name_message, site_index
from server.run_state import StageState


def replies(*arrays):
    return [
        RecordDict({"a": ArrayRecord({"x": Array(array)}), "m": MetricRecord({"num-examples": 1})}) for array in arrays
    ]


def test_flower_s_averaging_turns_counters_into_floats_and_ours_never_sees_one():
    mean = aggregate_arrayrecords(replies(np.array([3], np.int64), np.array([5], np.int64)), "num-examples")
    assert mean["x"].numpy().dtype == np.float64  # the trap
    task = build_task(
        "rotation",
        build_backbone("resnet-small", norm="batch", in_channels=3),
        pretext_tasks["rotation"].options_type(),
        "batch",
    )
    assert any("num_batches_tracked" in name for name in task.state_dict())
    assert not any("num_batches_tracked" in entry.name for entry in layout_of(task, "batch").entries)


def test_flower_s_averaging_lets_one_nan_through_and_ours_refuses_it(tmp_path):
    good, bad = np.ones(4, np.float32), np.array([1, np.nan, 1, 1], np.float32)
    assert np.isnan(aggregate_arrayrecords(replies(good, bad), "num-examples")["x"].numpy()).any()  # the trap
    mean = build_aggregation("fedavg", FedAvgOptions().model_dump())
    mean.start_round(np.zeros(4, np.float32), max_weight=2, scratch=tmp_path)
    mean.fold(good, 1)
    with pytest.raises(UpdateRefused):
        mean.fold(bad, 1)
    np.testing.assert_array_equal(mean.finish_round(), good)


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def test_monai_s_contrastive_loss_makes_a_tensor_of_all_pairs_of_features_and_ours_does_not():
    batch, width = 32, 64
    first, second = torch.randn(batch, width), torch.randn(batch, width)
    with LargestTensor() as theirs:
        expected = ContrastiveLoss(temperature=0.5)(first, second)
    with LargestTensor() as ours:
        loss = nt_xent(first, second, 0.5)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert theirs.largest == (2 * batch) ** 2 * width  # the trap: why it is 75 to 370 times slower
    assert ours.largest == (2 * batch) ** 2


@pytest.mark.parametrize(("last", "near"), [(1.13, True), (1.05, True), (0.9, False)])
def test_a_task_that_stays_near_chance_is_known_as_such(last, near):
    """Dermoscopy has no upright: rotation ended at 1.05 to 1.13, where chance is 1.39."""
    record = StageState(losses=[1.4, last], rounds_done=2, stopped_by="rounds", chance_loss=float(np.log(4)))
    assert _stage("rotation", 2, record).near_chance is near
    assert not _stage("byol", 2, record.model_copy(update={"chance_loss": None})).near_chance


def test_what_flower_does_not_document_is_still_there():
    """The contract of `server.flower_adapter` and `server.local_grid` with the pinned flwr."""
    import flwr

    assert flwr.__version__ == FLWR_VERSION
    act_as(run_id=7, node_id=1)
    message = Message(RecordDict(), 2, "train", ttl=5.0)
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.ttl) == (7, 1, 5.0)
    name_message(message, "abc")
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "abc"
    context = Context(run_id=7, node_id=2, node_config={"partition-id": 3}, state=RecordDict(), run_config={})
    assert site_index(context) == 3
