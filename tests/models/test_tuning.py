"""Settings are tried as the papers say, a curve is read as by hand, and a batch is measured before it is believed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aiseeme_models.curriculum.stages import Stage
from aiseeme_models.curriculum.tuning import Asha, Job, Setting, TuneOptions
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.training.memory import Usage, largest_batch
from aiseeme_models.training.options import TrainingOptions
from aiseeme_models.training.range_test import range_test, suggested_rate


def played(asha: Asha, errors, slots: int) -> list[Job]:
    """All jobs in the order in which they began; ``errors[candidate][rung]``; of the running the first ends first."""
    running, begun = [], []
    while True:
        while len(running) < slots and (job := asha.next_job()) is not None:
            running.append(job)
            begun.append(job)
        if not running:
            return begun
        job = running.pop(0)
        asha.tell(job, errors[job.candidate][job.rung])


def test_one_worker_plays_the_jobs_of_the_paper():
    """Algorithm 2 by hand: who is among the best third of those that have come goes on before a new one begins."""
    errors = [[3, 3], [1, 1], [2, 0], [4, 4], [0, 2], [5, 5], [9, 9], [8, 8], [7, 7]]
    asha = Asha(9, 2, 3)
    jobs = [(job.candidate, job.rung) for job in played(asha, errors, 1)]
    assert jobs == [(0, 0), (1, 0), (2, 0), (1, 1), (3, 0), (4, 0), (4, 1), (5, 0), (6, 0), (7, 0), (8, 0), (2, 1)]
    assert asha.best() == 2  # by the highest rung, where its error is the smallest


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(20))
def test_the_best_is_found_where_rungs_agree_however_many_work(slots, seed):
    values = np.random.default_rng(seed).permutation(27)
    asha = Asha(27, 3, 3)
    jobs = played(asha, [[value] * 3 for value in values], slots)
    assert values[asha.best()] == 0
    assert len({(job.candidate, job.rung) for job in jobs}) == len(jobs), "nothing is done twice"
    rungs = [sum(job.rung == rung for job in jobs) for rung in range(3)]
    assert rungs[0] == 27 and 9 <= rungs[1] <= 18 and rungs[2] <= 9
    reached = {job.candidate for job in jobs if job.rung == 1}
    assert {int(np.flatnonzero(values == value)[0]) for value in range(9)} <= reached, "the best third goes on"


def test_what_is_out_never_goes_on_and_where_all_are_nothing_is_best():
    asha = Asha(9, 2, 3)
    jobs = played(asha, [[math.nan if number % 2 else math.inf] * 2 for number in range(9)], 3)
    assert {job.rung for job in jobs} == {0} and asha.best() is None


def test_rates_are_spread_evenly_and_shuffled_by_the_seed():
    tune = TuneOptions(lr=(1e-4, 1e-2), candidates=5)
    found = tune.settings(0.05, (64,), seed=1)
    assert sorted(setting.lr for setting in found) == pytest.approx([1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2])
    assert {setting.batch_size for setting in found} == {64}
    assert found == tune.settings(0.05, (64,), seed=1) != tune.settings(0.05, (64,), seed=2)
    by_default = TuneOptions().settings(1e-3, (32, 64), seed=0)
    assert len(by_default) == 9
    assert min(by_default, key=lambda one: one.lr).lr == pytest.approx(1e-3 / 30, rel=0.01)
    assert max(by_default, key=lambda one: one.lr).lr == pytest.approx(1e-3 * 30, rel=0.01)
    assert [one.batch_size for one in sorted(by_default, key=lambda one: one.lr)] == [32, 64] * 4 + [32]


@pytest.mark.parametrize(
    ("options", "rounds", "rungs"),
    [
        ({}, 9, [3, 9]),  # nine settings: at nine rounds three are left, and then there would be one
        ({}, 10, [4, 10]),
        ({"candidates": 27}, 27, [9, 27]),
        ({"candidates": 27, "min_rounds": 2}, 27, [2, 6, 18]),
        ({"candidates": 27, "min_rounds": 2, "max_rounds": 7}, 27, [2, 6, 7]),
        ({"max_rounds": 3}, 9, [3]),
        ({}, 1, [1]),
        ({}, 2, [1, 2]),
        ({"min_rounds": 4}, 3, [4]),
        ({"candidates": 4, "reduction": 2}, 100, [50, 100]),
        ({"candidates": 3}, 9, [3]),
    ],
)
def test_rungs_rise_as_long_as_there_is_a_choice(options, rounds, rungs):
    assert TuneOptions(**options).rungs(rounds) == rungs


def stage(**table) -> Stage:
    return Stage.model_validate({"task": "rotation", "rounds": 9} | table)


def test_auto_is_short_for_a_table():
    assert stage(lr="auto") == stage(tune={})
    assert stage(lr="auto").tune == TuneOptions() and stage(lr="auto").lr is None
    assert stage(lr="auto", tune={"candidates": 5}).tune.candidates == 5
    assert stage(tune={"batch_sizes": [32, 128]}).batch_size == 128
    assert stage(tune={"batch_sizes": [32, 128]}).batch_sizes == (32, 128)
    assert stage(tune={}).batch_sizes == (64,)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"lr": 0.1, "tune": {}}, "lr is given, and tune is there to find it"),
        ({"batch_size": 64, "tune": {"batch_sizes": [32, 128]}}, "batch_size = 64 is given"),
        ({"tune": {"lr": [0.1, 0.01]}}, "do not rise"),
        ({"tune": {"batch_sizes": [32, 32]}}, "names a size twice"),
        ({"tune": {"batch_sizes": [32, 64], "score": "heldout"}}, "cannot be compared"),
        ({"tune": {"min_rounds": 3, "max_rounds": 2}}, "less than min_rounds"),
        ({"tune": {"method": "grid"}}, "'asha' or 'range'"),
    ],
)
def test_a_table_that_cannot_be_is_refused(table, says):
    with pytest.raises(ValueError, match=says):
        stage(**table)


def test_settings_are_judged_by_the_loss_only_where_losses_can_be_compared():
    assert stage(lr="auto").judged_by == "heldout"
    assert stage(lr="auto", tune={"batch_sizes": [32, 64]}).judged_by == "probe"
    assert stage(task="npid", lr="auto").judged_by == "probe"
    assert stage(lr="auto", tune={"score": "probe"}).judged_by == "probe"
    both = {"task": "multi-task", "options": {"tasks": [{"task": "rotation"}, {"task": "simclr"}]}}
    assert stage(**both, lr="auto").judged_by == "probe"


def test_a_curve_is_read_as_by_hand():
    rates = np.geomspace(1e-4, 10, 101).tolist()
    # Flat up to 0.01, then falling to its lowest at 1, then up and away.
    x = np.log10(rates)
    losses = np.where(x < -2, 2.0, np.where(x < 0, 2 - (x + 2) / 2, 1 + 20 * x)).tolist()
    found = suggested_rate(rates, losses)
    assert found == pytest.approx(0.1, rel=0.25)  # a tenth of the lowest
    diverged = [*losses[:85], math.inf]
    assert suggested_rate(rates, diverged[:-1]) == pytest.approx(found, rel=0.2), "training may end before the rates do"
    noise = np.random.default_rng(0).normal(0, 0.02, 101)
    assert suggested_rate(rates, (losses + noise).tolist()) == pytest.approx(0.1, rel=0.5)
    assert suggested_rate(rates, (2 + noise).tolist()) is None, "what scatters and does not fall suggests nothing"
    assert suggested_rate(rates, [2.0] * 101) is None, "a loss that never falls suggests nothing"
    assert suggested_rate(rates, [2 + step / 100 for step in range(101)]) is None
    assert suggested_rate(rates[:5], losses[:5]) is None


AUGMENTATION = BatchAugmentation(AugmentationOptions(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_a_range_test_finds_a_rate_that_learns(tiny_task, toy_images):
    def tested(images, **rates):
        options = TrainingOptions(batch_size=16, optimizer="sgd", schedule="step", max_steps=1)
        how = {"augmentation": AUGMENTATION, "seed": 3, "device": torch.device("cpu")}
        return range_test(tiny_task("rotation"), toy_images(images), options, **rates, **how)

    rate = tested(96, rates=(1e-5, 100.0), steps=80)
    assert rate is not None and 1e-3 < rate < 5.0
    with pytest.raises(InputError, match="needs"):
        tested(0, rates=(1e-5, 1.0), steps=20)


class Counted(Usage):
    """Memory that a step would take, by a rule; ``made`` are the batch sizes with which steps were made."""

    def __init__(self, limit: int, per_image: int, base: int = 100) -> None:
        super().__init__(torch.device("cpu"))
        self.limit, self.before, self._per_image, self._base = limit, base, per_image, base

    def of(self, images):
        usage = self

        class Watched:
            made: list[int] = []

            def __len__(self):
                return len(images)

            def batch(self, indices):
                self.made.append(len(indices))
                usage.peak = usage._base + usage._per_image * len(indices)
                return images.batch(indices)

        return Watched()

    def watched(self):
        import contextlib

        return contextlib.nullcontext()


def fits(task, images, sizes, usage=None) -> int:
    return largest_batch(
        task,
        images,
        TrainingOptions(lr=1e-3),
        sizes,
        augmentation=AUGMENTATION,
        seed=0,
        device=torch.device("cpu"),
        usage=usage,
    )


@pytest.mark.parametrize(("limit", "largest"), [(10_000, 64), (500, 32), (270, 16), (130, 0)])
def test_no_step_is_made_that_would_not_fit(limit, largest, tiny_task, toy_images):
    usage = Counted(limit, per_image=10)
    images = usage.of(toy_images(64))
    assert fits(tiny_task("rotation"), images, (16, 32, 64), usage) == largest
    assert all(100 + 10 * size <= limit for size in images.made if size > 8), "what does not fit is foreseen"


def test_a_size_above_the_images_does_not_fit_and_memory_that_ends_is_no_error(tiny_task, toy_images, monkeypatch):
    assert fits(tiny_task("rotation"), toy_images(40), (16, 64)) == 16

    class Ends:
        def __len__(self):
            return 64

        def batch(self, indices):
            if len(indices) > 16:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] can't allocate memory: you tried ...")
            return toy_images(64).batch(indices)

    assert fits(tiny_task("rotation"), Ends(), (16, 32, 64)) == 16

    class Breaks(Ends):
        def batch(self, indices):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        fits(tiny_task("rotation"), Breaks(), (16,))


def test_the_process_is_measured(tiny_task, toy_images):
    usage = Usage(torch.device("cpu"))
    with usage.watched():
        held = torch.ones(80 * 2**20 // 4)
    assert usage.peak >= held.nbytes
    assert usage.limit > usage.peak


def test_a_setting_has_a_title():
    assert Setting(0.003, 64).title == "lr 0.003, batch 64"
