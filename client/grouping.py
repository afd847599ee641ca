"""Which images belong to one patient: whatever names a patient, lesion, study or series twice is never divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.scan_result import CatalogueRow

# What de-identification tools write instead of an id: it names nobody, so it must not make everybody one patient.
_PLACEHOLDER_WORDS = """
    - 0 1 anon anonym anonymised anonymized anonymous anonymousid de-identified deidentified n/a na nil no_id noid none
    not_provided null patient patientid redacted removed test unk unknown xxxx
"""
_PLACEHOLDERS = frozenset(["", "no id", "not provided", "patient id", *_PLACEHOLDER_WORDS.split()])


def names_somebody(identifier: str) -> bool:
    """Whether an id in a header can be one of a single patient."""
    return identifier.strip().strip("^").lower() not in _PLACEHOLDERS


@dataclass(frozen=True)
class Identity:
    """What is known of whose an image is.

    Attributes:
        tokens: pseudonyms of patient, lesion, study, series, or of the file where nothing else is known.
        point: split point, with its rank: lower ranks name more (patient before lesion before series before file).
    """

    tokens: tuple[str, ...]
    point: tuple[int, int]


def lasting_names(rows: Sequence[CatalogueRow]) -> list[str]:
    """Each row's group named by its smallest content: pseudonyms differ between homes, dealing must not."""
    smallest: dict[str, str] = {}
    for row in rows:
        smallest[row.group] = min(smallest.get(row.group, row.content), row.content)
    return [smallest[row.group] for row in rows]


def names_across_folders(rows: Sequence[CatalogueRow]) -> list[str]:
    """Names as `lasting_names` gives, with those one name whose split point is one.

    A patient of two folders that were scanned apart may be of two groups, as each has other studies of theirs, but has
    one split point. Strangers may share a point, too: that makes larger groups, and divides nobody.
    """
    names = lasting_names(rows)
    seen = [Identity((name, f"point {row.point}"), (0, row.point)) for name, row in zip(names, rows, strict=True)]
    return [name for name, _ in group(seen)]


def group(identities: Sequence[Identity]) -> list[tuple[str, int]]:
    """Group and split point of every image: images that share a token, directly or through others, are one group.

    The point of a group is that of its best-ranked identity, the smallest of several: two sites that know a patient by
    the same id agree on it.
    """
    parent: dict[str, str] = {}

    def root(token: str) -> str:
        parent.setdefault(token, token)
        while parent[token] != token:
            parent[token] = parent[parent[token]]
            token = parent[token]
        return token

    for identity in identities:
        first = root(identity.tokens[0])
        for token in identity.tokens[1:]:
            other = root(token)
            # The smaller name leads, so that the outcome does not depend on the order.
            first, other = min(first, other), max(first, other)
            parent[other] = first
    roots = [root(identity.tokens[0]) for identity in identities]
    points: dict[str, tuple[int, int]] = {}
    for name, identity in zip(roots, identities, strict=True):
        points[name] = min(points.get(name, identity.point), identity.point)
    return [(name, points[name][1]) for name in roots]
