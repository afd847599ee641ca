"""A stage ends when the held-out loss has stopped improving, and not before."""

from __future__ import annotations

import pytest

from aiseeme_models.curriculum.stopping import plateau


@pytest.mark.parametrize(
    ("history", "patience", "improvement", "expected"),
    [
        ([], 1, 0.0, False),
        ([1.0], 1, 0.0, False),
        ([1.0, 1.0], 1, 0.0, True),
        ([1.0, 0.9, 0.8, 0.7], 2, 0.01, False),
        ([1.0, 0.9, 0.9, 0.9], 2, 0.01, True),
        ([1.0, 0.9, 0.9, 0.9], 3, 0.01, False),
        ([1.0, 0.5, 0.7, 0.6], 2, 0.01, True),  # better than the round before is not better than the best
        ([1.0, 0.995, 0.99, 0.985], 3, 0.05, True),  # too little
        ([1.0, 0.98, 0.96, 0.94], 3, 0.05, False),  # slow steps that add up to an improvement
        ([-1.0, -0.5, -2.0], 1, 0.1, False),  # losses may be negative
        ([0.0, 0.0, 0.0], 2, 0.1, True),
    ],
)
def test_plateau(history, patience, improvement, expected):
    assert plateau(history, patience, improvement) is expected
