"""Ordering policies settle on what the scores and distances say, try no more than they need, and say why."""

from __future__ import annotations

import pytest

from aiseeme_models.curriculum.ordering import Candidate, orderings
from aiseeme_models.errors import InputError
from aiseeme_models.pretext import pretext_tasks

CANDIDATES = [
    Candidate("simclr", "instance"),
    Candidate("rotation", "geometric"),
    Candidate("swav", "clustering"),
    Candidate("relative-location", "geometric"),
]


class Told:
    """Scores and distances by hand; counts what was asked."""

    def __init__(self, scores, distances=None):
        self.scores, self.distances, self.asked = scores, distances or {}, set()

    def score(self, sequence):
        self.asked.add(sequence)
        return self.scores[sequence]

    def distance(self, first, second):
        return self.distances[first, second]


def settle(name, trials, candidates=CANDIDATES, **options):
    kind = orderings[name]
    return kind(kind.options_type(**options)).settle(candidates, trials)


ALONE = {(): 0.30, (0,): 0.45, (1,): 0.31, (2,): 0.45, (3,): 0.38}


def test_fixed_and_family_try_nothing():
    trials = Told({})
    assert settle("fixed", trials).order == (0, 1, 2, 3)
    found = settle("family", trials)
    assert found.order == (1, 3, 2, 0)
    assert found.why[0] == "rotation is geometric"
    assert trials.asked == set()


def test_ranks_go_by_single_tasks_and_keep_the_written_order_of_equals():
    assert settle("ascending", Told(ALONE)).order == (1, 3, 0, 2)
    found = settle("descending", Told(ALONE))
    assert found.order == (0, 2, 3, 1)
    assert found.why == (
        "simclr alone: 45.0 %",
        "swav alone: 45.0 %",
        "relative-location alone: 38.0 %",
        "rotation alone: 31.0 %",
    )


def test_greedy_takes_the_best_next_task_and_ends_when_none_helps():
    scores = ALONE | {
        (0, 1): 0.44,
        (0, 2): 0.46,
        (0, 3): 0.50,
        (0, 3, 1): 0.501,
        (0, 3, 2): 0.495,
    }
    trials = Told(scores)
    found = settle("greedy", trials, min_gain=0.005)
    assert found.order == (0, 3)
    assert trials.asked == set(scores), "no more and no less was tried"
    assert found.why[-1] == "place 3: none gains 0.5 % (rotation 50.1 %, swav 49.5 %): the end"
    assert settle("greedy", Told(scores | {(0, 3, 1, 2): 0.1}), min_gain=0.0).order == (0, 3, 1)


def test_greedy_fills_the_first_place_even_where_nothing_beats_the_untrained_backbone():
    scores = {(): 0.6, (0,): 0.5, (1,): 0.4, (0, 1): 0.5}
    assert settle("greedy", Told(scores), CANDIDATES[:2]).order == (0,)


def test_representation_goes_to_what_is_furthest_among_the_good_ones():
    distances = {
        ((0,), (2,)): 0.2,
        ((0,), (3,)): 0.6,
        ((0, 3), (2,)): 0.3,
    }
    found = settle("representation", Told(ALONE, distances), min_gain=0.05)
    assert found.order == (0, 3, 2)
    assert found.why[:2] == (
        "simclr is the best alone: 45.0 % (untrained 30.0 %)",
        "rotation is left out: 31.0 % alone",
    )
    assert found.why[2] == "relative-location is furthest: 1 - CKA = 0.600"


@pytest.mark.parametrize("name", ["fixed", "ascending", "descending", "family", "greedy", "representation"])
def test_one_task_is_its_own_order(name):
    assert settle(name, Told({(): 0.5, (0,): 0.4}), CANDIDATES[:1]).order == (0,)


def test_there_is_one_file_for_each_kind_and_a_clear_error_for_none():
    assert list(orderings) == ["ascending", "descending", "family", "fixed", "greedy", "representation"]
    with pytest.raises(InputError, match="unknown ordering policy 'gredy'"):
        orderings["gredy"]


def test_every_task_has_a_place_in_the_order_of_families():
    candidates = [Candidate(name, pretext_tasks[name].family) for name in pretext_tasks]
    order = settle("family", Told({}), candidates).order
    assert sorted(order) == list(range(len(candidates)))
    assert candidates[order[-1]].name == "multi-task"
