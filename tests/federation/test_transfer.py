"""``federation.transfer = "float16"``: half the bytes, and the same training but for rounding."""

from __future__ import annotations

import numpy as np
import pytest

from aiseeme_models.errors import RunFailed
from federation_configs.records import WEIGHTS, Enclosure, MalformedRecord, pack, unpack_weights
from federation_configs.transfer import answer, outgoing, restored
from federation_configs.wire import EvaluateReply
from tests.conftest import tiny_config

BODY = EvaluateReply(site="alpha", round=1, stage=0, images=5, loss=0.5, seconds=1.0)


ENCLOSE = Enclosure.__init__


def halved(**changes):
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
    half_bytes, half, rounded = sizes(federation(halved(), where="half"), monkeypatch)
    assert sum(half_bytes) * 2 == sum(whole_bytes)
    for one, other in zip(whole.stages, half.stages, strict=True):
        np.testing.assert_allclose(one.losses, other.losses, rtol=0.02)
    assert np.abs(rounded - vector).max() < 0.02


def test_it_is_the_same_bits_again(federation):
    first, second = federation(halved(), where="a").play(), federation(halved(), where="b").play()
    np.testing.assert_array_equal(first[1], second[1])


def test_what_rounding_takes_from_the_global_weights_is_not_lost():
    # 1 + 1e-5 rounds to 1 in float16; a site's step of 1e-5 rounds to about itself.
    master = np.full(4, 1.0, np.float32)
    for _ in range(100):
        sent = outgoing(master, "float16").astype(np.float32)
        said = answer(sent + np.float32(1e-5), sent, "float16").astype(np.float32)
        master = restored(said, master, "float16", ())
    np.testing.assert_allclose(master, 1 + 100 * 1e-5, rtol=1e-4)


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
