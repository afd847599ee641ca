"""What a site does when it is asked: describe itself, train a round, measure the held-out loss."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from aiseeme_models import __version__
from aiseeme_models.images.rejection import RejectReason
from aiseeme_models.seeding import derive_seed, generator
from client.classifying import balanced, begin_classes, classifier, rate_factor, told_class_losses, told_classes
from client.local_state import LocalState
from client.own_head import OWN_HEAD, has_own_head, with_own_head, without_own_head
from client.own_model import OwnModel
from client.policy import check_validation
from client.protection import Protection
from client.refusals import Refusal
from client.site import Site
from client.stage_images import stage_images
from client.teacher import keep_teacher, kept_teacher, teaching
from federation_configs.privacy_plan import told_patients
from federation_configs.site_errors import SiteError
from federation_configs.transfer import answer
from federation_configs.wire import (
    PROTOCOL,
    SMALLEST_COUNT,
    DescribeReply,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    Request,
    RoundRequest,
    TeachReply,
    TeachRequest,
    TrainReply,
    TrainRequest,
    small_count,
    told_loss,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from aiseeme_models.images.splits import Split
    from aiseeme_models.training.loop import StepGradients
    from client.workbench import Workbench
    from federation_configs.records import Floats

_SPLITS: tuple[Split, Split] = ("train", "validation")
_OPTIMIZER = "optimizer/"
_LOCAL = "local/"
_BOUND = "privacy/bound"
_PREVIOUS = "distill/previous"
_OWN, _OWN_SCALE = "own/weights", "own/scale"


def describe(site: Site, request: DescribeRequest) -> DescribeReply:
    """Count what the site has for a federation, decoding what its cache lacks."""
    _same_protocol(request)
    config = request.config
    protection = Protection(site, config)
    protection.check_affordable(request.run)
    first = {split: stage_images(site, config, 0, split) for split in _SPLITS}
    counts = {split: len(one.images) for split, one in first.items()}
    learns = first["train"].targets is not None
    if counts["train"] == 0:
        raise Refusal(SiteError.NO_LABELS if learns and site.rows else SiteError.NO_IMAGES)
    if counts["train"] < SMALLEST_COUNT:
        raise Refusal(SiteError.TOO_FEW_IMAGES)
    if counts["validation"] < SMALLEST_COUNT:
        counts["validation"] = 0
    if config.privacy is not None:
        return DescribeReply(
            protocol=PROTOCOL,
            site=site.name,
            version=__version__,
            rejected={},
            test=None,
            train=told_patients(protection.patients),
            validation=0,
        )
    rejected = {RejectReason(reason): small_count(count) for reason, count in site.rejected.items()}
    return DescribeReply(
        protocol=PROTOCOL,
        site=site.name,
        version=__version__,
        rejected=rejected,
        # Of all test images and the labelled ones, the difference would tell how few have no label.
        test=small_count(
            len(stage_images(site, config, 0, "test").rows if learns else site.rows_of("test", config.holdout))
        ),
        train=counts["train"],
        validation=counts["validation"],
        classes=None if protection.is_any else told_classes(config, first["train"].targets),
    )


def expected_size(site: Site, request: RoundRequest) -> int:
    """How many floats the weights beside a request must have: a teacher is a backbone without a head.

    Raises:
        Refusal: the request names a stage that is not there, or weights laid out otherwise than here.
    """
    layout = _bench(site, request).layout
    return layout.backbone_size if isinstance(request, TeachRequest) else layout.size


def teach(site: Site, request: TeachRequest, backbone: NDArray[np.float32]) -> TeachReply:
    """Keep the ``backbone`` ``(layout.backbone_size,)`` that the stage will distil from. No image is looked at."""
    started = time.perf_counter()
    keep_teacher(_state(site, request).of_stage, backbone)
    return TeachReply(
        site=site.name,
        round=request.round,
        stage=request.stage,
        images=0,
        seconds=time.perf_counter() - started,
    )


def train(site: Site, request: TrainRequest, weights: NDArray[np.float32]) -> tuple[TrainReply, Floats]:
    """Train one round from the global ``weights`` ``(P,)`` and give back the site's own, as they are to travel."""
    import torch

    from aiseeme_models.distillation import distillations
    from aiseeme_models.training.loop import NonFiniteLoss, RoundOutcome, train_round
    from aiseeme_models.training.shared_state import flatten, load_flat, local_tensors

    started = time.perf_counter()
    config, stage = request.config, request.config.curriculum.stage[request.stage]
    bench = _bench(site, request)
    protection = Protection(site, config)
    if request.trial is not None and protection.is_any:  # the budget counts a run's rounds, of which a trial is none
        raise Refusal(SiteError.WITHHELD)
    state = _state(site, request)
    if request.trial is None:
        state.forget_trials()
    # Before the charge: a round that fails for want of its teacher costs no privacy.
    distilled_from = _teacher(request, state.of_stage, weights[: bench.layout.backbone_size])
    spent = protection.charge(request)  # before an image is looked at
    data = stage_images(site, config, request.stage, "train")
    images = data.images
    if len(images) == 0:
        raise Refusal(SiteError.NO_IMAGES)
    if data.targets is not None and len(images) < SMALLEST_COUNT:
        raise Refusal(SiteError.TOO_FEW_IMAGES)
    # A classifier's loss is a mean over images, however many: where few have labels, a batch is all of them.
    if config.privacy is None and data.targets is None and len(images) < stage.batch_size:
        raise Refusal(SiteError.BATCH_EXCEEDS_IMAGES)

    kept = state.load_before(request.round)
    private = protection.steps(request, float(kept[_BOUND]) if kept and _BOUND in kept else None)

    begins, scale = weights, None
    if request.ema_tau is not None and kept and _OWN in kept:
        own_model = OwnModel(kept[_OWN].numpy(), float(kept[_OWN_SCALE]) if _OWN_SCALE in kept else None)
        begins, scale = own_model.blended(weights, bench.layout.backbone_size, request.ema_tau)
    begins = with_own_head(begins, bench.layout, kept)

    def start() -> None:
        load_flat(bench.task, bench.layout, begins)
        bench.start_local(
            _below(_LOCAL, kept) if kept else None,
            len(images),
            generator(config.seed, "local", site.name, request.stage),
        )

    start()
    task, factor = classifier(bench.task), None
    gradients: StepGradients | None = private
    begin_classes(bench.task, request, data.targets)
    if task is not None and data.targets is not None:
        gradients = balanced(task, request, data.targets, protection.view_seed(request))
        factor = rate_factor(task, request)
    lessons = None
    if stage.distill is not None and distilled_from is not None:
        previous = kept[_PREVIOUS].numpy() if kept and _PREVIOUS in kept else None
        lessons = teaching(bench, stage.distill, distilled_from, previous)
    try:
        outcome = train_round(
            bench.task,
            images,
            stage if private is None else stage.model_copy(update={"precision": "fp32"}),
            augmentation=bench.augmentation,
            seed=protection.view_seed(request),
            stage_progress=(
                request.round_in_stage / stage.rounds,
                (request.round_in_stage + 1) / stage.rounds,
            ),
            device=torch.device(site.device),
            proximal_mu=request.proximal_mu,
            optimizer_state=_below(_OPTIMIZER, kept) if kept and stage.carry_optimizer else None,
            gradients=gradients,
            teaching=lessons,
            on_step=reporting(site),
            factor=factor,
        )
        own = flatten(bench.task, bench.layout)
    except NonFiniteLoss:
        if not protection.adds_noise:
            raise Refusal(SiteError.NON_FINITE_LOSS) from None
        # One patient may have been enough for it, and an error has no noise: an update of nothing leaves.
        outcome = RoundOutcome(len(images), stage.steps(len(images)), 0.0, {})
        own = with_own_head(weights, bench.layout, kept)
        start()
    keep = {_LOCAL + name: tensor for name, tensor in local_tensors(bench.task, bench.layout).items()}
    if has_own_head(bench.task):
        own, keep[OWN_HEAD] = without_own_head(own, bench.layout, weights)
    if request.round_in_stage + 1 < stage.rounds:  # nobody goes on from the last round
        if stage.carry_optimizer:
            keep |= {_OPTIMIZER + name: tensor for name, tensor in outcome.optimizer_state.items()}
        if stage.distill is not None and distillations[stage.distill.kind].needs_previous:
            keep[_PREVIOUS] = torch.from_numpy(own[: bench.layout.backbone_size])
        if request.ema_tau is not None:
            keep[_OWN] = torch.from_numpy(own)
            if scale is not None:
                keep[_OWN_SCALE] = torch.tensor(scale, dtype=torch.float64)
    # The features of a class may well become one: that is what a classifier is for.
    collapsed = _collapsed(site, request, bench) if spent is None and task is None else None
    if private is not None:
        keep[_BOUND] = torch.tensor(private.bound, dtype=torch.float64)
    if keep:
        state.save(request.round, keep)
    seconds = time.perf_counter() - started
    reply = TrainReply(
        site=site.name,
        round=request.round,
        stage=request.stage,
        images=outcome.images,
        steps=outcome.steps,
        loss=told_loss(outcome.loss) if spent is None else None,
        epsilon=spent,
        collapsed=collapsed,
        class_losses=None if spent is not None else told_class_losses(task, data.targets),
        seconds=seconds if spent is None else float(math.ceil(seconds)),
    )
    trained = protection.outgoing(own, weights)
    return reply, answer(trained, weights, config.federation.transfer)


def evaluate(site: Site, request: EvaluateRequest, weights: NDArray[np.float32]) -> EvaluateReply:
    """Measure the held-out pretext loss of the global ``weights`` ``(P,)`` on the site's validation images.

    The random views are the same every round, so that the rounds' losses can be compared.
    """
    import torch

    from aiseeme_models.training.loop import NonFiniteLoss, heldout_loss

    started = time.perf_counter()
    config, stage = request.config, request.config.curriculum.stage[request.stage]
    if Protection(site, config).is_any:  # it would be an exact mean over patients
        raise Refusal(SiteError.WITHHELD)
    data = stage_images(site, config, request.stage, "validation")
    if data.targets is not None:
        check_validation(len(data.images))
    images, bench = data.images, loaded_bench(site, request, weights)
    begin_classes(bench.task, request, data.targets)
    try:
        loss, count = heldout_loss(
            bench.task,
            images,
            stage,
            augmentation=bench.augmentation,
            seed=derive_seed(config.seed, "heldout", site.name, request.stage),
            device=torch.device(site.device),
        )
    except NonFiniteLoss:
        raise Refusal(SiteError.NON_FINITE_LOSS) from None
    if count == 0:
        raise Refusal(SiteError.NO_IMAGES)
    return EvaluateReply(
        site=site.name,
        round=request.round,
        stage=request.stage,
        images=count,
        loss=told_loss(loss),
        seconds=time.perf_counter() - started,
    )


def _collapsed(site: Site, request: TrainRequest, bench: Workbench) -> bool | None:
    """Whether the round has ended in features that are nearly one, as a few held-out images show it."""
    import torch

    from aiseeme_models.analysis.collapse import has_collapsed
    from aiseeme_models.backbones import Backbone, build_backbone, initialise

    config = request.config

    def untrained() -> Backbone:
        channels = config.images.resolved_preset.channels
        backbone = build_backbone(config.model.backbone, norm=config.model.norm, in_channels=channels)
        initialise(backbone, generator(config.seed, "backbone"))
        return backbone

    return has_collapsed(
        bench.task,
        site.images(config.images, "validation", config.holdout),
        bench.augmentation,
        seed=derive_seed(config.seed, "collapse", site.name, request.stage),
        device=torch.device(site.device),
        untrained=untrained,
    )


def reporting(site: Site) -> Callable[[int, int, float], None] | None:
    """What a training calls at each step, where somebody at the site wants to know, or to interrupt it."""
    report = site.on_step
    return None if report is None else lambda step, steps, loss: report(site.name, step, steps, loss)


def loaded_bench(site: Site, request: RoundRequest, weights: NDArray[np.float32]) -> Workbench:
    """The stage's workbench with the global ``weights`` ``(P,)`` and what the site keeps for itself after the round."""
    from aiseeme_models.training.shared_state import load_flat

    config = request.config
    bench = _bench(site, request)
    kept = _state(site, request).load_before(request.round + 1)
    if has_own_head(bench.task) and not (kept and OWN_HEAD in kept):
        raise Refusal(SiteError.NO_OWN_HEAD)
    load_flat(bench.task, bench.layout, with_own_head(weights, bench.layout, kept))
    bench.start_local(
        _below(_LOCAL, kept) if kept else None,
        len(stage_images(site, config, request.stage, "train").images),
        generator(config.seed, "local", site.name, request.stage),
    )
    return bench


def _bench(site: Site, request: RoundRequest) -> Workbench:
    from client.workbench import workbench

    _same_protocol(request)
    stages = request.config.curriculum.stage
    if request.stage >= len(stages) or request.round_in_stage >= stages[request.stage].rounds:
        raise Refusal(SiteError.BAD_REQUEST)
    if stages[request.stage].tune is not None:  # the coordinator has found what it asks for, or it is trying it
        raise Refusal(SiteError.BAD_REQUEST)
    bench = workbench(request.config, request.stage, site.device)
    if bench.layout.digest != request.layout_sha256:
        raise Refusal(SiteError.VERSION_MISMATCH)
    return bench


def _teacher(request: TrainRequest, folder: Path, received: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The backbone that a round distils from, as the backbone's part of a flat vector; None where it does not.

    Raises:
        Refusal: TEACHER_MISSING; BAD_REQUEST where the request names no teacher though the stage needs one.
    """
    options = request.config.curriculum.stage[request.stage].distill
    if (options is not None and options.teacher == "stage") != (request.teacher is not None):
        raise Refusal(SiteError.BAD_REQUEST)
    if options is None:
        return None
    return received if request.teacher is None else kept_teacher(folder, request.teacher)


def _state(site: Site, request: RoundRequest) -> LocalState:
    # One more than the coordinator keeps: it may fall back to its oldest checkpoint while the next round is played.
    kept = request.config.federation.keep_checkpoints + 1
    return LocalState(site.state_folder, request.run, request.stage, kept, trial=request.trial)


def _same_protocol(request: Request) -> None:
    if request.protocol != PROTOCOL:
        raise Refusal(SiteError.VERSION_MISMATCH)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
