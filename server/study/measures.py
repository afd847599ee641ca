"""What is measured of a model, and what it is called."""

from __future__ import annotations

from collections.abc import Sequence

from aiseeme_models.downstream.finetune import FineTuneOptions
from aiseeme_models.errors import InputError

LINEAR, KNN = "linear", "knn"

DEFAULT_FINETUNE = "0.1:10,1:3"
"""Passes over a tenth and over all of the labelled images, sized for two CPU cores."""


def finetune_measure(options: FineTuneOptions) -> str:
    """The measure's name: ``finetune-10`` with a tenth of the labelled patients."""
    return f"finetune-{100 * options.fraction:g}"


def title_of(measure: str) -> str:
    """What a measure is called in a table."""
    if measure.startswith("finetune-"):
        return f"fine-tune {measure.removeprefix('finetune-')} %"
    return {LINEAR: "linear", KNN: "k-NN"}[measure]


def measures_of(finetune: Sequence[FineTuneOptions]) -> list[str]:
    """All measures of a study, in the order of its table."""
    return [LINEAR, KNN, *(finetune_measure(options) for options in finetune)]


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
