"""What was spent is never forgotten, whatever is killed, put back or edited; what would be too much is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiseeme_models.privacy.accounting import epsilon
from aiseeme_models.privacy.spending import Spend
from client import privacy as privacy_module
from client.charges import BudgetBroken
from client.ledger import Ledger, LedgerBroken
from client.privacy import BUDGET_FILE, PrivacyBudget
from client.refusals import Refusal, code_of
from client.site_config import BudgetOptions
from federation_configs.site_errors import SiteError

ROUND = Spend(1.0, 0.1, 10)


def budget(home: Path, limit: float | None = None) -> PrivacyBudget:
    """As a process that starts: everything is read from the disk."""
    return PrivacyBudget(home, Ledger.in_home(home), BudgetOptions(epsilon=limit))


def charge(home: Path, number: int = 1, *, run: str = "r", spend: Spend = ROUND, limit: float | None = None):
    return budget(home, limit).charge(spend, run=run, round=number, stage=0)


def site(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from client.cli import main; main()", "budget", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "site"


def test_the_whole_history_counts_over_rounds_runs_and_coordinators(home):
    charge(home, 1)
    charge(home, 2)
    assert charge(home, 1, run="other", spend=Spend(2.0, 0.2, 5)) == (Spend(2.0, 0.2, 5),)  # of this run
    assert charge(home, 3) == (Spend(1.0, 0.1, 30),)
    spent = budget(home).spent()
    assert spent == (Spend(1.0, 0.1, 30), Spend(2.0, 0.2, 5))
    said = [entry.fields for entry in Ledger.in_home(home).entries()]
    told = epsilon(spent, 1e-5)
    assert (said[-1]["epsilon_rdp"], said[-1]["epsilon_prv"]) == (told.rdp, told.prv)
    assert [one["steps"] for one in said] == [10, 10, 5, 10]


def test_what_would_exceed_the_budget_is_refused_and_costs_nothing(home):
    limit = epsilon([Spend(1.0, 0.1, 25)], 1e-5).value
    charge(home, 1, limit=limit)
    charge(home, 2, limit=limit)
    with pytest.raises(Refusal) as refused:
        charge(home, 3, limit=limit)
    assert refused.value.code is SiteError.BUDGET_EXCEEDED
    assert budget(home).spent() == (Spend(1.0, 0.1, 20),)
    charge(home, 3, spend=Spend(1.0, 0.1, 5), limit=limit)  # what still fits is let in


def test_a_run_is_looked_at_as_a_whole_before_it_begins(home):
    limit = epsilon([Spend(1.0, 0.1, 100)], 1e-5).value
    plan = [(0, Spend(1.0, 0.1, 60)), (1, Spend(1.0, 0.1, 40))]
    assert not budget(home, limit).would_exceed(plan, run="r")
    charge(home, 1, limit=limit)
    assert not budget(home, limit).would_exceed(plan, run="r")  # it goes on: its own round is not counted twice
    assert budget(home, limit).would_exceed(plan, run="another")
    assert not budget(home).would_exceed(plan, run="another")  # without a budget nothing is too much
    assert budget(home).spent() == (ROUND,)


KILLED_AT = ["write", "fsync", "replace", "after"]


@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_charge_that_is_killed_at_any_moment_is_not_given_back(home, moment):
    """A process that is killed while it charges its third round, at each step of getting it onto the disk."""
    charge(home, 1)
    charge(home, 2)
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from aiseeme_models import atomic_files
from client import ledger, privacy
from tests.client.test_privacy_budget import charge
moment, die = {moment!r}, lambda: os.kill(os.getpid(), signal.SIGKILL)
if moment == "write":  # the ledger has it, the budget file has not
    privacy.write_atomically = lambda *_, **__: die()
elif moment == "fsync":
    real, flushed = os.fsync, []
    def fsync(descriptor):
        real(descriptor)
        flushed.append(1)
        len(flushed) == 2 and die()  # the first was the ledger's
    os.fsync = fsync
elif moment == "replace":
    Path.replace = lambda *_: die()
charge(Path({str(home)!r}), 3)
print("charged", flush=True)
die()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ("charged" in ended.stdout) == (moment == "after")
    assert budget(home).spent() == (Spend(1.0, 0.1, 30),)
    assert charge(home, 3) == (Spend(1.0, 0.1, 40),)  # asked again: charged again
    assert json.loads((home / BUDGET_FILE).read_text())["settings"] == [[1.0, 0.1, 40]]


def test_a_disk_that_is_full_charges_nothing_and_begins_nothing(home, monkeypatch):
    charge(home, 1)
    before = (home / BUDGET_FILE).read_bytes()

    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(privacy_module, "write_atomically", full)
    with pytest.raises(OSError) as failed:
        charge(home, 2)
    assert code_of(failed.value) is SiteError.DISK_FULL
    monkeypatch.undo()
    assert (home / BUDGET_FILE).read_bytes() == before
    assert budget(home).spent() == (Spend(1.0, 0.1, 20),)  # the ledger has it: rather too much than too little


def edited(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


TAMPERING = {
    "fewer steps": lambda home: edited(home / BUDGET_FILE, lambda d: d["settings"][0].__setitem__(2, 1)),
    "more noise": lambda home: edited(home / BUDGET_FILE, lambda d: d["settings"][0].__setitem__(0, 9.0)),
    "nothing spent": lambda home: edited(home / BUDGET_FILE, lambda d: d.update(settings=[])),
    "another version": lambda home: edited(home / BUDGET_FILE, lambda d: d.update(format=2)),
    "an unknown key": lambda home: edited(home / BUDGET_FILE, lambda d: d.update(refund=True)),
    "another entry": lambda home: edited(home / BUDGET_FILE, lambda d: d.update(seq=d["seq"] - 1)),
    "no such noise": lambda home: edited(home / BUDGET_FILE, lambda d: d["settings"][0].__setitem__(0, -1.0)),
    "no JSON": lambda home: (home / BUDGET_FILE).write_text("{"),
    "the file removed": lambda home: (home / BUDGET_FILE).unlink(),
    "the ledger cut off": lambda home: (home / "ledger.jsonl").write_bytes(
        b"".join((home / "ledger.jsonl").read_bytes().splitlines(keepends=True)[:-2])
    ),
    "the ledger removed": lambda home: (home / "ledger.jsonl").unlink(),
}


FILE_IS_GONE = {"another version", "an unknown key", "no such noise", "no JSON", "the file removed"}


@pytest.mark.parametrize("how", TAMPERING)
def test_an_edited_budget_is_noticed_and_nothing_is_trained(home, how):
    for number in (1, 2, 3):
        charge(home, number)
    TAMPERING[how](home)
    for act in (lambda: charge(home, 4), budget(home).spent, lambda: budget(home, 9.0).would_exceed([], run="r")):
        with pytest.raises(BudgetBroken) as broken:
            act()
        assert code_of(broken.value) is SiteError.BUDGET_BROKEN
    said = site("--home", home)
    assert said.returncode == 1 and "--rebuild" in said.stderr and "Traceback" not in said.stderr


def test_a_file_that_is_put_back_to_an_older_state_is_noticed(home):
    charge(home, 1)
    old = (home / BUDGET_FILE).read_bytes()
    charge(home, 2)
    charge(home, 3)
    (home / BUDGET_FILE).write_bytes(old)
    with pytest.raises(BudgetBroken, match="2 charges behind it"):
        charge(home, 4)


def test_an_edited_charge_breaks_the_ledger_s_chain(home):
    charge(home, 1)
    charge(home, 2)
    path = home / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"steps":10', b'"steps":01', 1))
    with pytest.raises(LedgerBroken):
        budget(home).spent()


@pytest.mark.parametrize("how", sorted(TAMPERING))
def test_a_rebuilt_budget_has_the_larger_of_what_both_say(home, how):
    for number in (1, 2, 3):
        charge(home, number)
    TAMPERING[how](home)
    if how in FILE_IS_GONE:  # then a ledger that was cut off would not show
        with pytest.raises(BudgetBroken, match="gone or cannot be read"):
            budget(home).rebuild()
    rebuilt = budget(home).rebuild(ledger_only=how in FILE_IS_GONE)
    assert {one.noise_multiplier: one.steps for one in rebuilt}[1.0] == 30
    assert any(entry.kind == "budget-rebuilt" for entry in Ledger.in_home(home).entries())
    assert charge(home, 4, run="later") == (ROUND,)
    assert {one.noise_multiplier: one.steps for one in budget(home).spent()}[1.0] == 40


def test_the_command_shows_what_is_spent_and_what_a_federation_would_cost(home, tmp_path):
    home.mkdir()
    (home / "site.toml").write_text("[privacy]\nepsilon = 4.0\n")
    config = tmp_path / "private.toml"
    config.write_text(
        'name = "p"\n[images]\npreset = "dermoscopy"\nsize = 48\n[model]\nbackbone = "resnet-tiny"\n'
        '[[curriculum.stage]]\ntask = "rotation"\nrounds = 5\nbatch_size = 16\n[privacy]\nnoise_multiplier = 1.0\n'
    )
    charge(home, 1)
    one, whole = epsilon([ROUND], 1e-5).value, epsilon([ROUND, Spend(1.0, 16 / 200, 60)], 1e-5).value
    said = site(config, "--home", home, "--patients", 205)
    assert (said.returncode, said.stderr) == (0, "")
    assert f"spent: epsilon {one:.2f} at delta 1e-05, by 10 steps" in said.stdout
    assert f"of which {4 - one:.2f} is left" in said.stdout
    assert f"with what was spent before, {whole:.2f}" in said.stdout
    assert ("MORE THAN THE BUDGET" in said.stdout) == (whole > 4.0)
    assert "which this site refuses" in site("demo", "--home", home).stdout
    (home / "site.toml").write_text("[privacy]\nepsilon = 300.0\nlocal_noise = 2.0\nlocal_clip = 1.0\n")
    own = epsilon([ROUND, Spend(1.0, 1.0, 15)], 1e-5).value
    assert f"{own:.2f}: within the budget" in site("demo", "--home", home, "--patients", 205).stdout
    (home / "site.toml").write_text("[privacy]\nepsilon = 4.0\n")
    for wrong in ([config, "--patients", 9], ["nothing.toml"], [config]):
        said = site(*wrong, "--home", home)
        assert (said.returncode, said.stdout) == (2, "") and said.stderr.startswith("error: ")
    (home / BUDGET_FILE).write_text("{")
    said = site("--home", home, "--rebuild")
    assert said.returncode == 1 and "say --ledger-only too" in said.stderr
    assert site("--home", home, "--ledger-only").returncode == 2
    said = site("--home", home, "--rebuild", "--ledger-only", "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["charges"] == [{"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 10}]
