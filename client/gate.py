"""The one way by which a request gets in and an answer gets out of a real site: checked, allowed, and in the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from aiseeme_models.analysis.comparison import whole_batches
from client.ledger import Ledger
from client.policy import (
    check_comparison,
    check_hours,
    check_images,
    check_stamp,
    check_validation,
    columns_used,
    comparisons_in,
    decide,
    passes,
)
from client.refusals import Refusal
from client.schedule import ScheduleOptions
from client.site_config import BudgetOptions, PolicyOptions
from federation_configs.audit_messages import AuditReply, AuditRequest
from federation_configs.loading import config_sha256
from federation_configs.records import left_with
from federation_configs.signatures import is_signed, public_key
from federation_configs.site_errors import SiteError
from federation_configs.wire import (
    AnalyseReply,
    AnalyseRequest,
    AssessRequest,
    DescribeReply,
    DescribeRequest,
    FitRequest,
    RangeRequest,
    Request,
    RoundReply,
    RoundRequest,
    TeachRequest,
    TrainReply,
    TrainRequest,
    request_purpose,
)

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from client.site import Site
    from client.site_config import SiteConfig

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Gate:
    """What a site checks of every request, and where it enters what happened.

    Attributes:
        site: the name under which it has joined.
        federation: the federation's name.
        coordinators: public keys (64 hexadecimal digits) whose signed requests are answered.
        policy: the ``[policy]`` table of site.toml.
        schedule: its ``[schedule]`` table.
        budget: its ``[privacy]`` table; where that has an epsilon, only private training is let in.
        ledger: takes every request and every answer; without an entry there is no work and no answer.
        clock: seconds since 1970 by the site's clock.
    """

    site: str
    federation: str
    coordinators: tuple[str, ...]
    policy: PolicyOptions
    schedule: ScheduleOptions
    ledger: Ledger
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    clock: Callable[[], float] = field(default=time.time, repr=False)

    @classmethod
    def of(cls, config: SiteConfig, ledger: Ledger, *, site: str, federation: str, signing_key: str) -> Gate:
        """The gate of a site that has joined.

        Args:
            config: its site.toml.
            ledger: its ledger.
            site, federation: the names in its membership.
            signing_key: the pinned public key of the membership, for which ``[policy] coordinators`` may name others.
        """
        keys = config.policy.coordinators or (signing_key,)
        return cls(site, federation, keys, config.policy, config.schedule, ledger, config.privacy)

    def decide(self, request: Request, now: float, images: int | None = None) -> None:
        """Refuse what the policy does not allow (see `client.policy.decide`), at ``now`` seconds since 1970."""
        since = datetime.fromtimestamp(now, UTC) - _DAY
        epochs, comparisons = self.ledger.epochs_since(since), self.ledger.comparisons_since(since)
        # What is not private would cost more than any budget, unless the site makes all that leaves private itself.
        needs = (self.policy.require_dp or self.budget.epsilon is not None) and self.budget.local_noise is None
        decide(
            self.policy,
            request,
            epochs_today=epochs,
            comparisons_today=comparisons,
            needs_privacy=needs,
            images=images,
        )

    def visit(self, kind: str) -> Visit:
        """Begin with a message of a kind: describe, or one of those that `server.questions` asks."""
        return Visit(self, kind)

    def signer(self, kind: str, signature: str | None, digest: bytes) -> str | None:
        """The allowed coordinator's key that made a signature of a request of this kind; None without one."""
        purpose = request_purpose(kind)
        if signature is None:
            return None
        return next((key for key in self.coordinators if is_signed(public_key(key), purpose, digest, signature)), None)


class Visit:
    """One request on its way through the gate: admitted, begun, and answered or failed."""

    def __init__(self, gate: Gate, kind: str) -> None:
        self._gate, self._kind = gate, kind
        self._asked: int | None = None
        self._begun = False
        self._since = time.monotonic()

    def admit(self, request: Request, signature: str | None, digest: bytes) -> None:
        """Enter what is asked, and let it in if it is signed, meant for here and now, and allowed.

        Args:
            request: as it was read; nothing of it is trusted before the signature has been looked at.
            signature: what stood beside it.
            digest: what it must be over.

        Raises:
            Refusal: it is not let in.
            OSError: the ledger cannot be written.
        """
        gate, stamp = self._gate, request.stamp
        coordinator = gate.signer(self._kind, signature, digest)
        with gate.ledger.locked():
            seen = stamp is not None and gate.ledger.knows(stamp.nonce)
            self._asked = gate.ledger.append("asked", **self._question(request, coordinator)).seq
        if signature is None:
            raise Refusal(SiteError.NOT_SIGNED)
        if coordinator is None:
            raise Refusal(SiteError.UNKNOWN_COORDINATOR)
        if stamp is None:
            raise Refusal(SiteError.BAD_REQUEST)
        now = gate.clock()
        for_one = not isinstance(request, DescribeRequest)
        check_stamp(stamp, federation=gate.federation, site=gate.site, for_one_site=for_one, now=now)
        if seen:
            raise Refusal(SiteError.REPLAYED)
        check_hours(gate.schedule, datetime.fromtimestamp(now))
        gate.decide(request, now)

    def begin(self, request: Request, site: Site) -> None:
        """Enter how many images are about to be used, before any of them is.

        Args:
            request: one that was admitted.
            site: with the images that it offers.

        Raises:
            Refusal: they are too few.
            OSError: the ledger cannot be written.
        """
        holdout = request.config.holdout
        training = len(site.rows_of("train", holdout))
        check_images(self._gate.policy, training)
        fields: dict[str, Any] = {"images": training}
        if isinstance(request, DescribeRequest):
            fields["images"] = len(site.rows)
        elif isinstance(request, TeachRequest):
            fields["images"] = 0
        elif isinstance(request, TrainRequest | RangeRequest | FitRequest):
            fields["epochs"] = passes(request, training)
        elif isinstance(request, AssessRequest | AuditRequest):
            fields["images"] = len(site.rows_of("test", holdout))
            check_comparison(fields["images"])
        else:
            fields["images"] = len(site.rows_of("validation", holdout))
            check_validation(fields["images"])
        if isinstance(request, AnalyseRequest):
            check_comparison(fields["images"])
            fields["images"] = whole_batches(fields["images"], request.images)
        if comparisons := comparisons_in(request):
            fields["comparisons"] = comparisons
        with self._gate.ledger.locked():
            # Again, as others may have begun meanwhile.
            if "epochs" in fields or "comparisons" in fields:
                self._gate.decide(request, self._gate.clock(), training)
            self._enter("started", **fields)
        self._begun = True

    def answered(self, reply: DescribeReply | RoundReply | AnalyseReply | AuditReply, content: RecordDict) -> None:
        """Enter what is about to leave.

        Args:
            reply: the answer's body.
            content: the whole answer as it is packed.

        Raises:
            Refusal: images turned out to be unusable, and those that are left are too few.
            OSError: the ledger cannot be written: then the answer must not leave.
        """
        if isinstance(reply, (DescribeReply, TrainReply)):
            check_images(self._gate.policy, reply.train if isinstance(reply, DescribeReply) else reply.images)
        length, digest = left_with(content)
        fields: dict[str, Any]
        if isinstance(reply, DescribeReply):
            counts = reply.model_dump(mode="json", include={"train", "validation", "test", "rejected", "classes"})
            fields = {"images": reply.train + reply.validation, "counts": counts}
        else:
            fields = {"images": reply.images, "steps": reply.steps if isinstance(reply, TrainReply) else 0}
        seconds = round(time.monotonic() - self._since, 3)
        spent = reply.epsilon if isinstance(reply, TrainReply) else None
        self._enter("answered", **fields, seconds=seconds, bytes=length, sha256=digest, privacy=spent)

    def failed(self, code: SiteError) -> None:
        """Enter that the request was refused, or that the work on it failed; only the code leaves.

        Raises:
            OSError, LedgerBroken: the ledger cannot be written.
        """
        self._enter("failed" if self._begun else "refused", code=code.name)

    def _question(self, request: Request, coordinator: str | None) -> dict[str, Any]:
        stamp, config, stages = request.stamp, request.config, request.config.curriculum.stage
        place: dict[str, Any] = {"round": None, "stage": None, "task": ", ".join(stage.title for stage in stages)}
        if isinstance(request, RoundRequest):
            task = stages[request.stage].title if request.stage < len(stages) else None
            if task is not None and request.trial is not None:
                task = f"{task}, trial {request.trial}"
            place = {"round": request.round, "stage": request.stage, "task": task}
        return {
            "what": self._kind,
            "run": request.run,
            **place,
            "name": config.name,
            "labels": ", ".join(columns_used(request)) or None,
            "config": config_sha256(config),
            "coordinator": coordinator,
            "nonce": None if stamp is None else stamp.nonce,
        }

    def _enter(self, kind: str, **fields: Any) -> None:
        self._gate.ledger.append(kind, request=self._asked, what=self._kind, **fields)
