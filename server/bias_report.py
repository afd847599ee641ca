"""``audit-bias.json``: what `aiseeme audit bias` found, in the folder of the audited run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from aiseeme_models.analysis.bias import LayerAudit, Verdict
from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.downstream.subgroups import Gap, Subgroup
from server.bias_audit import AuditOutcome
from server.results import Reason, Text

FILE = "audit-bias.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sizes(_Part):
    """Patients in the two groups ``x`` and ``y``, and showing the two attributes ``a`` and ``b``; down to fives."""

    x: int
    y: int
    a: int
    b: int


class SiteTest(_Part):
    """One test at one layer, at one site or over all.

    Attributes:
        effect: above 0 the first group is nearer to the first attribute; in units of a standard deviation.
        p_value: two-sided, of the association alone.
        beyond: p-value of an effect that far from the untrained networks'.
        corrected: the larger of both, corrected for all tests at all layers.
        control: p-value of the layer's control.
        untrained: effects in the untrained networks.
        verdict: ``"found"``, ``"not found"``, or ``"not testable"``, where the control fails.
        sizes: of the sets.
    """

    effect: float
    p_value: float
    beyond: float
    corrected: float
    control: float
    untrained: tuple[float, ...]
    verdict: Verdict
    sizes: Sizes


class PooledTest(SiteTest):
    """One test at one layer over all sites that made it, and ``sites`` each of them alone, corrected for its own."""

    test: Text
    layer: Text
    sites: dict[Text, SiteTest]


class BiasReport(_Part):
    """The whole file.

    Attributes:
        run: whose model.
        seed: of the untrained networks and the draws.
        images: how many each site looked at, one of a patient, rounded down to fives.
        tests: every test at every layer.
        omitted: of each test why a site did not make it.
        refused: why other sites did not answer.
        subgroups: the classifier's figures by subgroup.
        gaps: of each column the largest difference between two subgroups.
    """

    run: Text
    seed: int
    images: dict[Text, int] = {}
    tests: list[PooledTest] = []
    omitted: dict[Text, dict[Text, Reason]] = {}
    refused: dict[Text, Reason] = {}
    subgroups: list[Subgroup] = []
    gaps: list[Gap] = []

    @classmethod
    def of(
        cls, run: str, seed: int, outcome: AuditOutcome | None, subgroups: Sequence[Subgroup], gaps: Sequence[Gap]
    ) -> Self:
        """The report of an audit; without an ``outcome`` no association was tested."""
        told = {"run": run, "seed": seed, "subgroups": list(subgroups), "gaps": list(gaps)}
        if outcome is None:
            return cls.model_validate(told)
        at_sites = {site: {(one.test, one.layer): one for one in judged} for site, judged in outcome.sites.items()}
        tests = [
            PooledTest(
                test=one.test,
                layer=one.layer,
                sites={
                    site: SiteTest.model_validate(_figures(judged[one.test, one.layer]))
                    for site, judged in at_sites.items()
                    if (one.test, one.layer) in judged
                },
                **_figures(one),
            )
            for one in outcome.pooled
        ]
        return cls.model_validate(
            told | {"images": outcome.images, "tests": tests, "omitted": outcome.omitted, "refused": outcome.refused}
        )

    @property
    def found(self) -> list[PooledTest]:
        """The associations that are there over all sites."""
        return [test for test in self.tests if test.verdict == "found"]

    @property
    def sentences(self) -> list[str]:
        """What must be known to read the figures, a sentence each."""
        told = []
        if self.images:
            told.append("test patients: " + ", ".join(f"{site} {count}" for site, count in self.images.items()))
        for test, sites in self.omitted.items():
            told.append(f"{test}: not made at {', '.join(sites)}: {next(iter(sites.values()))}")
        for site, why in self.refused.items():
            told.append(f"without {site}: {why}")
        for gap in self.gaps:
            classes = next(one.classes for one in self.subgroups if one.column == gap.column and one.classes)
            told.append(
                f"{gap.column}: balanced accuracy over the classes that every subgroup has: {', '.join(classes)}"
            )
        if self.images:
            told.append(
                "tests that neither shuffled images nor untrained networks explain, corrected for their number:"
                f" {len(self.found)} of {len(self.tests)} (each layer counts)"
            )
        return told

    def save(self, run_folder: Path) -> Path:
        """Write the file whole, or leave what was there."""
        path = run_folder / FILE
        write_atomically(path, self.model_dump_json(indent=2).encode())
        return path


def _figures(one: LayerAudit) -> dict[str, object]:
    x, y, a, b = one.association.sizes
    return {
        "effect": one.association.effect,
        "p_value": one.association.two_sided,
        "beyond": one.beyond,
        "corrected": one.corrected,
        "control": one.control,
        "untrained": one.untrained,
        "verdict": one.verdict,
        "sizes": Sizes(x=x, y=y, a=a, b=b),
    }
