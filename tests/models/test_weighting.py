"""The weightings are the formulas of the papers, written out or searched for by brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from aiseeme_models.pretext.weighting import weightings
from aiseeme_models.pretext.weighting.dynamic_average import dynamic_average
from aiseeme_models.pretext.weighting.round_losses import RoundLosses
from aiseeme_models.pretext.weighting.self_paced import SelfPacedOptions, self_paced_weights
from aiseeme_models.pretext.weighting.uncertainty import uncertainty_objective

# Mean losses of three tasks in four rounds, two steps each.
STEPS = [
    [[1.4, 4.8, 2.1], [1.2, 4.6, 2.1]],
    [[1.0, 4.5, 2.1], [0.8, 4.1, 2.2]],
    [[0.7, 4.0, 2.0], [0.5, 4.2, 2.1]],
    [[0.4, 3.9, 2.0], [0.4, 3.7, 1.9]],
]
MEANS = [[sum(step[task] for step in steps) / 2 for task in range(3)] for steps in STEPS]


def weighting(name, tasks=3, **options):
    kind = weightings[name]
    made = kind(tasks, kind.options_type(**options))
    made.reset_local()
    return made


def play(made, rounds, begins=1):
    """Rounds of the stage of four; a round may be begun several times, as a site does."""
    for number in rounds:
        for _ in range(begins):
            made.begin_round()
        for step, losses in enumerate(STEPS[number]):
            made.after_step(torch.tensor(losses), (number + (step + 1) / 2) / 4)
    made.begin_round()


def weights_of(made, losses=(0.3, 3.0, 1.5)):
    """By how much each task's loss enters the objective."""
    losses = [torch.tensor(loss, requires_grad=True) for loss in losses]
    gradients = torch.autograd.grad(made.objective(losses), losses, allow_unused=True)
    return [0.0 if gradient is None else gradient.item() for gradient in gradients]


def test_the_weightings_are_registered():
    assert set(weightings) == {"equal", "uncertainty", "dwa", "self-paced"}


def test_equal_is_the_sum():
    losses = [torch.tensor(1.5), torch.tensor(0.25)]
    assert weighting("equal", 2).objective(losses).item() == 1.75


def test_uncertainty_is_kendalls_sum_and_so_are_its_gradients():
    losses, s = [0.7, 4.0, 2.0], [0.5, -0.3, 1.2]
    expected = sum(math.exp(-s_t) * loss + s_t for loss, s_t in zip(losses, s, strict=True))
    inputs = torch.tensor(losses, requires_grad=True), torch.tensor(s, requires_grad=True)
    value = uncertainty_objective(*inputs)
    assert value.item() == pytest.approx(expected, abs=1e-5)
    to_losses, to_s = torch.autograd.grad(value, inputs)
    assert to_losses.tolist() == pytest.approx([math.exp(-s_t) for s_t in s], abs=1e-5)
    assert to_s.tolist() == pytest.approx(
        [1 - math.exp(-s_t) * loss for loss, s_t in zip(losses, s, strict=True)], abs=1e-5
    )


def test_log_variances_go_to_the_logarithms_of_losses_that_stay():
    made = weighting("uncertainty")
    optimizer = torch.optim.SGD(made.shared.parameters(), lr=0.2)
    losses = [torch.tensor(0.7), torch.tensor(4.0), torch.tensor(2.0)]
    for _ in range(100):
        optimizer.zero_grad()
        made.objective(losses).backward()
        optimizer.step()
    assert weights_of(made) == pytest.approx([1 / 0.7, 1 / 4.0, 1 / 2.0], rel=1e-3)


def naive_dynamic_average(last, before, temperature):
    """Eq. 7 of the paper."""
    w = [a / b for a, b in zip(last, before, strict=True)]
    whole = sum(math.exp(w_i / temperature) for w_i in w)
    return [len(w) * math.exp(w_k / temperature) / whole for w_k in w]


@pytest.mark.parametrize("temperature", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("done", [2, 3, 4])
def test_dynamic_averages_are_those_of_the_two_rounds_before(done, temperature):
    made = weighting("dwa", temperature=temperature)
    play(made, range(done))
    expected = naive_dynamic_average(MEANS[done - 1], MEANS[done - 2], temperature)
    assert weights_of(made) == pytest.approx(expected, abs=1e-5)
    assert sum(expected) == pytest.approx(3)


def test_the_task_whose_loss_falls_most_slowly_counts_most():
    weights = dynamic_average(torch.tensor([0.5, 0.9]).double(), torch.tensor([1.0, 1.0]).double(), 0.5).tolist()
    assert weights[1] > weights[0]
    assert dynamic_average(torch.zeros(2).double(), torch.tensor([0.0, 1.0]).double(), 2.0).isfinite().all()


@pytest.mark.parametrize("name", ["dwa", "self-paced"])
@pytest.mark.parametrize("done", [0, 1])
def test_every_task_counts_alike_until_two_rounds_can_be_compared(name, done):
    made = weighting(name)
    play(made, range(done))
    losses = (0.3, 3.0, 1.5)
    scales = {"dwa": [1.0] * 3, "self-paced": MEANS[0] if done else losses}[name]
    assert weights_of(made, losses) == pytest.approx([1 / scale for scale in scales], rel=1e-6)


def self_paced_by_brute_force(relative, threshold):
    """``argmin_v sum_t v_t L_t - λ sum_t v_t`` (eq. 3 of the paper), over all v."""
    return list(
        min(
            itertools.product([0.0, 1.0], repeat=len(relative)),
            key=lambda v: sum(v_t * (loss - threshold) for v_t, loss in zip(v, relative, strict=True)),
        )
    )


@pytest.mark.parametrize("threshold", [0.31, 0.6, 0.85, 1.0, 1.4, 9.0])
def test_self_paced_weights_minimise_kumars_objective(threshold):
    relative = [0.84, 0.3, 1.2, 0.99]
    assert self_paced_weights(relative, threshold, soft=False) == self_paced_by_brute_force(relative, threshold)


def test_soft_weights_fall_along_a_line_and_are_never_below_none():
    assert self_paced_weights([0.5, 1.0, 2.0, 3.0], 2.0, soft=True) == pytest.approx([0.75, 0.5, 0.0, 0.0])


@pytest.mark.parametrize("soft", [False, True])
def test_where_no_task_is_easy_enough_the_easiest_counts_alone(soft):
    assert self_paced_weights([0.9, 0.8, 1.1], 0.8, soft=soft) == [0.0, 1.0, 0.0]
    assert self_paced_weights([1.0, 1.0], 0.5, soft=soft) == [1.0, 0.0]


@pytest.mark.parametrize(("done", "joined"), [(2, [1, 0, 0]), (3, [1, 1, 0]), (4, [1, 1, 1])])
def test_harder_tasks_join_as_the_stage_goes_on(done, joined):
    """The thresholds are 0.75, 0.93 and 1.15; of their starts, the losses are at 0.69 0.91 1.02, 0.46 0.87 0.98, ..."""
    made = weighting("self-paced", first_threshold=0.488, last_threshold=1.15)
    play(made, range(done))
    expected = [v / start for v, start in zip(joined, MEANS[0], strict=True)]
    assert weights_of(made) == pytest.approx(expected, rel=1e-6)


def test_soft_self_pacing_weighs_losses_over_their_starts():
    made = weighting("self-paced", soft=True)
    play(made, range(3))
    threshold = 0.5 * 4**0.75
    relative = [last / start for last, start in zip(MEANS[2], MEANS[0], strict=True)]
    expected = [max(0, 1 - r / threshold) / start for r, start in zip(relative, MEANS[0], strict=True)]
    assert weights_of(made) == pytest.approx(expected, rel=1e-5)


def test_the_threshold_grows_by_equal_factors_from_one_end_to_the_other():
    options = SelfPacedOptions()
    assert [options.threshold(part / 4) for part in range(5)] == pytest.approx(
        [0.5, 0.7071, 1.0, 1.4142, 2.0], rel=1e-4
    )
    with pytest.raises(ValueError, match="must not be below first_threshold"):
        SelfPacedOptions(first_threshold=1.5, last_threshold=1.0)


@pytest.mark.parametrize("name", ["dwa", "self-paced"])
def test_a_round_may_be_begun_several_times(name):
    once, often = weighting(name), weighting(name)
    play(once, range(3))
    play(often, range(3), begins=3)
    assert weights_of(once) == weights_of(often)


@pytest.mark.parametrize("name", ["dwa", "self-paced"])
def test_a_new_stage_remembers_nothing(name):
    made = weighting(name)
    play(made, range(4))
    made.reset_local()
    made.begin_round()
    assert weights_of(made) == weights_of(weighting(name))


def test_round_losses_keep_the_first_and_the_last_two_rounds():
    losses = RoundLosses(3)
    losses.reset()
    for steps in STEPS:
        for step in steps:
            losses.add(torch.tensor(step), 0.5)
        losses.close_round()
        losses.close_round()
    assert int(losses.rounds) == 4
    for kept, number in ((losses.first, 0), (losses.before, 2), (losses.last, 3)):
        assert kept.tolist() == pytest.approx(MEANS[number], abs=1e-6)
