"""A whole site is hidden from the others, or a site hides itself from everybody."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from aiseeme_models.errors import InputError
from aiseeme_models.privacy.accounting import epsilon
from aiseeme_models.privacy.noise import SecretDraws
from aiseeme_models.privacy.spending import Spend
from aiseeme_models.privacy.updates import clipped_change, clipped_update, noisy
from aiseeme_models.training.loop import NonFiniteLoss
from client.ledger import Ledger
from client.site_config import BudgetOptions
from federation_configs.site_errors import SiteError
from server.global_model import start_of_stage
from server.site_privacy import SitePrivacy
from tests.conftest import tiny_config
from tests.federation.gated_site import played_signed
from tests.federation.test_private_rounds import PRIVATE, STAGE, private, with_budgets
from tests.federation.test_round_loop import changed_weights, raises

SITE_PRIVACY = {"noise_multiplier": 0.5, "clip_norm": 0.2}
ONE_ROUND = {"stage": [STAGE | {"task": "rotation", "rounds": 1}]}


def start(config):
    return start_of_stage(config, 0, None).vector


def test_an_update_is_clipped_to_the_bound_and_one_of_zeros_stays():
    rng = np.random.default_rng(0)
    here = rng.normal(size=5000).astype(np.float32)
    for size in (0.0, 1e-9, 0.19, 0.2, 0.5, 1e20):
        change = rng.normal(size=5000)
        there = (here + change / np.linalg.norm(change) * size).astype(np.float32)
        moved = clipped_update(there, here, 0.2).astype(np.float64) - here
        assert np.linalg.norm(moved) <= 0.2 * (1 + 1e-5)
        if 0.01 < size < 1:
            assert np.dot(moved, change) / np.linalg.norm(moved) / np.linalg.norm(change) > 0.999
    assert np.array_equal(clipped_update(here, here, 0.2), here)
    assert not np.isfinite(clipped_update(np.full(5, np.nan, np.float32), here[:5], 0.2)).any()


def test_noise_has_the_deviation_that_is_asked_for():
    zeros = np.zeros(100_000, np.float32)
    noise = noisy(zeros, 0.3, SecretDraws(bytes(32))).astype(np.float64) / 0.3
    assert 0.0005 < stats.chi2.cdf((noise**2).sum(), df=noise.size) < 0.9995


@pytest.mark.parametrize("missing", [(), ("gamma",)])
def test_the_noise_is_right_for_the_sites_that_really_answered(federation, missing):
    """Sites that send back what they were sent: what is left of the round is noise alone."""
    config = tiny_config(curriculum=ONE_ROUND, site_privacy=SITE_PRIVACY)
    here = start(config)
    unchanged = changed_weights(lambda _: here)
    made = federation(config, alter={"alpha": unchanged, "beta": unchanged, "gamma": raises if missing else unchanged})
    _, vector = made.play()
    noise = (vector.astype(np.float64) - here) * (3 - len(missing)) / (0.5 * 0.2)
    assert 0.0005 < stats.chi2.cdf((noise**2).sum(), df=noise.size) < 0.9995


def test_a_site_counts_for_no_more_than_the_bound_however_many_images_it_has(federation, monkeypatch):
    monkeypatch.setattr("server.site_privacy.noisy", lambda mean, deviation, draws: mean)
    config = tiny_config(curriculum=ONE_ROUND, site_privacy=SITE_PRIVACY)
    here = start(config)
    unchanged, far = changed_weights(lambda _: here), changed_weights(lambda w: w + np.float32(3.0))
    _, vector = federation(config, alter={"alpha": unchanged, "beta": unchanged, "gamma": far}).play()
    assert np.linalg.norm(vector.astype(np.float64) - here) == pytest.approx(0.2 / 3, rel=1e-3)


def test_what_a_site_s_part_costs_is_counted_over_the_rounds():
    counted = SitePrivacy(tiny_config(site_privacy=SITE_PRIVACY), secret=False)
    assert counted.spent(0) == 0
    for rounds in (1, 4):
        mu = math.sqrt(rounds) / 0.5  # Balle and Wang (2018), theorem 8: the exact delta of Gaussian noise

        def delta(eps, mu=mu):
            return stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu)

        exact = optimize.brentq(lambda eps: delta(eps) - 1e-5, 0.1, 60)
        assert exact <= counted.spent(rounds) <= 1.1 * exact


def test_the_same_seed_gives_the_same_bits_in_a_simulation_only(federation):
    config = private(site_privacy=SITE_PRIVACY)  # both levels at once
    first, again = federation(config, where="one").play()[1], federation(config, where="two").play()[1]
    assert np.array_equal(first, again) and np.isfinite(first).all()
    plain = tiny_config(curriculum=ONE_ROUND, site_privacy=SITE_PRIVACY, holdout={"test": 0.1, "validation": 0.5})
    real = [played_signed(with_budgets(federation(plain, where=name)))[1] for name in ("three", "four")]
    assert not np.array_equal(*real)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"federation": {"min_sites": 2, "aggregation": "median"}}, "use 'fedavg' or 'fedprox'"),
        ({"federation": {"min_sites": 2, "aggregation": "fedadam"}}, "use 'fedavg' or 'fedprox'"),
        ({"model": {"backbone": "tiny", "norm": "batch"}}, "use group or group-ws"),
        ({"site_privacy": {"noise_multiplier": 1.0}}, "clip_norm"),
    ],
)
def test_what_has_no_bound_is_refused_when_the_configuration_is_read(changes, reason):
    with pytest.raises(InputError, match=reason):
        tiny_config(**({"site_privacy": SITE_PRIVACY} | changes))


def with_own_noise(made, name, **options):
    made = with_budgets(made)
    for number, site in enumerate(made.sites):
        if site.name == name:
            own = BudgetOptions(**({"local_noise": 2.0, "local_clip": 0.1} | options))
            site.budget.options = own
            object.__setattr__(made.sites[number].gate, "budget", own)
    return made


def test_a_site_that_trusts_nobody_adds_noise_itself_and_tells_no_loss(federation):
    config = tiny_config(curriculum=ONE_ROUND, holdout={"test": 0.1, "validation": 0.3})
    sent = {}

    def keep(name):
        def alter(message, reply):
            if message.metadata.message_type == "train":
                sent[name] = reply.content["weights"]["flat"].numpy().copy(), reply.content["body"]["json"]
            return reply

        return alter

    made = with_own_noise(federation(config, alter={"alpha": keep("alpha"), "beta": keep("beta")}), "alpha")
    state, _ = played_signed(made)
    assert state.finished and {site.answered for site in state.sites.values()} == {1}
    here = start(config)
    noise = (sent["alpha"][0].astype(np.float64) - here) / (2.0 * 0.1)
    assert stats.chi2.cdf((noise**2).sum() - (0.1 / 0.2) ** 2, df=noise.size) < 0.9995
    assert stats.chi2.cdf((noise**2).sum(), df=noise.size) > 0.0005
    assert '"loss":null' in sent["alpha"][1] and '"loss":null' not in sent["beta"][1]
    cost = epsilon([Spend(1.0, 1.0, 1)], 1e-5).value  # without a patient the update may be twice local_clip away
    assert state.sites["alpha"].epsilon == pytest.approx(cost) and state.sites["beta"].epsilon is None
    assert [one.spend for one in Ledger.in_home(made.sites[0].state_folder).charges()] == [Spend(1.0, 1.0, 1)]


def test_a_training_that_fails_at_it_is_answered_with_noise_alone(federation, monkeypatch):
    """An error would tell, without any noise, that a patient is there with whom the loss is infinite."""

    def diverges(*_, **__):
        raise NonFiniteLoss("inf")

    monkeypatch.setattr("aiseeme_models.training.loop.train_round", diverges)
    config = tiny_config(
        curriculum=ONE_ROUND, holdout={"test": 0.1, "validation": 0.3}, federation={"min_sites": 1, "round_retries": 0}
    )
    sent = []

    def keep(message, reply):
        if message.metadata.message_type == "train":
            sent.append(reply.content["weights"]["flat"].numpy().copy())
        return reply

    state, _ = played_signed(with_own_noise(federation(config, alter={"alpha": keep}), "alpha"))
    assert state.sites["alpha"].answered == 1
    assert {site.missed[0].reason for name, site in state.sites.items() if name != "alpha"} == {
        SiteError.NON_FINITE_LOSS.sentence
    }
    noise = (sent[0].astype(np.float64) - start(config)) / (2.0 * 0.1)
    assert 0.0005 < stats.chi2.cdf((noise**2).sum(), df=noise.size) < 0.9995


def test_what_is_not_finite_leaves_as_nothing_under_the_noise():
    there, here = np.full(5, np.nan, np.float32), np.zeros(5, np.float32)
    assert np.array_equal(clipped_change(there, here, 0.2), np.zeros(5))
    there[:] = 3.0
    assert np.linalg.norm(clipped_change(there, here, 0.2)) == pytest.approx(0.2, rel=1e-12)
    assert np.array_equal(clipped_change(here + np.float32(0.01), here, 0.2), np.full(5, np.float32(0.01), np.float64))


def test_its_noise_is_charged_to_its_budget_and_a_run_that_is_too_long_refused(federation):
    limit = epsilon([Spend(1.0, 1.0, 1)], 1e-5).value * 1.01
    plain = {"holdout": {"test": 0.1, "validation": 0.3}}
    short = with_own_noise(federation(tiny_config(curriculum=ONE_ROUND, **plain), where="a"), "alpha", epsilon=limit)
    assert played_signed(short)[0].sites["alpha"].answered == 1
    longer = with_own_noise(federation(tiny_config(**plain), where="b"), "alpha", epsilon=limit)
    state, _ = played_signed(longer)
    assert state.sites["alpha"].missed[0].reason == SiteError.BUDGET_EXCEEDED.sentence


def test_its_noise_and_batch_statistics_do_not_go_together(federation):
    config = tiny_config(
        model={"backbone": "tiny", "norm": "batch"}, curriculum=ONE_ROUND, holdout={"test": 0.1, "validation": 0.3}
    )
    state, _ = played_signed(with_own_noise(federation(config), "alpha"))
    assert state.sites["alpha"].missed[0].reason == SiteError.LOCAL_NOISE.sentence


def test_half_of_the_settings_of_its_noise_are_none():
    for half in ({"local_noise": 1.0}, {"local_clip": 1.0}):
        with pytest.raises(ValueError, match="belong together"):
            BudgetOptions(**half)


def test_private_training_is_charged_as_such_also_at_a_site_with_noise_of_its_own(federation):
    made = with_own_noise(federation(private(privacy=PRIVATE)), "alpha")
    state, _ = played_signed(made)
    assert state.sites["alpha"].answered == 4
    assert {one.spend.noise_multiplier for one in Ledger.in_home(made.sites[0].state_folder).charges()} == {1.0}
