"""Whether a request is within what the hospital allows in site.toml. Pure rules: nothing is read, nothing is kept."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from aiseeme_models.analysis.comparison import whole_batches
from aiseeme_models.analysis.image_sets import columns_of
from aiseeme_models.curriculum.tuning.ladder import STEPS_OF_A_SIZE, ladder
from client.refusals import Refusal
from client.schedule import ScheduleOptions
from client.site_config import SMALLEST_SITE, PolicyOptions
from federation_configs.audit_messages import AuditRequest
from federation_configs.downstream import label_columns
from federation_configs.site_errors import SiteError
from federation_configs.wire import (
    LARGEST_COMPARISON,
    LONGEST_VALIDITY_S,
    AnalyseRequest,
    AssessRequest,
    FitRequest,
    RangeRequest,
    Request,
    RoundRequest,
    Stamp,
    TrainRequest,
)

CLOCK_TOLERANCE_S = 120.0
"""How far ahead of the site's clock the coordinator's may be."""


def check_stamp(stamp: Stamp, *, federation: str, site: str, for_one_site: bool, now: float) -> None:
    """Refuse a signed request that is not for here, or not for now.

    Args:
        stamp: the request's.
        federation: the name of the federation that this site has joined.
        site: the name under which it did.
        for_one_site: whether the request must name the site; a description may be asked of any.
        now: seconds since 1970 by the site's clock.

    Raises:
        Refusal: OTHER_FEDERATION, OTHER_SITE, CLOCK_SKEW, EXPIRED, or BAD_REQUEST where it would be good for too long.
    """
    if stamp.federation != federation:
        raise Refusal(SiteError.OTHER_FEDERATION)
    if stamp.site != site and (for_one_site or stamp.site is not None):
        raise Refusal(SiteError.OTHER_SITE)
    if stamp.issued > now + CLOCK_TOLERANCE_S:
        raise Refusal(SiteError.CLOCK_SKEW)
    if stamp.expires <= now:
        raise Refusal(SiteError.EXPIRED)
    if stamp.expires - stamp.issued > LONGEST_VALIDITY_S + 1:
        raise Refusal(SiteError.BAD_REQUEST)


def check_hours(schedule: ScheduleOptions, now: datetime) -> None:
    """Refuse what comes outside the hours; ``now`` is local time.

    Raises:
        Refusal: OUTSIDE_HOURS.
    """
    if not schedule.is_open(now):
        raise Refusal(SiteError.OUTSIDE_HOURS)


def decide(
    policy: PolicyOptions,
    request: Request,
    *,
    epochs_today: float,
    comparisons_today: int = 0,
    needs_privacy: bool | None = None,
    images: int | None = None,
) -> None:
    """Refuse a request that the site's policy does not allow.

    The whole configuration is looked at with every request: a site does not begin with a run that it would have to
    leave at a later stage.

    Args:
        policy: the ``[policy]`` table.
        request: any request.
        epochs_today: passes over the site's images in the 24 hours before, in all runs.
        comparisons_today: what the requests of the 24 hours before count as, see `comparisons_in`.
        needs_privacy: whether only what is trained with differential privacy is let in; default: as the policy says.
        images: the site's training images, where they are counted already.

    Raises:
        Refusal: with the code of the first rule that the request breaks.
    """
    config, stages = request.config, request.config.curriculum.stage
    needs_privacy = policy.require_dp if needs_privacy is None else needs_privacy
    if isinstance(request, RoundRequest) and request.stage >= len(stages):
        raise Refusal(SiteError.BAD_REQUEST)
    if not all(_allows(policy.tasks, task) for stage in stages for task in stage.tasks):
        raise Refusal(SiteError.TASK_NOT_ALLOWED)
    if not set(columns_used(request)) <= set(policy.label_columns):
        raise Refusal(SiteError.LABELS_NOT_ALLOWED)
    backbones = {config.model.backbone}
    if isinstance(request, AnalyseRequest):
        backbones |= {model.backbone for model in request.models}
    if isinstance(request, AuditRequest):
        backbones.add(request.model.backbone)
    if not all(_allows(policy.backbones, backbone) for backbone in backbones):
        raise Refusal(SiteError.BACKBONE_NOT_ALLOWED)
    if not _allows(policy.presets, config.images.preset):
        raise Refusal(SiteError.PRESET_NOT_ALLOWED)
    sizes = request.sizes if isinstance(request, FitRequest) else ()
    batch = max(*sizes, *(stage.batch_size for stage in stages), 1)
    if _exceeds(config.images.size, policy.max_image_size) or _exceeds(batch, policy.max_batch_size):
        raise Refusal(SiteError.TOO_LARGE)
    if _exceeds(config.rounds, policy.max_rounds):
        raise Refusal(SiteError.TOO_MANY_ROUNDS)
    if needs_privacy and config.privacy is None:
        raise Refusal(SiteError.PRIVACY_REQUIRED)
    epochs = passes(request, images) if isinstance(request, TrainRequest | RangeRequest | FitRequest) else 0
    if epochs and _exceeds(epochs_today + epochs, policy.max_epochs_per_day):
        raise Refusal(SiteError.TOO_MANY_EPOCHS)
    comparisons = comparisons_in(request)
    if comparisons and _exceeds(comparisons_today + comparisons, policy.max_comparisons_per_day):
        raise Refusal(SiteError.TOO_MANY_COMPARISONS)


def columns_used(request: Request) -> list[str]:
    """The columns of labels.csv that a request would have looked at: learnt from, or compared by."""
    compared = columns_of(request.tests) if isinstance(request, AuditRequest) else []
    return sorted({*label_columns(request.config), *compared})


def comparisons_in(request: Request) -> int:
    """As how many comparisons of a day a request counts; 0: it is none.

    Each test of an audit is one: many tests with thresholds side by side tell a column's histogram.
    """
    if isinstance(request, AuditRequest):
        return len(request.tests)
    return int(isinstance(request, AnalyseRequest | AssessRequest))


def passes(request: TrainRequest | RangeRequest | FitRequest, images: int | None) -> int:
    """Passes over the site's ``images`` that a request takes; None: they are not counted yet, so at least one."""
    stage = request.config.curriculum.stage[request.stage]
    if isinstance(request, TrainRequest):
        return stage.local_epochs
    if images is None:
        return 1
    if isinstance(request, RangeRequest):
        return -(-request.steps // max(1, images // stage.batch_size))
    return -(-STEPS_OF_A_SIZE * sum(size for size in ladder(request.sizes) if size <= images) // images)


def check_images(policy: PolicyOptions, training_images: int) -> None:
    """Refuse to take part with fewer training images than the policy asks for.

    Raises:
        Refusal: TOO_FEW_IMAGES, or NO_IMAGES where there is none.
    """
    if training_images == 0:
        raise Refusal(SiteError.NO_IMAGES)
    if training_images < policy.min_images:
        raise Refusal(SiteError.TOO_FEW_IMAGES)


def check_validation(images: int) -> None:
    """Refuse to measure on fewer validation images than may be counted: the site has described them as none.

    Raises:
        Refusal: NO_IMAGES.
    """
    if images < SMALLEST_SITE:
        raise Refusal(SiteError.NO_IMAGES)


def check_comparison(images: int) -> None:
    """Refuse to compare models on so few held-out images that a figure could tell of one of them.

    Raises:
        Refusal: TOO_FEW_HELD_OUT.
    """
    if whole_batches(images, LARGEST_COMPARISON) == 0:
        raise Refusal(SiteError.TOO_FEW_HELD_OUT)


def _allows(names: Collection[str] | None, name: str) -> bool:
    return names is None or name in names


def _exceeds(value: float, most: float | None) -> bool:
    return most is not None and value > most
