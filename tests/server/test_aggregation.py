"""Every aggregation equals an independent float64 NumPy reference, and no order of arrival changes a bit."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from aiseeme_models.errors import InputError, RunFailed
from server.aggregation import aggregations, build_aggregation

EVERY = ["fedadam", "fedavg", "fedavgm", "fedema", "fedprox", "l-dawa", "median", "trimmed-mean"]
SIZE = 200_003  # several chunks, the last one short


def random_updates(count, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-6, 2, size)
    current = (rng.standard_normal(size) * scale).astype(np.float32)
    updates = [(current + 0.1 * rng.standard_normal(size) * scale).astype(np.float32) for _ in range(count)]
    return current, updates, [int(weight) for weight in rng.integers(1, 5000, count)]


def play(method, current, updates, weights, folder):
    method.start_round(current, sum(weights), folder)
    for update, weight in zip(updates, weights, strict=True):
        method.fold(update, weight)
    return method.finish_round()


def weighted_mean(updates, weights):
    return np.average(np.stack(updates).astype(np.float64), axis=0, weights=weights)


def assert_float32_close(result, reference):
    assert result.dtype == np.float32
    error = np.abs(result - reference)
    assert (error <= 2.0**-23 * np.abs(reference) + 1e-11).all(), error.max()


def test_there_is_one_file_per_method():
    assert list(aggregations) == EVERY


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedema"])
def test_the_weighted_mean_equals_numpy(name, tmp_path):
    current, updates, weights = random_updates(7)
    result = play(build_aggregation(name), current, updates, weights, tmp_path)
    assert_float32_close(result, weighted_mean(updates, weights))
    assert not list(tmp_path.iterdir())


def test_one_site_alone_gets_its_own_model_back(tmp_path):
    rng = np.random.default_rng(3)
    update = rng.uniform(0.001, 100, SIZE).astype(np.float32)
    result = play(build_aggregation("fedavg"), update, [update], [1234], tmp_path)
    np.testing.assert_array_equal(result, update)


def test_missing_sites_do_not_cost_precision(tmp_path):
    """Invited sites declared a billion images; three with few answered."""
    current, updates, _ = random_updates(3)
    method = build_aggregation("fedavg")
    method.start_round(current, 10**9, tmp_path)
    for update, weight in zip(updates, (3, 5, 7), strict=True):
        method.fold(update, weight)
    reference = weighted_mean(updates, (3, 5, 7))
    assert np.abs(method.finish_round() - reference).max() < 1e-5


def test_fedprox_tells_the_sites_its_mu_and_the_others_none():
    assert build_aggregation("fedprox", {"mu": 0.5}).proximal_mu == 0.5
    assert {build_aggregation(name).proximal_mu for name in EVERY if name != "fedprox"} == {0.0}


def test_fedavgm_equals_its_formula_over_rounds(tmp_path):
    statistics = [slice(10, 400), slice(70_000, 150_000)]
    method = build_aggregation("fedavgm", {"lr": 0.7, "beta": 0.8}, statistics)
    current, *_ = random_updates(1)
    x, m = current.astype(np.float64), np.zeros(SIZE)
    held_out = np.zeros(SIZE, dtype=bool)
    for part in statistics:
        held_out[part] = True
    for number in range(4):
        _, updates, weights = random_updates(3, seed=number)
        mean = weighted_mean(updates, weights)
        m = 0.8 * m + (mean - x)
        x = np.where(held_out, mean, x + 0.7 * m)
        current = play(method, current, updates, weights, tmp_path)
        np.testing.assert_allclose(current, x, rtol=3e-6, atol=1e-5)
        x, m = current.astype(np.float64), method.state()["momentum"].astype(np.float64)
        assert (m[held_out] == 0).all()


def test_fedadam_equals_its_formula_and_leaves_statistics_alone(tmp_path):
    statistics = [slice(100, 300)]
    method = build_aggregation("fedadam", {"lr": 0.05, "beta1": 0.8, "beta2": 0.9, "tau": 0.01}, statistics)
    current, *_ = random_updates(1)
    x, m, v = current.astype(np.float64), np.zeros(SIZE), np.full(SIZE, 0.01**2)
    for number in range(4):
        _, updates, weights = random_updates(3, seed=number)
        updates = [np.abs(update) for update in updates]  # variances are never negative ...
        mean = weighted_mean(updates, weights)
        d = mean - x
        m, v = 0.8 * m + 0.2 * d, 0.9 * v + 0.1 * d**2
        x = x + 0.05 * m / (np.sqrt(v) + 0.01)
        x[100:300] = mean[100:300]
        current = play(method, current, updates, weights, tmp_path)
        np.testing.assert_allclose(current, x, rtol=3e-6, atol=1e-5)
        assert (current[100:300] >= 0).all()  # ... and stay so: Flower's FedAdam made them negative
        x = current.astype(np.float64)
    assert {array.dtype for array in method.state().values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
def test_the_median_equals_numpy(count, tmp_path):
    current, updates, weights = random_updates(count)
    result = play(build_aggregation("median"), current, updates, weights, tmp_path)
    assert_float32_close(result, np.median(np.stack(updates).astype(np.float64), axis=0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "trim"), [(5, 0.2), (10, 0.1), (10, 0.3), (30, 0.1)])
def test_the_trimmed_mean_equals_scipy(count, trim, tmp_path):
    current, updates, weights = random_updates(count, size=70_001)
    result = play(build_aggregation("trimmed-mean", {"trim": trim}), current, updates, weights, tmp_path)
    assert_float32_close(result, stats.trim_mean(np.stack(updates).astype(np.float64), trim + 1e-9, axis=0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("replies", "cut"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (10, 2)])
def test_few_sites_still_get_trimmed(replies, cut):
    assert aggregations["trimmed-mean"](aggregations["trimmed-mean"].options_type(trim=0.2)).cut(replies) == cut


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_one_site_of_five_cannot_take_the_model_over(name, tmp_path):
    current, updates, weights = random_updates(4, size=1000)
    wild = np.full(1000, 4000, dtype=np.float32)
    result = play(build_aggregation(name), current, [*updates, wild], [*weights, 1_000_000], tmp_path)
    assert (result <= np.max(updates, axis=0)).all()


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_order_of_arrival_changes_no_bit(name, data, tmp_path):
    value = st.floats(-100, 100, width=32) | st.sampled_from([0.0, -0.0, 1e-30, -1e-38])
    count = data.draw(st.integers(2, 6))
    replies = [
        (
            np.array(data.draw(st.lists(value, min_size=9, max_size=9)), dtype=np.float32),
            data.draw(st.integers(1, 10**6)),
        )
        for _ in range(count)
    ]
    order = data.draw(st.permutations(replies))
    current = np.linspace(-1, 1, 9, dtype=np.float32)
    results = []
    for sequence in (replies, order):
        method = build_aggregation(name, statistics=[slice(2, 4)])
        result = play(method, current, *zip(*sequence, strict=True), tmp_path)
        results.append([result.tobytes(), *(array.tobytes() for array in method.state().values())])
    assert results[0] == results[1]


@pytest.mark.parametrize("name", EVERY)
def test_all_orders_of_a_large_round_give_the_same_bytes(name, tmp_path):
    current, updates, weights = random_updates(3)
    found = {
        play(build_aggregation(name), current, *zip(*order, strict=True), tmp_path).tobytes()
        for order in itertools.permutations(zip(updates, weights, strict=True))
    }
    assert len(found) == 1


def test_the_number_of_cores_changes_no_bit(tmp_path, monkeypatch):
    current, updates, weights = random_updates(3)
    results = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr("server.aggregation.chunks.MAX_THREADS", threads)
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(8))
        results.append(play(build_aggregation("fedavg"), current, updates, weights, tmp_path).tobytes())
    assert len(set(results)) == 1


def test_extreme_sums_do_not_overflow(tmp_path):
    """Every site at the bound with all the weight there may be."""
    current = np.zeros(5, dtype=np.float32)
    edge = np.full(5, np.nextafter(np.float32(4096), np.float32(0)), dtype=np.float32)
    for weights in ([2**39, 2**39], [1] * 20, [2**40 - 1, 1]):
        for sign in (1, -1):
            result = play(build_aggregation("fedavg"), current, [sign * edge] * len(weights), weights, tmp_path)
            np.testing.assert_allclose(result, sign * edge, rtol=1e-7)


def test_terms_are_rounded_to_the_nearest_fixed_point_number(tmp_path):
    """R = 12 bits for a value and N = 1 for the weight leave S = 49."""
    unit = 2.0**-49
    update = np.array([0.75, -0.75, 0.25, 2.5, 3.5], dtype=np.float32) * np.float32(unit)
    result = play(build_aggregation("fedavg"), np.zeros(5, dtype=np.float32), [update], [1], tmp_path)
    assert (result / unit).tolist() == [1, -1, 0, 2, 4]


def test_the_bound_grows_with_the_model(tmp_path):
    current = np.full(4, 60_000, dtype=np.float32)
    assert math.isclose(play(build_aggregation("fedavg"), current, [current * 2], [3], tmp_path)[0], 120_000)


@pytest.mark.parametrize("name", ["fedadam", "fedavgm"])
def test_a_restored_server_optimiser_goes_on_bit_for_bit(name, tmp_path):
    current, first, weights = random_updates(3)
    _, second, _ = random_updates(3, seed=9)
    whole = build_aggregation(name)
    middle = play(whole, current, first, weights, tmp_path)
    restored = build_aggregation(name)
    restored.load_state({key: array.copy() for key, array in whole.state().items()})
    expected = play(whole, middle, second, weights, tmp_path)
    assert play(restored, middle, second, weights, tmp_path).tobytes() == expected.tobytes()
    for key, array in whole.state().items():
        assert restored.state()[key].tobytes() == array.tobytes()


def test_state_of_another_method_or_size_is_refused(tmp_path):
    current, updates, weights = random_updates(2, size=10)
    adam = build_aggregation("fedadam")
    play(adam, current, updates, weights, tmp_path)
    with pytest.raises(InputError, match="another aggregation"):
        build_aggregation("fedavg").load_state(adam.state())
    with pytest.raises(InputError, match="momentum"):
        build_aggregation("fedavgm").load_state(adam.state())
    shorter = build_aggregation("fedadam")
    shorter.load_state({name: array[:-1] for name, array in adam.state().items()})
    with pytest.raises(InputError, match="9 values, not 10"):
        play(shorter, current, updates, weights, tmp_path)


def test_wrong_names_and_options_are_explained():
    with pytest.raises(InputError, match="did you mean 'fedavg'"):
        build_aggregation("fedavgg")
    for settings_ in ({"mu": -1.0}, {"mu": "much"}, {"nu": 1.0}):
        with pytest.raises(InputError, match="fedprox has mu"):
            build_aggregation("fedprox", settings_)


def test_a_round_nobody_answered_fails(tmp_path):
    method = build_aggregation("fedavg")
    method.start_round(np.ones(3, dtype=np.float32), 5, tmp_path)
    with pytest.raises(RunFailed, match="no site"):
        method.finish_round()


def test_a_full_disk_under_kept_replies_is_said(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    method = build_aggregation("median")
    method.start_round(np.ones(3, dtype=np.float32), 5, tmp_path)
    (tmp_path / "reply-00000.f32").symlink_to("/dev/full")
    with pytest.raises(RunFailed, match="No space left"):
        method.fold(np.ones(3, dtype=np.float32), 2)
    assert method.updates == 0


def test_leftovers_of_a_killed_round_are_not_counted(tmp_path):
    method = build_aggregation("median")
    (tmp_path / "reply-00001.f32").write_bytes(b"\0" * 12)
    result = play(method, np.ones(3, dtype=np.float32), [np.full(3, 2, dtype=np.float32)], [1], tmp_path)
    assert result.tolist() == [2, 2, 2]
    assert not list(tmp_path.iterdir())


LAYERS = [slice(0, 5), slice(5, 6), slice(6, 40_000), slice(40_000, SIZE)]


def naive_ldawa(current, updates, weights, layers, statistics=()):
    """Layer by layer in double precision: weights are images times the cosine, which is at least 0."""
    result = current.astype(np.float64)
    for part in layers:
        ours = current[part].astype(np.float64)
        shares = []
        for update, images in zip(updates, weights, strict=True):
            theirs = update[part].astype(np.float64)
            cosine = ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs)) if ours.any() else 1.0
            shares.append(images * (1.0 if part in statistics else max(0.0, cosine)))
        if sum(shares):
            result[part] = np.average([update[part].astype(np.float64) for update in updates], axis=0, weights=shares)
    return result


def test_l_dawa_weights_each_layer_by_its_agreement(tmp_path):
    current, updates, weights = random_updates(4)
    updates[2] = -updates[2]  # a site that goes the other way
    updates[3][LAYERS[0]] += 3
    current[LAYERS[1]] = 0  # a bias at the start
    method = build_aggregation("l-dawa", statistics=[LAYERS[3]], layers=LAYERS)
    result = play(method, current, updates, weights, tmp_path)
    reference = naive_ldawa(current, updates, weights, LAYERS, [LAYERS[3]])
    np.testing.assert_allclose(result, reference, rtol=2e-4, atol=2e-4 * np.abs(reference).mean())
    assert np.abs(result - weighted_mean(updates, weights)).max() > 0.1
    np.testing.assert_allclose(result[LAYERS[3]], weighted_mean(updates, weights)[LAYERS[3]], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(result[LAYERS[1]], weighted_mean(updates, weights)[LAYERS[1]], rtol=1e-5)


def test_l_dawa_leaves_a_layer_with_which_nobody_agrees(tmp_path):
    current = np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)
    updates = [np.array([-1.0, -2.0, 3.5, 4.0], dtype=np.float32), np.array([-2.0, -1.0, 2.5, 4.0], dtype=np.float32)]
    method = build_aggregation("l-dawa", layers=[slice(0, 2), slice(2, 4)])
    result = play(method, current, updates, [10, 10], tmp_path)
    assert result[:2].tolist() == [1.0, 2.0]
    assert result[2:] == pytest.approx([3.0, 4.0], abs=0.01)


def test_l_dawa_with_sites_that_agree_alike_is_the_mean(tmp_path):
    current, updates, weights = random_updates(1)
    result = play(build_aggregation("l-dawa", layers=LAYERS), current, updates * 3, weights * 3, tmp_path)
    assert_float32_close(result, updates[0])
