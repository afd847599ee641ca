"""A federation whose patients are protected: what it costs is counted, what would cost too much is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.privacy.accounting import epsilon
from aiseeme_models.privacy.spending import Spend
from client.ledger import Ledger
from client.privacy import BUDGET_FILE, PrivacyBudget
from client.site_config import BudgetOptions
from federation_configs.privacy_plan import planned, round_spend, told_patients
from federation_configs.site_errors import SiteError
from server.checkpoints import CheckpointStore
from tests.conftest import tiny_config
from tests.federation.gated_site import gated, played_signed
from tests.federation.test_round_loop import changed_body

STAGE = {"rounds": 2, "batch_size": 4, "lr": 0.01}
PRIVATE = {"noise_multiplier": 1.0, "delta": 1e-5}


def private(**changes):
    stages = [STAGE | {"task": "rotation"}, STAGE | {"task": "relative-location"}]
    settings = {"curriculum": {"stage": stages}, "privacy": PRIVATE, "holdout": {"test": 0.0, "validation": 0.0}}
    return tiny_config(**(settings | changes))


def with_budgets(made, limits=None):
    """Real sites: behind gates, with budgets."""
    gated(made)
    for number, site in enumerate(made.sites):
        options = BudgetOptions(epsilon=(limits or {}).get(site.name))
        own = PrivacyBudget(site.state_folder, site.gate.ledger, options)
        made.sites[number] = replace(site, budget=own, gate=replace(site.gate, budget=options))
    return made


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "adaptive"])
def test_a_private_federation_plays_and_says_what_it_cost(federation, clipping):
    made = federation(private(privacy=PRIVATE | {"clipping": clipping, "views": 2}))
    state, vector = made.play()
    assert state.finished and np.isfinite(vector).all()
    for site in made.sites:
        patients = site.training_patients(made.config.holdout)
        cost = epsilon([one for _, one in planned(made.config, patients)], 1e-5).value
        assert state.sites[site.name].epsilon == pytest.approx(cost)
        assert state.sites[site.name].images == told_patients(patients) < patients + 1
        assert (state.sites[site.name].validation, state.sites[site.name].rejected) == (0, {})
    assert [stage.losses + stage.heldout for stage in state.stages] == [[], []], "losses do not leave"
    manifest = CheckpointStore(made.folder / "run" / "checkpoints", 2).latest().manifest
    assert {name: one.epsilon for name, one in manifest.sites.items()} == {
        name: site.epsilon for name, site in state.sites.items()
    }
    lines = [json.loads(line) for line in (made.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss"] is None for line in lines if "site" in line)


def test_the_same_seed_gives_the_same_bits_in_a_simulation_and_other_noise_at_real_sites(federation):
    _, first = federation(private(), where="one").play()
    _, again = federation(private(), where="two").play()
    assert np.array_equal(first, again)
    real = [played_signed(with_budgets(federation(private(), where=name)))[1] for name in ("three", "four")]
    assert not np.array_equal(real[0], real[1]), "nobody, not even the site, can make the noise again"


def test_real_sites_charge_every_round_before_an_image_is_read(federation, monkeypatch):
    made = with_budgets(federation(private()))
    from client.site import Site

    seen = []
    real = Site.images

    def watched(site, options, split, holdout):
        seen.append(len(Ledger.in_home(site.state_folder).charges()))
        return real(site, options, split, holdout)

    monkeypatch.setattr(Site, "images", watched)
    state, _ = played_signed(made)
    trained = [count for count in seen if count]
    assert sorted(trained)[:3] == [1, 1, 1] and max(trained) == 4
    for site in made.sites:
        book = Ledger.in_home(site.state_folder)
        kinds = [entry.kind for entry in book.entries()]
        assert book.verify() == [] and kinds.count("spent") == 4
        assert kinds.index("spent") > kinds.index("started")
        charged = [one.spend for one in book.charges()]
        assert state.sites[site.name].epsilon == pytest.approx(epsilon(charged, 1e-5).value)
        answers = [
            entry.fields for entry in book.entries() if entry.kind == "answered" and entry.fields["what"] == "train"
        ]
        assert answers[-1]["privacy"] == state.sites[site.name].epsilon
        assert (site.state_folder / BUDGET_FILE).stat().st_mode & 0o077 == 0


def test_a_site_whose_budget_does_not_allow_a_run_is_not_in_it_and_the_others_go_on(federation, monkeypatch):
    made = with_budgets(federation(private()), {"beta": 0.5})
    from client.site import Site

    looked = []
    real = Site.images
    monkeypatch.setattr(Site, "images", lambda site, *rest: looked.append(site.name) or real(site, *rest))
    state, _ = played_signed(made)
    assert state.finished and state.sites["beta"].answered == 0
    assert "beta" not in looked, "refused before an image is read"
    assert state.sites["beta"].missed[0].reason == SiteError.BUDGET_EXCEEDED.sentence
    assert {state.sites[name].answered for name in ("alpha", "gamma")} == {4}
    assert Ledger.in_home(made.sites[1].state_folder).charges() == ()


def test_a_site_whose_budget_is_used_up_in_the_middle_leaves_the_run_at_that_round(federation):
    """A run of another coordinator spends at the same time: what was allowed at the beginning is so no more."""
    made = federation(private())
    patients = made.sites[1].training_patients(made.config.holdout)
    one = round_spend(made.config, 0, patients)
    plan = [spend for _, spend in planned(made.config, patients)]
    made = with_budgets(made, {"beta": epsilon(plan, 1e-5).value * 1.001})

    class Spends:
        def __getattr__(self, name):
            return lambda *_: None

        def round_done(self, state, *_):
            if state.round == 1:
                made.sites[1].budget.charge(one, run="other", round=1, stage=0)

    from federation_configs.site_errors import SiteError as Error
    from server.request_signing import RequestSigner
    from tests.federation.gated_site import FEDERATION, KEY

    loop = made.loop(Spends())
    loop.signer = RequestSigner(KEY, FEDERATION)
    state, _ = loop.play()
    assert state.finished
    assert state.sites["beta"].answered == 3
    assert [(missed.round, missed.reason) for missed in state.sites["beta"].missed] == [
        (4, Error.BUDGET_EXCEEDED.sentence)
    ]
    assert epsilon(made.sites[1].budget.spent(), 1e-5).value <= made.sites[1].budget.options.epsilon


def test_a_site_with_a_budget_trains_nothing_that_is_not_private(federation):
    made = with_budgets(federation(tiny_config()), {"alpha": 8.0})
    state, _ = played_signed(made)
    assert state.sites["alpha"].answered == 0
    assert state.sites["alpha"].missed[0].reason == SiteError.PRIVACY_REQUIRED.sentence


def test_a_site_with_a_broken_budget_does_nothing_and_stays_in_the_federation(federation):
    made = with_budgets(federation(private()), {"alpha": 100.0})
    for number in (1, 2):
        made.sites[0].budget.charge(Spend(1.0, 0.1, 1), run="old", round=number, stage=0)
    (made.sites[0].state_folder / BUDGET_FILE).unlink()
    state, _ = played_signed(made)
    assert state.sites["alpha"].missed[0].reason == SiteError.BUDGET_BROKEN.sentence
    assert len(Ledger.in_home(made.sites[0].state_folder).charges()) == 2


@pytest.mark.parametrize(
    "lie", [{"loss": 0.5}, {"epsilon": None}, {"epsilon": -1.0}, {"images": 11}, {"steps": 1}], ids=str
)
def test_a_reply_that_tells_more_or_less_than_was_agreed_does_not_count(federation, lie):
    made = federation(private(), alter={"gamma": changed_body(**lie)})
    state, _ = made.play()
    assert state.sites["gamma"].answered == 0 and state.sites["gamma"].epsilon is None
    assert state.sites["gamma"].missed[0].code in ("malformed-reply", "impossible-count")


def test_a_site_with_too_few_patients_says_so(federation):
    config = private(curriculum={"stage": [STAGE | {"task": "rotation", "batch_size": 16}]})
    made = federation(config)
    assert [site.training_patients(config.holdout) for site in made.sites] == [12, 15, 18]
    with pytest.raises(RunFailed, match="fewer patients than a step is to draw"):
        made.play()


REFUSED = [
    ({"curriculum": {"stage": [STAGE | {"task": "simclr"}]}}, "one patient changes the gradients of others.*rotation"),
    ({"curriculum": {"stage": [STAGE | {"task": "moco", "batch_size": 1024}]}}, "one patient changes the gradients"),
    ({"curriculum": {"stage": [STAGE | {"task": "vicreg"}]}}, "these tasks do: (?!.*(byol|simsiam)).*rotation"),
    ({"curriculum": {"stage": [STAGE | {"task": "simsiam"}]}}, "simsiam collapses"),
    ({"model": {"backbone": "tiny", "norm": "batch"}}, "mixes the images of a batch.*use group or group-ws"),
    ({"model": {"backbone": "tiny", "norm": "batch-local"}}, "mixes the images of a batch"),
    (
        {
            "curriculum": {"stage": [STAGE | {"task": "rotation", "stop": "plateau"}]},
            "holdout": {"test": 0.1, "validation": 0.1},
        },
        "use 'rounds'",
    ),
    ({"curriculum": {"stage": [STAGE | {"task": "rotation", "precision": "bf16"}]}}, "leave precision out"),
    ({"privacy": {"noise_multiplier": 0.0}}, "noise_multiplier"),
    ({"privacy": {"noise_multiplier": 1.0, "clipping": "none"}}, "clipping"),
    ({"privacy": {}}, "noise_multiplier"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED)
def test_what_cannot_be_private_is_refused_when_the_configuration_is_read(changes, reason):
    with pytest.raises(InputError, match=f"(?s){reason}"):
        private(**changes)


def test_nobody_can_know_the_views_of_a_private_round_at_a_real_site(federation, monkeypatch):
    """They are drawn batch by batch: known views would tell, by another patient's, whether one was in the batch."""
    from aiseeme_models.training import loop

    seeds = {"real": [], "simulated": [], "not private": []}
    plain = loop.train_round
    for kind in seeds:
        with monkeypatch.context() as patched:
            patched.setattr(
                loop, "train_round", lambda *a, s=seeds[kind], **k: (s.append(k["seed"]), plain(*a, **k))[1]
            )
            for again in "ab":
                config = tiny_config(curriculum={"stage": [STAGE | {"task": "rotation"}]}, holdout={"validation": 0.3})
                made = federation(config if kind == "not private" else private(), where=kind + again)
                if kind == "simulated":
                    made.play()
                else:
                    played_signed(gated(made) if kind == "not private" else with_budgets(made))
    assert len(set(seeds["real"])) == len(seeds["real"]) > 4
    for kind in ("simulated", "not private"):
        half = len(seeds[kind]) // 2
        assert seeds[kind][:half] == seeds[kind][half:]


def test_epsilon_does_not_tell_how_many_patients_there_are_within_ten():
    config = private()
    assert {round_spend(config, 0, patients) for patients in range(200, 210)} == {round_spend(config, 0, 200)}
    assert round_spend(config, 0, 210).sample_rate < round_spend(config, 0, 209).sample_rate
    assert round_spend(config, 0, 200).sample_rate == 4 / 200
    assert round_spend(config, 0, 209).sample_rate > 4 / 209, "never less than what is drawn"
