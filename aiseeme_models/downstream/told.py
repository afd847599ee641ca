"""Which counts may be told, where a small one may point at a person and the whole is known."""

from __future__ import annotations

from collections.abc import Sequence

SMALLEST = 5
"""The smallest count that may be told: a smaller one may point at a person."""


def hidden_cells(counts: Sequence[int], smallest: int) -> set[int]:
    """The positions of the counts that must not be told exactly, when their sum is known.

    Those below ``smallest``; and as the sum would tell a single one that is left out, or that several are nearly none,
    the next larger ones too, until at least two are hidden with at least ``smallest`` in them (cell suppression).

    Args:
        counts: not negative.
        smallest: the smallest count that may be told.
    """
    hidden = {place for place, count in enumerate(counts) if count < smallest}
    larger = sorted((place for place in range(len(counts)) if place not in hidden), key=lambda place: counts[place])
    while hidden and larger and (len(hidden) < 2 or sum(counts[place] for place in hidden) < smallest):
        hidden.add(larger.pop(0))
    return hidden
