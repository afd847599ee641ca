"""Which images train, which stop a stage, which test: decided by the patient or lesion alone."""

from __future__ import annotations

import hashlib
from typing import Literal

from aiseeme_models.errors import InputError

Split = Literal["train", "validation", "test"]

TEST_FRACTION = 0.25
VALIDATION_FRACTION = 0.05

_RESOLUTION = 2**64


def split_of(group: str, *, test: float = TEST_FRACTION, validation: float = VALIDATION_FRACTION) -> Split:
    """The split of every image of ``group`` (a patient, else a lesion, else the file itself).

    A point in [0, 1) is read off a BLAKE2b hash of the group: the lowest ``test`` of it is the test split, the next
    ``validation`` the validation split. So an image keeps its split whatever the seed, the site it lies at and the
    images around it, two sites that share a patient agree, and another ``validation`` never moves a test image.

    Args:
        group: identifier of what must never be divided.
        test: expected fraction of groups that test, in [0, 1).
        validation: expected fraction of groups that validate, in [0, 1), with ``test + validation < 1``.

    Raises:
        InputError: the fractions leave nothing to train on.
    """
    if not (test >= 0.0 and validation >= 0.0 and test + validation < 1.0):
        raise InputError(
            f"split fractions test={test} and validation={validation}: both must be at least 0 and their sum below 1"
        )
    digest = hashlib.blake2b(group.encode("utf-8", "surrogatepass"), digest_size=8, person=b"aiseeme-split").digest()
    point = int.from_bytes(digest, "big")
    if point < test * _RESOLUTION:
        return "test"
    return "validation" if point < (test + validation) * _RESOLUTION else "train"
