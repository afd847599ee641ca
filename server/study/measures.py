"""What is measured of a model, and what it is called."""

from __future__ import annotations

from collections.abc import Sequence

from aiseeme_models.downstream.finetune import FineTuneOptions
from aiseeme_models.errors import InputError

LINEAR, KNN = "linear", "knn"
_IN_FOLDS = "-folds"

MOST_FOLDS = 20
"""More say no more, and each is a fit of its own."""

DEFAULT_FINETUNE = "0.1:10,1:3"
"""Passes over a tenth and over all of the labelled images, sized for two CPU cores."""


def finetune_measure(options: FineTuneOptions) -> str:
    """The measure's name: ``finetune-10`` with a tenth of the labelled patients."""
    return f"finetune-{100 * options.fraction:g}"


def folds_measure(probe: str, folds: int) -> str:
    """The measure's name: ``linear-5-folds``."""
    return f"{probe}-{folds}{_IN_FOLDS}"


def is_in_folds(measure: str) -> bool:
    """Whether every labelled image is tested in it."""
    return measure.endswith(_IN_FOLDS)


def title_of(measure: str) -> str:
    """What a measure is called in a table."""
    if is_in_folds(measure):
        probe, folds = measure.removesuffix(_IN_FOLDS).rsplit("-", 1)
        return f"{title_of(probe)} in {folds} folds"
    if measure.startswith("finetune-"):
        return f"fine-tune {measure.removeprefix('finetune-')} %"
    return {LINEAR: "linear", KNN: "k-NN"}[measure]


def measures_of(finetune: Sequence[FineTuneOptions], folds: int) -> list[str]:
    """All measures of a study, in the order of its table."""
    in_folds = [folds_measure(probe, folds) for probe in (LINEAR, KNN)] if folds else []
    return [LINEAR, KNN, *in_folds, *(finetune_measure(options) for options in finetune)]


def parse_folds(folds: int) -> int:
    """A number of folds, or 0.

    Raises:
        InputError: it is 1, or more than is of use.
    """
    if folds == 1 or folds > MOST_FOLDS:
        raise InputError(f"--folds {folds}: write a number from 2 to {MOST_FOLDS}, or 0 for none")
    return folds


def parse_finetune(text: str) -> tuple[FineTuneOptions, ...]:
    """``0.1:10,1:3`` (fraction of the labelled patients, passes over their images) or ``none``.

    Raises:
        InputError: it is something else.
    """
    if text.strip() == "none":
        return ()
    try:
        pairs = [part.split(":") for part in text.split(",")]
        found = tuple(FineTuneOptions(fraction=float(share), epochs=int(epochs)) for share, epochs in pairs)
    except ValueError:
        raise InputError(
            f"--finetune {text}: write fraction:epochs, as {DEFAULT_FINETUNE} (a fraction above 0 and up to 1), or none"
        ) from None
    if len({options.fraction for options in found}) < len(found):
        raise InputError(f"--finetune {text}: a fraction is there twice")
    return found
