"""Which images train, which stop a stage, which test: decided by the patient or lesion alone."""

from __future__ import annotations

import hashlib
from typing import Literal

from aiseeme_models.errors import InputError

Split = Literal["train", "validation", "test"]

TEST_FRACTION = 0.25
VALIDATION_FRACTION = 0.05

POINTS = 4096
"""Resolution of a split point."""

_KEPT_BITS = 12


def split_point(group: str) -> int:
    """Where ``group`` (a patient, else a lesion, else a series, else the file itself) lies among `POINTS`.

    The highest 12 bits of a BLAKE2b hash. So an image keeps its split whatever the seed, the site it lies at and the
    images around it, and two sites that share a patient agree. 12 bits are kept and no more: a hospital's catalogue
    may hold them, since in a hospital of some thousand patients they point at no one.
    """
    digest = hashlib.blake2b(group.encode("utf-8", "surrogatepass"), digest_size=8, person=b"aiseeme-split").digest()
    return int.from_bytes(digest, "big") >> (64 - _KEPT_BITS)


def split_at(point: int, *, test: float = TEST_FRACTION, validation: float = VALIDATION_FRACTION) -> Split:
    """The split of every image of a group at ``point``: the lowest ``test`` of the points test, the next validate.

    Another ``validation`` never moves a test image.

    Args:
        point: see `split_point`.
        test: expected fraction of groups that test, in [0, 1).
        validation: expected fraction of groups that validate, in [0, 1), with ``test + validation < 1``.

    Raises:
        InputError: the fractions leave nothing to train on.
    """
    if not (test >= 0.0 and validation >= 0.0 and test + validation < 1.0):
        raise InputError(
            f"split fractions test={test} and validation={validation}: both must be at least 0 and their sum below 1"
        )
    if point < test * POINTS:
        return "test"
    return "validation" if point < (test + validation) * POINTS else "train"


def split_of(group: str, *, test: float = TEST_FRACTION, validation: float = VALIDATION_FRACTION) -> Split:
    """`split_at` the point of a group whose name is at hand."""
    return split_at(split_point(group), test=test, validation=validation)


def fold_of(group: str, folds: int) -> int:
    """The fold, from 0, in which every image of ``group`` is evaluated; independent of its split.

    Args:
        group: what must never be divided; a site's pseudonym of a patient serves as well as the name.
        folds: at least 2.

    Raises:
        InputError: fewer than two folds.
    """
    if folds < 2:
        raise InputError(f"{folds} folds: cross-validation needs at least 2")
    digest = hashlib.blake2b(group.encode("utf-8", "surrogatepass"), digest_size=8, person=b"aiseeme-folds").digest()
    return int.from_bytes(digest, "big") * folds >> 64
