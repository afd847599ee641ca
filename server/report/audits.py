"""What audits of a model left in its run's folder: what it ties together, where it looks, what it gives away.

A report shows each of them where its file is there. Fields that are not shown are passed over, so that an audit may
say more than a report does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError
from server.results import Reason, Text

COMPARE, BIAS, ATTENTION, SITES = "compare.json", "audit-bias.json", "attention.json", "audit-sites.json"
FOUND, NOT_TESTABLE = "found", "not testable"
"""Verdicts of a bias test that a reader must not overlook."""

Kind = TypeVar("Kind")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ComparedBlock(_Part):
    """One block of two models, see `server.comparison.BlockMean`."""

    blocks: tuple[Text, Text]
    cka: float | None
    svcca: float | None
    ranks: tuple[float, float]

    @property
    def name(self) -> str:
        """The block's name, or both models' names of it."""
        return self.blocks[0] if self.blocks[0] == self.blocks[1] else " / ".join(self.blocks)


class ComparedPair(_Part):
    """How alike two models are, see `server.comparison.Pair`: an entry of ``aiseeme compare --json``."""

    first: Text
    second: Text
    blocks: tuple[ComparedBlock, ...] = Field(min_length=1)
    images: dict[Text, int]
    refused: dict[Text, Text] = {}


class BiasTest(_Part):
    """One association test at one layer, see `aiseeme_models.analysis.bias.LayerAudit`.

    Attributes:
        test, layer: which.
        effect: in units of a standard deviation.
        p_value: of the association alone.
        beyond: p-value of an effect that far from the untrained networks'.
        corrected: the larger of both, for all tests.
        control: p-value of the layer's control.
        untrained: effects in untrained networks.
        sizes: images of each set.
        verdict: what to make of it.
    """

    test: Text
    layer: Text
    effect: float | None
    p_value: float | None = None
    beyond: float | None = None
    corrected: float | None = None
    control: float | None = None
    untrained: tuple[float, ...] = ()
    sizes: dict[Text, int] | tuple[int, ...] = ()
    verdict: Text

    @property
    def images(self) -> str:
        """Images of each set, in order: ``12, 12, 30, 30``."""
        sizes = self.sizes.values() if isinstance(self.sizes, dict) else self.sizes
        return ", ".join(f"{size:,}" for size in sizes)


class Subgroup(_Part):
    """The downstream metric among the patients of one value of a column; ``omitted`` says why there is none."""

    column: Text
    value: Text
    n_images: int | None = None
    balanced_accuracy: float | None
    low: float | None = None
    high: float | None = None
    omitted: Text | None = None


class Gap(_Part):
    """The largest difference between two values of a column, best less worst, with its 95 % interval."""

    column: Text
    best: Text
    worst: Text
    difference: float
    low: float | None = None
    high: float | None = None


class BiasAudit(_Part):
    """``audit-bias.json``.

    Attributes:
        tests: at every layer.
        omitted: of each test why a site did not make it.
        refused: why other sites did not answer at all.
        subgroups, gaps: the classifier's figures.
    """

    tests: tuple[BiasTest, ...] = ()
    omitted: dict[Text, dict[Text, Reason]] = {}
    refused: dict[Text, Reason] = {}
    subgroups: tuple[Subgroup, ...] = ()
    gaps: tuple[Gap, ...] = ()

    @property
    def by_test(self) -> dict[str, list[BiasTest]]:
        """The layers of each test."""
        of: dict[str, list[BiasTest]] = {}
        for one in self.tests:
            of.setdefault(one.test, []).append(one)
        return of

    @property
    def found(self) -> list[BiasTest]:
        """Associations that neither shuffled images nor untrained networks explain."""
        return [one for one in self.tests if one.verdict == FOUND]

    @property
    def columns(self) -> list[str]:
        """Whose values the metric was told for, in order."""
        return list(dict.fromkeys(one.column for one in self.subgroups))


class AttentionRow(_Part):
    """Where one network looks.

    Attributes:
        model: which.
        kind: of map.
        images: how many with a mask.
        energy, energy_low, energy_high: mean share of the map inside the mask, and its 95 % interval.
        iou: mean overlap of the mask and the map's hottest half.
        mask_share: mean share of the image inside the mask: the energy of a map that knows nothing.
        gain, gain_low, gain_high: energy less mask share, and its 95 % interval.
    """

    model: Text
    kind: Text
    images: int
    energy: float | None
    energy_low: float | None = None
    energy_high: float | None = None
    iou: float | None = None
    mask_share: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None


class Attention(_Part):
    """``attention.json``; ``cam`` is the kind of class activation map."""

    cam: Text = "class activation map"
    rows: tuple[AttentionRow, ...]


class Told(_Part):
    """How well hospitals are told apart: mean share of each one's images, 95 % interval, p-value against chance."""

    balanced_accuracy: float
    low: float | None = None
    high: float | None = None
    p: float


class Attack(_Part):
    """What an attacker sees of an image, and how well hospitals are told from it; ``same_class``: classes balanced."""

    sees: Text
    all_images: Told
    same_class: Told | None = None


class SiteInference(_Part):
    """``audit-sites.json``; ``chance`` is that of naming a hospital without looking."""

    chance: float
    rows: tuple[Attack, ...]


@dataclass(frozen=True)
class Audits:
    """What there is in a run's folder; None: that audit was not made."""

    likeness: tuple[ComparedPair, ...] | None = None
    bias: BiasAudit | None = None
    attention: Attention | None = None
    sites: SiteInference | None = None

    @property
    def made(self) -> bool:
        """Whether any was."""
        return any(audit is not None for audit in (self.likeness, self.bias, self.attention, self.sites))


_PAIRS: TypeAdapter[tuple[ComparedPair, ...]] = TypeAdapter(tuple[ComparedPair, ...])


def read_audits(folder: Path) -> Audits:
    """The audits in a run's folder.

    Raises:
        InputError: a file of one of their names is not what an audit writes.
    """
    return Audits(
        likeness=_read(folder / COMPARE, _PAIRS, "what `aiseeme compare --save` writes"),
        bias=_read(folder / BIAS, TypeAdapter(BiasAudit), "what `aiseeme audit bias` writes"),
        attention=_read(folder / ATTENTION, TypeAdapter(Attention), "what `aiseeme audit attention` writes"),
        sites=_read(folder / SITES, TypeAdapter(SiteInference), "what `aiseeme audit sites` writes"),
    )


def compared_pairs(pairs: Sequence[Mapping[str, object]]) -> tuple[ComparedPair, ...]:
    """The entries of ``aiseeme compare --json`` as a report has them."""
    return _PAIRS.validate_python(pairs)


def save_likeness(folder: Path, pairs: tuple[ComparedPair, ...]) -> Path:
    """Write ``compare.json`` into a run's folder and give its path."""
    path = folder / COMPARE
    write_atomically(path, _PAIRS.dump_json(pairs, indent=2))
    return path


def _read(path: Path, kind: TypeAdapter[Kind], what: str) -> Kind | None:
    if not path.is_file():
        return None
    try:
        return kind.validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise InputError(f"{path}: not {what}: {where}: {fault['msg']}") from None
