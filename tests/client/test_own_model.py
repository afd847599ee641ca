"""FedEMA: a round begins between the global model and the site's own, nearer to its own the further they are apart."""

from __future__ import annotations

import numpy as np
import pytest

from client.own_model import OwnModel
from tests.conftest import tiny_config

TAU = 0.7
OWN = np.array([3.0, 4.0, 10.0], dtype=np.float32)
GLOBAL = np.zeros(3, dtype=np.float32)


def test_the_first_blend_keeps_tau_of_the_own_model_and_sets_the_scale():
    whole, scale = OwnModel(OWN, None).blended(GLOBAL, 2, TAU)
    assert scale == pytest.approx(TAU / 5)  # the backbone alone is 5 away
    np.testing.assert_allclose(whole, TAU * OWN, rtol=1e-6)


@pytest.mark.parametrize(("apart", "mu"), [(1.0, TAU / 5), (5.0, TAU), (6.0, TAU * 6 / 5), (50.0, 1.0)])
def test_later_the_distance_decides(apart, mu):
    own = OWN / 5 * apart
    whole, scale = OwnModel(own, TAU / 5).blended(GLOBAL, 2, TAU)
    assert scale == TAU / 5
    np.testing.assert_allclose(whole, mu * own, rtol=1e-6)


def test_equal_models_are_left_alone():
    whole, scale = OwnModel(OWN, None).blended(OWN, 2, TAU)
    assert scale is None
    np.testing.assert_array_equal(whole, OWN)


def test_a_federation_with_it_learns_something_else_than_without(federation):
    def play(name, **options):
        config = tiny_config(
            curriculum={"stage": [{"task": "byol", "rounds": 3, "batch_size": 4, "lr": 0.01}]},
            model={"backbone": "tiny", "norm": "batch"},
            federation={"min_sites": 2, "aggregation": name, "aggregation_options": options},
        )
        return federation(config, where=f"{name}-{options}").play()[1]

    plain = play("fedavg")
    np.testing.assert_array_equal(play("fedema", tau=0.0), plain)
    assert (play("fedema", tau=0.7) != plain).any()
