"""A bank with a row for every image of a site is its alone, kept between rounds, and begun anew with other images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aiseeme_models.seeding import generator
from aiseeme_models.training.shared_state import local_tensors
from client import workbench as benches
from tests.conftest import tiny_config
from tests.federation.test_same_bits import Crash, CrashAt

TASKS = {"npid": {"negatives": 10}, "deepcluster": {"clusters": 4}}


def config_of(task: str, rounds: int = 3):
    stage = {"task": task, "rounds": rounds, "batch_size": 4, "options": TASKS[task]}
    return tiny_config(model={"backbone": "tiny", "norm": "batch-local"}, curriculum={"stage": [stage]})


def training_images(played) -> dict[str, int]:
    config = played.config
    return {site.name: len(site.images(config.images, "train", config.holdout)) for site in played.sites}


def kept_banks(played, round_number: int) -> dict[str, torch.Tensor]:
    """Every site's bank after a round, as it lies on the site's disk."""
    found = {}
    for site in played.sites:
        (path,) = site.state_folder.rglob(f"round-{round_number:06d}.safetensors")
        found[site.name] = load_file(path)["local/local.bank"]
    return found


@pytest.mark.parametrize("task", TASKS)
def test_sites_that_take_turns_on_one_workbench_do_not_see_each_others_banks(task, federation, monkeypatch):
    together = federation(config_of(task), where="together")
    whole = together.play()[1]
    assert len(set(training_images(together).values())) == 3, "sites of different sizes"
    banks = kept_banks(together, 3)
    assert {name: len(bank) for name, bank in banks.items()} == training_images(together)

    shared = benches.workbench

    def of_ones_own(*arguments):
        benches._resident.clear()
        return shared(*arguments)

    monkeypatch.setattr(benches, "workbench", of_ones_own)
    apart = federation(config_of(task), where="apart")
    np.testing.assert_array_equal(whole, apart.play()[1])
    for name, bank in kept_banks(apart, 3).items():
        assert torch.equal(bank, banks[name])


@pytest.mark.parametrize("task", TASKS)
def test_nothing_of_a_site_is_left_for_the_next_one_of_the_same_size(task):
    bench = benches.workbench(config_of(task), 0, "cpu")
    bench.start_local(None, 12, generator(1))
    first = bench.task.local.bank.clone()
    with torch.no_grad():
        for buffer in bench.task.local.buffers():
            buffer.add_(1)
    bench.start_local(None, 12, generator(1))
    assert torch.equal(bench.task.local.bank, first)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("moment", "count"), [("a site has answered", 1), ("a site has answered", 5), ("a checkpoint is written", 2)]
)
def test_a_run_that_crashed_ends_with_the_same_bits_and_banks(moment, count, task, federation):
    whole, crashed = federation(config_of(task), where="whole"), federation(config_of(task), where="crashed")
    expected = whole.play()[1]
    with pytest.raises(Crash):
        crashed.play(CrashAt(moment, count))
    np.testing.assert_array_equal(expected, crashed.play()[1])
    for name, bank in kept_banks(crashed, 3).items():
        assert torch.equal(bank, kept_banks(whole, 3)[name])


@pytest.mark.parametrize("task", TASKS)
def test_a_run_without_its_banks_ends_otherwise(task, federation):
    whole, forgetful = federation(config_of(task), where="whole"), federation(config_of(task), where="forgetful")
    expected = whole.play()[1]
    with pytest.raises(Crash):
        forgetful.play(CrashAt("a checkpoint is written", 2))
    for kept in forgetful.folder.rglob("sites/*/runs/**/*.safetensors"):
        kept.unlink()
    assert (forgetful.play()[1] != expected).any()


@pytest.mark.parametrize("task", TASKS)
def test_a_site_whose_number_of_images_changed_begins_its_bank_anew(task):
    bench = benches.workbench(config_of(task), 0, "cpu")
    bench.start_local(None, 12, generator(1))
    with torch.no_grad():
        bench.task.local.bank.copy_(torch.eye(12, bench.task.local.bank.shape[1]))
    kept = local_tensors(bench.task, bench.layout)
    bench.start_local(kept, 12, generator(2))
    assert torch.equal(bench.task.local.bank, kept["local.bank"])
    for images in (11, 13):
        bench.start_local(None, images, generator(2))
        anew = bench.task.local.bank.clone()
        bench.start_local(kept, images, generator(2))
        assert torch.equal(bench.task.local.bank, anew)
        assert len(anew) == images


@pytest.mark.parametrize("task", TASKS)
def test_a_run_goes_on_when_images_went_at_a_site(task, federation):
    before = federation(config_of(task))
    with pytest.raises(Crash):
        before.play(CrashAt("a checkpoint is written", 2))
    gone = {row.content for row in before.sites[1].rows_of("train", before.config.holdout)[:3]}
    played = federation(config_of(task))
    beta = played.sites[1]
    played.sites[1] = replace(beta, rows=[row for row in beta.rows if row.content not in gone])
    state, _ = played.play()
    assert state.finished
    assert not any(site.missed for site in state.sites.values())
    fewer = training_images(played)
    assert fewer["beta"] == training_images(before)["beta"] - 3
    assert {name: len(bank) for name, bank in kept_banks(played, 3).items()} == fewer
