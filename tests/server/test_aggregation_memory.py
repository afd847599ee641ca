"""The streamed mean takes two models of memory beside the reply, however many sites answer."""

import tracemalloc

import numpy as np
import pytest

from server.aggregation import build_aggregation

SIZE = 4_000_000
MODEL = 4 * SIZE


def peak_models(name, replies, folder):
    current = np.zeros(SIZE, dtype=np.float32)
    method = build_aggregation(name)
    tracemalloc.start()
    try:
        method.start_round(current, 1000, folder)
        for number in range(replies):
            update = np.full(SIZE, number / 7, dtype=np.float32)
            method.fold(update, 10)
            if number < replies - 1:
                del update
        result = method.finish_round()  # the last reply is still there, as it may be in a round loop
        peak = tracemalloc.get_traced_memory()[1] / MODEL
        del update
        held = tracemalloc.get_traced_memory()[0] / MODEL
    finally:
        tracemalloc.stop()
    assert result.size == SIZE
    return peak, held


@pytest.mark.parametrize("replies", [2, 20])
def test_the_mean_needs_three_models_with_the_reply(replies, tmp_path):
    peak, held = peak_models("fedavg", replies, tmp_path)
    assert peak < 3.3  # 2 of sums, 1 reply, and the cores' buffers
    assert held < 1.1, "the sums must be gone once the round is finished"


def test_folding_needs_no_copy_of_the_reply(tmp_path):
    update = np.ones(SIZE, dtype=np.float32)
    method = build_aggregation("fedavg")
    tracemalloc.start()
    try:
        method.start_round(update, 1000, tmp_path)
        for _ in range(5):
            method.fold(update, 10)
        method.finish_round()
        peak = tracemalloc.get_traced_memory()[1] / MODEL
    finally:
        tracemalloc.stop()
    assert peak < 2.3


def test_the_median_does_not_hold_all_replies(tmp_path):
    peak, _ = peak_models("median", 12, tmp_path)
    assert peak < 2 + 1 + 3 * 32 * 2**20 / MODEL
