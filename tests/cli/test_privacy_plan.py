"""`aiseeme privacy plan` says what a federation costs, and says what is wrong with what it is given."""

from __future__ import annotations

import json

import pytest

from aiseeme_models.privacy.accounting import epsilon
from federation_configs.loading import load_config
from federation_configs.privacy_plan import planned
from tests.cli.commands import aiseeme


def test_it_says_what_each_site_pays_and_what_noise_would_do():
    said = aiseeme("privacy", "plan", "skin-private", "--sites", "north=1200", "--epsilon", "8", "--json")
    answer = json.loads(said.stdout)
    config = load_config("skin-private")
    for row in answer["sites"]:
        cost = epsilon([one for _, one in planned(config, row["patients"])], 1e-5).value
        assert row["epsilon"] == pytest.approx(cost, rel=1e-9)  # another process may sum in another order
    assert answer["noise_multiplier_needed"] == max(row["noise_multiplier_needed"] for row in answer["sites"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sites", "a=1200", "--epsilon", "nan"], "a finite number"),
        (["--sites", "a=99999999999999999999"], "more than 2147483648 patients"),
        (["--sites", "a=many"], "write each site once"),
        (["--sites", "a=5"], "too few"),
        (["--sites", "a=1200", "--delta", "1e-14"], "delta"),
    ],
)
def test_what_cannot_be_planned_is_a_clear_error(options, says):
    said = aiseeme("privacy", "plan", "skin-private", *options)
    assert said.returncode == 2
    assert says in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize(
    ("key", "value"), [("noise_multiplier", "1e-154"), ("delta", "1e-14"), ("max_grad_norm", "1e-6")]
)
def test_settings_that_no_accountant_can_count_are_refused_while_the_configuration_is_read(tmp_path, key, value):
    text = (
        'name = "p"\n[images]\npreset = "dermoscopy"\nsize = 48\n[model]\nbackbone = "resnet-tiny"\n'
        '[[curriculum.stage]]\ntask = "rotation"\nrounds = 5\n[privacy]\n'
    )
    settings = {"noise_multiplier": "1.0"} | {key: value}
    path = tmp_path / "p.toml"
    path.write_text(text + "".join(f"{name} = {number}\n" for name, number in settings.items()))
    said = aiseeme("privacy", "plan", path, "--sites", "a=100")
    assert said.returncode == 2
    assert f"privacy.{key}" in said.stderr
