"""What a model ties together in hospitals' own images: they test, their figures are pooled and judged together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from aiseeme_models.analysis.bias import LayerAudit, Measured, judge
from aiseeme_models.analysis.ieat import Association
from aiseeme_models.analysis.image_sets import AssociationTest
from aiseeme_models.analysis.pooled_bias import pool
from aiseeme_models.errors import InputError
from aiseeme_models.training.shared_state import flatten_backbone
from federation_configs.audit_messages import AssociationFigures, AuditReply, AuditRequest, LayerFigures
from federation_configs.records import Enclosure
from federation_configs.site_errors import SiteError
from federation_configs.transfer import outgoing
from server.asked_sites import AskedSites, NamedBackbone
from server.replies import check_audit


@dataclass(frozen=True)
class AuditOutcome:
    """What an audit came to.

    Attributes:
        pooled: every test at every layer, over the sites that made it; corrected for all of them.
        sites: the same at each site alone, corrected for those of the site.
        images: how many images each site looked at, rounded down to fives.
        omitted: of each test why a site that answered did not make it.
        refused: why other sites did not answer.
    """

    pooled: list[LayerAudit]
    sites: dict[str, list[LayerAudit]]
    images: dict[str, int]
    omitted: dict[str, dict[str, str]]
    refused: dict[str, str]


@dataclass
class BiasAudit(AskedSites):
    """Asks sites over a Grid what a backbone ties together."""

    def of(
        self,
        named: NamedBackbone,
        tests: Sequence[AssociationTest],
        *,
        layers: Sequence[str],
        untrained: int,
        images: int,
    ) -> AuditOutcome:
        """Audit a backbone.

        Args:
            named: the backbone.
            tests, layers, untrained, images: see `AuditRequest`.

        Raises:
            InputError: a backbone for images of another number of channels, or more than a site answers.
            RunFailed: no site answered; the text says why.
        """
        self.check_channels(named)
        try:
            asked = AuditRequest(
                run=self.run,
                config=self.config,
                model=named.told,
                tests=tuple(tests),
                layers=tuple(layers),
                untrained=untrained,
                images=images,
                seed=self.config.seed,
            )
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = "".join(f"{part}: " for part in fault["loc"][:1])
            raise InputError(f"bias audit: {where}{fault['msg'].removeprefix('Value error, ')}") from None
        roster, _ = self.described()
        weights = outgoing(flatten_backbone(named.backbone), self.config.federation.transfer)
        replies, refused = self.answers(
            "audit",
            asked,
            Enclosure(weights),
            roster,
            lambda message, site, nonce: check_audit(message, site=site, asked=asked, nonce=nonce),
            f"audited {named.name}",
        )
        measured = {site: _measured(asked, reply) for site, reply in replies.items()}
        order = [(test.name, layer) for test in asked.tests for layer in asked.layers]
        return AuditOutcome(
            pooled=judge(pool(list(measured.values()), order)),
            sites={site: judge(found) for site, found in measured.items()},
            images={site: reply.images for site, reply in replies.items()},
            omitted=_omitted(asked, replies),
            refused=dict(refused),
        )


def _measured(asked: AuditRequest, reply: AuditReply) -> list[Measured]:
    return [
        _one(test.name, layer, figures, told)
        for test, told in zip(asked.tests, reply.tests, strict=True)
        if told is not None
        for layer, figures in zip(asked.layers, told.layers, strict=True)
        if figures is not None
    ]


def _one(test: str, layer: str, figures: LayerFigures, told: AssociationFigures) -> Measured:
    association = Association(figures.effect, figures.p_value, figures.opposite, exact=False, sizes=told.sizes)
    return Measured(test, layer, association, figures.control, figures.untrained)


def _omitted(asked: AuditRequest, replies: dict[str, AuditReply]) -> dict[str, dict[str, str]]:
    why = SiteError.TOO_FEW_COMPARED.sentence
    found = {
        test.name: {site: why for site, reply in replies.items() if reply.tests[place] is None}
        for place, test in enumerate(asked.tests)
    }
    return {test: sites for test, sites in found.items() if sites}
