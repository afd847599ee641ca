"""What a site may not send is refused whole: the round ends as if that site had not answered."""

import numpy as np
import pytest

from aiseeme_models.errors import InputError, RunFailed
from server.aggregation import UpdateRefused, build_aggregation

EVERY = ["fedadam", "fedavg", "fedavgm", "fedprox", "median", "trimmed-mean"]
SIZE = 150_000
GOOD = np.linspace(-2, 2, SIZE, dtype=np.float32)


def with_last(value):
    """A good update but for its very last value, after everything else could have been folded in."""
    update = GOOD.copy()
    update[-1] = value
    return update


BAD = [
    ("not-finite", with_last(np.nan), 10),
    ("not-finite", with_last(np.inf), 10),
    ("not-finite", with_last(-np.inf), 10),
    ("out-of-range", with_last(4096.0), 10),
    ("out-of-range", with_last(-1e38), 10),
    ("shape", GOOD[:-1], 10),
    ("shape", GOOD[:1], 10),
    ("shape", GOOD.reshape(1, -1), 10),
    ("shape", np.array(1, dtype=np.float32), 10),
    ("dtype", GOOD.astype(np.float64), 10),
    ("dtype", np.arange(SIZE), 10),
    ("dtype", GOOD.astype(np.int32).view(np.int32), 10),
    ("dtype", GOOD.tolist(), 10),
    ("weight", GOOD, 0),
    ("weight", GOOD, -5),
    ("weight", GOOD, 1_000_000_000),
    ("weight", GOOD, 10.0),
    ("weight", GOOD, True),
    ("weight", GOOD, float("nan")),
]


@pytest.mark.parametrize("name", EVERY)
def test_refused_updates_leave_no_trace(name, tmp_path):
    honest = [(GOOD + np.float32(0.1), 10), (GOOD - np.float32(0.3), 20), (GOOD, 30)]
    results = []
    for nuisance in (False, True):
        method = build_aggregation(name)
        method.start_round(GOOD, 160, tmp_path)
        for update, weight in honest:
            if nuisance:
                for code, wrong, claimed in BAD:
                    with pytest.raises(UpdateRefused) as refusal:
                        method.fold(wrong, claimed)
                    assert refusal.value.code == code
            method.fold(update, weight)
        assert (method.updates, method.total_weight) == (3, 60)
        results.append(method.finish_round().tobytes())
    assert results[0] == results[1]


def test_weights_may_not_add_up_to_more_than_declared(tmp_path):
    method = build_aggregation("fedavg")
    method.start_round(GOOD, 100, tmp_path)
    method.fold(GOOD, 60)
    with pytest.raises(UpdateRefused, match="declared"):
        method.fold(GOOD, 41)
    method.fold(GOOD, 40)


def test_every_nan_position_is_seen(tmp_path):
    method = build_aggregation("fedavg")
    method.start_round(GOOD, 100, tmp_path)
    for position in (0, 1, 65_535, 65_536, 100_000, SIZE - 1):
        wrong = GOOD.copy()
        wrong[position] = np.nan
        with pytest.raises(UpdateRefused):
            method.fold(wrong, 1)


def test_a_broken_global_model_starts_no_round(tmp_path):
    for value in (np.nan, np.inf):
        with pytest.raises(RunFailed, match="not finite"):
            build_aggregation("fedavg").start_round(with_last(value), 10, tmp_path)


@pytest.mark.parametrize("declared", [0, -1, 2**40 + 1])
def test_an_absurd_declaration_starts_no_round(declared, tmp_path):
    with pytest.raises(InputError, match="images together"):
        build_aggregation("fedavg").start_round(GOOD, declared, tmp_path)


def test_a_refusal_says_nothing_of_the_values(tmp_path):
    method = build_aggregation("fedavg")
    method.start_round(GOOD, 100, tmp_path)
    with pytest.raises(UpdateRefused) as refusal:
        method.fold(with_last(-123456.75), 10)
    assert "123456" not in str(refusal.value)


@pytest.mark.parametrize("name", EVERY)
def test_a_negative_variance_is_refused_and_leaves_no_trace(name, tmp_path):
    variances = [slice(7, 9), slice(SIZE - 5, SIZE)]
    honest = np.abs(GOOD)
    honest[8] = -0.0  # is zero
    honest[100:200] = -4000  # a mean may well be negative
    results = []
    for nuisance in (False, True):
        method = build_aggregation(name, None, [slice(0, 300), *variances], variances)
        method.start_round(GOOD, 100, tmp_path)
        for position in (7, 8, SIZE - 5, SIZE - 1) if nuisance else ():
            for value in (-4000, -1e-30):
                wrong = honest.copy()
                wrong[position] = value
                with pytest.raises(UpdateRefused, match="negative variance") as refusal:
                    method.fold(wrong, 10)
                assert refusal.value.code == "negative-variance"
        method.fold(honest, 10)
        assert (method.updates, method.total_weight) == (1, 10)
        results.append(method.finish_round().tobytes())
    assert results[0] == results[1]


def test_without_variances_every_value_may_be_negative(tmp_path):
    method = build_aggregation("fedavg")
    method.start_round(GOOD, 100, tmp_path)
    method.fold(-np.abs(GOOD), 10)
    assert method.updates == 1
