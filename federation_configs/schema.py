"""The schema of a federation's configuration, composed from the methods' own options."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, SerializeAsAny, StringConstraints, model_validator

from aiseeme_models.backbones import PER_IMAGE_NORMS, Norm, backbones
from aiseeme_models.curriculum.stage_tasks import stage_tasks
from aiseeme_models.curriculum.stages import Stage
from aiseeme_models.distillation import DistillOptions
from aiseeme_models.downstream.classification import ClassificationOptions
from aiseeme_models.errors import InputError
from aiseeme_models.images.presets import ImageOptions
from aiseeme_models.images.splits import TEST_FRACTION, VALIDATION_FRACTION, Split, split_at
from aiseeme_models.options import Options, parse_options
from aiseeme_models.pretext import pretext_tasks
from aiseeme_models.privacy.options import PrivacyOptions, SitePrivacyOptions
from federation_configs.aggregation import aggregation_options
from federation_configs.downstream import DownstreamOptions, downstream_config
from federation_configs.names import NAME as NAME
from federation_configs.transfer import Transfer

SiteName = Annotated[str, StringConstraints(pattern=NAME)]
DownstreamName = Annotated[str, StringConstraints(pattern=NAME)]
# Not strict: behind a validator that runs before, a list from JSON or TOML is a Python list.
SiteNames = Annotated[tuple[SiteName, ...], Field(strict=False)]


class ModelOptions(Options):
    """The backbone that the federation trains."""

    backbone: str = "resnet50"
    norm: Norm = "group"

    @model_validator(mode="after")
    def _known(self) -> Self:
        backbones[self.backbone]
        return self


class Curriculum(Options):
    """The sequence of pretext tasks; between stages only the backbone is handed over."""

    stage: tuple[Stage, ...] = Field(min_length=1)


class HoldOut(Options):
    """Shares of patients (or lesions) that are kept from pretraining, by a hash of their id.

    ``test`` is for the downstream probe, ``validation`` for the held-out pretext loss.
    """

    test: float = Field(default=TEST_FRACTION, ge=0, le=0.8)
    validation: float = Field(default=VALIDATION_FRACTION, ge=0, le=0.5)

    @model_validator(mode="after")
    def _leaves_images(self) -> Self:
        if self.test + self.validation > 0.9:
            raise ValueError("test and validation together may hold out at most 0.9 of the patients")
        return self

    def split_of(self, point: int) -> Split:
        """The split of a group whose split point this is."""
        return split_at(point, test=self.test, validation=self.validation)


class FederationOptions(Options):
    """How rounds are played.

    ``min_sites`` valid replies make a round; within ``round_deadline_s`` seconds every site is waited for; a round
    without quorum is asked again ``round_retries`` times, and then the run fails. A site's number of images is its
    weight and nobody can check it from outside: one that declares more than ``max_images_per_site`` is not let in.

    A launched run invites ``sites``, or every active site of the federation; a round without one of ``required_sites``
    has no quorum, however many others answered. Where quorum is missed because a site's connection is gone, it is
    waited for up to ``rejoin_s`` seconds before the round is asked again. ``transfer`` is the precision in which
    weights travel: ``float16`` halves the bytes (see `federation_configs.transfer`).
    """

    min_sites: int = Field(default=2, ge=1)
    sites: SiteNames | None = Field(default=None, min_length=1)
    required_sites: SiteNames = ()
    round_deadline_s: float = Field(default=3600.0, gt=0)
    round_retries: int = Field(default=2, ge=0, le=20)
    rejoin_s: float = Field(default=180.0, ge=0, le=86_400)
    transfer: Transfer = "float32"
    aggregation: str = "fedavg"
    aggregation_options: SerializeAsAny[Options] = Field(default_factory=Options)
    keep_checkpoints: int = Field(default=2, ge=2)
    max_images_per_site: int = Field(default=1_000_000, ge=1, lt=2**31)

    @model_validator(mode="after")
    def _quorum_is_possible(self) -> Self:
        if self.sites is None:
            return self
        if len(set(self.sites)) < len(self.sites):
            raise ValueError("sites names a site twice")
        if self.min_sites > len(self.sites):
            raise ValueError(f"min_sites is {self.min_sites}, but sites names {len(self.sites)}")
        strange = sorted(set(self.required_sites) - set(self.sites))
        if strange:
            raise ValueError(f"required_sites names {strange[0]}, which sites does not")
        return self

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_method(cls, data: Any) -> Any:
        if isinstance(data, dict):
            name, given = str(data.get("aggregation", "fedavg")), data.get("aggregation_options", {})
            kind = aggregation_options[name]
            if isinstance(given, dict):
                options = parse_options(kind, given, where="aggregation_options", owner=name)
                data = {**data, "aggregation_options": options}
        return data


class ProbeOptions(Options):
    """The downstream probe on frozen features: ``k`` neighbours at most, never more than the cases there are."""

    k: int = Field(default=20, ge=1)


class FederationConfig(Options):
    """A whole federation: what it trains, on which images, by which curriculum, and how it is played."""

    name: str = Field(pattern=NAME)
    seed: int = Field(default=0, ge=0, lt=2**53)
    images: ImageOptions
    model: ModelOptions = ModelOptions()
    curriculum: Curriculum
    federation: FederationOptions = FederationOptions()
    holdout: HoldOut = HoldOut()
    probe: ProbeOptions = ProbeOptions()
    downstream: dict[DownstreamName, DownstreamOptions] = Field(default_factory=dict)
    privacy: PrivacyOptions | None = None
    site_privacy: SitePrivacyOptions | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.site_privacy is not None:
            _check_site_private(self.federation.aggregation, self.model.norm)
        if len(self.curriculum.stage) > 1:
            for index, stage in enumerate(self.curriculum.stage):
                if stage_tasks[stage.task].family == "supervised":
                    raise InputError(
                        f"curriculum.stage.{index} ({stage.task}): it counts labelled images, the others count all:"
                        " give it a run of its own"
                    )
        channels = self.images.resolved_preset.channels
        for index, stage in enumerate(self.curriculum.stage):
            where = f"curriculum.stage.{index} ({stage.task})"
            goes_by = {"stop = 'plateau'": stage.stop == "plateau", "choose = 'best'": stage.choose == "best"}
            by_loss = [key for key, does in goes_by.items() if does]
            if (stage.stop == "probe" or by_loss) and self.holdout.validation == 0:
                key = by_loss[0] if by_loss else "stop = 'probe'"
                raise InputError(f"{where}: {key} needs held-out images: holdout.validation is 0")
            rising = [name for name in stage.tasks if not stage_tasks[name].comparable_rounds]
            if by_loss and rising:
                raise InputError(
                    f"{where}: {by_loss[0]} goes by the held-out loss, which rises in the first rounds of {rising[0]}"
                    " although it learns: leave it out, and end a stage by 'rounds' or 'probe'"
                )
            try:
                if stage.distill is not None:
                    _check_distilled(stage.distill, index, self.model.norm)
                for batch_size in stage.batch_sizes:
                    stage_tasks[stage.task].check(
                        stage.options,
                        norm=self.model.norm,
                        batch_size=batch_size,
                        image_size=self.images.size,
                        channels=channels,
                    )
                _check_paced(stage)
                _check_personal(stage)
                if stage.tune is not None:
                    _check_tuned(stage, self)
                if self.privacy is not None:
                    _check_private(stage, self.model.norm)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
        for name in self.downstream:
            downstream_config(self, name)
        return self

    @property
    def rounds(self) -> int:
        """The largest number of rounds that the curriculum may take."""
        return sum(stage.rounds for stage in self.curriculum.stage)


def _check_distilled(distill: DistillOptions, stage: int, norm: Norm) -> None:
    """Refuse a teacher that is not there.

    Raises:
        InputError: with the reason, and what would do.
    """
    if distill.teacher == "stage" and stage == 0:
        raise InputError("distill.teacher = 'stage' needs a stage before this one: use 'round', or leave distill out")
    if norm == "batch-local":
        raise InputError(
            "distill needs a teacher whose statistics are known: model.norm = 'batch-local' keeps them at the sites;"
            " use 'batch', 'group' or 'group-ws'"
        )


def _check_paced(stage: Stage) -> None:
    """Refuse a rate that would wait at nothing while a class-wise curriculum lets the classes in.

    Raises:
        InputError: with what would do.
    """
    options = stage.options
    if not isinstance(options, ClassificationOptions) or options.ccl is None:
        return
    if stage.warmup > 0 or stage.schedule == "one-cycle":
        raise InputError(
            "ccl holds the learning rate at its start until all classes are in, and a warm-up starts at 0: leave warmup"
            " at 0, and use schedule 'cosine', 'step' or 'constant'"
        )


def _check_personal(stage: Stage) -> None:
    """Refuse what a head cannot be had with that no coordinator ever sees.

    Raises:
        InputError: with what would do.
    """
    if not isinstance(stage.options, ClassificationOptions) or stage.options.head == "global":
        return
    if stage.choose == "best":
        raise InputError(
            "head = 'personal': the sites have the heads of their last round, which do not go with the backbone of"
            " another one: set choose = 'last'"
        )
    if stage.tune is not None:
        raise InputError("head = 'personal': lr = 'auto' judges a setting at sites that have no head of it: give lr")


def _check_tuned(stage: Stage, config: FederationConfig) -> None:
    """Refuse a search whose settings could not be judged, or that would cost what nobody accounts for.

    Raises:
        InputError: with the reason, and what would do.
    """
    for name, table in (("privacy", config.privacy), ("site_privacy", config.site_privacy)):
        if table is not None:
            raise InputError(
                f"lr = 'auto' tries settings on patients, which [{name}] does not account for: find a rate on other"
                " images (phantoms, public ones) and give lr that number"
            )
    if config.holdout.validation == 0:
        raise InputError("lr = 'auto' judges by held-out images: holdout.validation is 0")
    if config.model.norm == "batch-local":
        raise InputError(
            "lr = 'auto' judges a setting at sites that have not trained it, where model.norm = 'batch-local' has no"
            " statistics of it: use another norm, or give lr a number"
        )
    if stage.judged_by == "probe" and stage_tasks[stage.task].family == "supervised":
        raise InputError("tune.score = 'probe' looks at the backbone, not at the classifier: leave it out")
    kinds = {name: stage_tasks[name] for name in stage.tasks}
    hard = [name for name, kind in kinds.items() if not (kind.comparable_rounds and kind.comparable_sites)]
    if stage.judged_by == "heldout" and hard:
        raise InputError(
            f"tune.score = 'heldout' goes by a loss that does not tell if {hard[0]} was learnt better: use 'probe'"
        )


def _check_site_private(aggregation: str, norm: Norm) -> None:
    """Refuse what ``[site_privacy]`` cannot be had with.

    Raises:
        InputError: with the reason, and what would do.
    """
    if aggregation not in ("fedavg", "fedprox"):
        raise InputError(
            f"[site_privacy] needs a mean, to which noise can be added: federation.aggregation = {aggregation!r} makes "
            "something else of the updates; use 'fedavg' or 'fedprox'"
        )
    if norm not in PER_IMAGE_NORMS:
        raise InputError(
            f"[site_privacy] has no bound for the statistics of model.norm = {norm!r}: use "
            f"{' or '.join(sorted(PER_IMAGE_NORMS))}"
        )


def _check_private(stage: Stage, norm: Norm) -> None:
    """Refuse what differential privacy cannot be had with.

    Raises:
        InputError: with the reason, and what would do.
    """
    if norm not in PER_IMAGE_NORMS:
        raise InputError(
            f"[privacy] needs a norm that looks at one image at a time: model.norm = {norm!r} mixes the images of a "
            f"batch, so that one patient changes the gradients of others; use {' or '.join(sorted(PER_IMAGE_NORMS))}"
        )
    obstacle = stage_tasks[stage.task].privacy_obstacle(stage.options, norm)
    if obstacle is not None:
        fitting = [
            name
            for name in sorted(pretext_tasks)
            if pretext_tasks[name].decomposes_per_image(norm) and norm not in pretext_tasks[name].collapses_with
        ]
        raise InputError(
            f"[privacy] needs a loss of one image at a time: {stage.task} {obstacle}; these tasks do: "
            f"{', '.join(fitting)}"
        )
    if stage.choose == "best":
        raise InputError("choose = 'best' goes by a loss that sites do not tell under [privacy]: use 'last'")
    if stage.stop != "rounds":
        raise InputError(
            f"stop = {stage.stop!r} needs a figure of held-out images, which sites do not tell under [privacy]: use"
            " 'rounds'"
        )
    if stage.precision == "bf16":
        raise InputError(
            "[privacy] computes in float32, so that norms are what they are said to be: leave precision out"
        )
