"""``federation.transfer = "float16"``: half the bytes, and the same training but for rounding."""

from __future__ import annotations

import numpy as np
import pytest

from aiseeme_models.errors import RunFailed
from federation_configs.records import WEIGHTS, Enclosure, MalformedRecord, pack, unpack_weights
from federation_configs.transfer import answer, halved, outgoing, restored, widened
from federation_configs.wire import EvaluateReply
from tests.conftest import tiny_config

BODY = EvaluateReply(site="alpha", round=1, stage=0, images=5, loss=0.5, seconds=1.0)


ENCLOSE = Enclosure.__init__


def by_halves(**changes):
    federation = {"min_sites": 2, "round_retries": 1, "transfer": "float16"}
    return tiny_config(federation=federation, **changes)


def sizes(played, monkeypatch):
    """Bytes of the arrays that pass through the grid."""
    seen = []

    def note(self, weights):
        seen.append(weights.nbytes)
        ENCLOSE(self, weights)

    monkeypatch.setattr(Enclosure, "__init__", note)
    state, vector = played.play()
    return seen, state, vector


def test_half_the_bytes_travel_and_the_losses_are_nearly_the_same(federation, monkeypatch):
    whole_bytes, whole, vector = sizes(federation(where="whole"), monkeypatch)
    half_bytes, half, rounded = sizes(federation(by_halves(), where="half"), monkeypatch)
    assert sum(half_bytes) * 2 == sum(whole_bytes)
    for one, other in zip(whole.stages, half.stages, strict=True):
        np.testing.assert_allclose(one.losses, other.losses, rtol=0.02)
    assert np.abs(rounded - vector).max() < 0.02


def test_it_is_the_same_bits_again(federation):
    first, second = federation(by_halves(), where="a").play(), federation(by_halves(), where="b").play()
    np.testing.assert_array_equal(first[1], second[1])


def test_what_rounding_takes_from_the_global_weights_is_not_lost():
    # 1 + 1e-5 rounds to 1 in float16; a site's step of 1e-5 rounds to about itself.
    master = np.full(4, 1.0, np.float32)
    for _ in range(100):
        sent = outgoing(master, "float16").astype(np.float32)
        said = answer(sent + np.float32(1e-5), sent, "float16").astype(np.float32)
        master = restored(said, master, "float16", ())
    np.testing.assert_allclose(master, 1 + 100 * 1e-5, rtol=1e-4)


def test_float16_is_rounded_and_widened_as_numpy_does():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    numbers = every[~np.isnan(every)]
    np.testing.assert_array_equal(widened(every), every.astype(np.float32))
    between = np.sort(numbers[np.isfinite(numbers)].astype(np.float32))
    ties = (between[:-1] + between[1:]) / 2  # half-way between neighbours: to even
    odd = np.array([65_519.0, 65_520.0, 1e30, -1e30, np.inf, np.nan, 1e-8, -1e-8, 5.9e-8, -0.0], np.float32)
    values = np.concatenate([between, ties, np.nextafter(ties, np.float32(np.inf)), odd])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(halved(values), expected)
    np.testing.assert_array_equal(np.signbit(halved(values)), np.signbit(expected))


def test_what_is_rounded_or_widened_is_left_as_it_is():
    values = np.array([1.00001, 2.0], np.float32)
    values.flags.writeable = False
    first = halved(values)
    first.flags.writeable = False
    second = widened(first)
    second[0] = 7  # the coordinator restores weights in place
    assert values.tolist() == np.array([1.00001, 2.0], np.float32).tolist() and first.tolist() == [1, 2]


def test_rounding_makes_no_variance_negative():
    master = np.array([0.3, 1.0003], np.float32)
    received = outgoing(master, "float16").astype(np.float32)
    said = answer(np.zeros(2, np.float32), received, "float16").astype(np.float32)
    whole = restored(said, master, "float16", (slice(1, 2),))
    assert whole[1] >= 0


def test_weights_beyond_float16_fail_the_run_with_a_reason():
    with pytest.raises(RunFailed, match="too large for federation.transfer = 'float16'"):
        outgoing(np.array([70_000.0], np.float32), "float16")


@pytest.mark.parametrize(("sent", "agreed"), [(np.float16, "float32"), (np.float32, "float16")])
def test_another_precision_than_the_agreed_one_is_refused(sent, agreed):
    content = pack(BODY, np.ones(8, sent))
    with pytest.raises(MalformedRecord, match=f"not {agreed} of shape"):
        unpack_weights(content, 8, agreed)


def test_no_other_dtype_travels():
    content = pack(BODY, np.ones(8, np.float64))
    for agreed in ("float32", "float16"):
        with pytest.raises(MalformedRecord):
            unpack_weights(content, 8, agreed)
    assert WEIGHTS in content
