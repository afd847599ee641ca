"""Every message between coordinator and hospital: strict, small, and complete.

A reply carries the fields written here and one flat array, nothing else: an unknown key makes it invalid.
Exceptions never travel; a site that cannot answer sends one of `federation_configs.site_errors.SiteError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from aiseeme_models.analysis.comparison import BATCH
from aiseeme_models.curriculum.tuning import Batch
from aiseeme_models.downstream.answers import ClassAnswers
from aiseeme_models.downstream.classification import MOST_CLASSES
from aiseeme_models.downstream.told import SMALLEST
from aiseeme_models.images.rejection import RejectReason
from aiseeme_models.options import Options
from federation_configs.schema import NAME, FederationConfig, ModelOptions

PROTOCOL = 9
RUN_ID = r"^[a-z0-9][a-z0-9-]{0,95}$"
SHA256 = r"^[0-9a-f]{64}$"
VERSION = r"^[0-9A-Za-z.+-]{1,40}$"
NONCE = r"^[0-9a-f]{32}$"
LONGEST_VALIDITY_S = 7 * 86_400.0

Count = Annotated[int, Field(ge=0, le=2**31)]
# A small count may point at a person: the site says that it is small, and no more.
SMALLEST_COUNT = SMALLEST
FEW: Literal["<5"] = "<5"
SmallCount = Annotated[int, Field(ge=SMALLEST_COUNT, le=2**31)] | Literal["<5"]
ClassCount = Annotated[int, Field(ge=SMALLEST_COUNT, le=2**31)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
# Every pretext loss here is bounded below by 0; a larger one than this is no training.
LARGEST_LOSS = 1000.0
LOSS_DIGITS = 4
Loss = Annotated[float, Field(ge=0, le=LARGEST_LOSS)]
# Two models are compared on whole batches: so no two answers differ by fewer images than this, whatever was asked.
SMALLEST_COMPARISON = BATCH
LARGEST_COMPARISON = 4096
MOST_BLOCKS = 64
MOST_TRIALS = 4096
Rate = Annotated[float, Field(gt=0, le=1e4)]
Likeness = Annotated[float, Field(ge=-1, le=1)]
Rank = Annotated[float, Field(ge=1, le=LARGEST_COMPARISON)]


def small_count(count: int) -> int | Literal["<5"]:
    """``count`` as it may leave a site: under 5 it is ``"<5"``."""
    return count if count >= SMALLEST_COUNT else FEW


def told_counts(counts: Sequence[int]) -> tuple[int, ...] | None:
    """Counts of which the sum is known as they may leave a site: all of them, or none where one is small.

    Were only the small ones kept back, the sum and the rule by which others are kept back with them would tell some.
    """
    return tuple(counts) if min(counts) >= SMALLEST_COUNT else None


def told_loss(loss: float) -> float:
    """``loss`` as it may leave a site: `LOSS_DIGITS` significant digits, and at most `LARGEST_LOSS`.

    An exact mean of losses can be searched for one image; what is left steers a curriculum as well.
    """
    return float(f"{min(max(loss, 0.0), LARGEST_LOSS):.{LOSS_DIGITS}g}")


def told_likeness(likeness: float | None) -> float | None:
    """A CKA or SVCCA as it may leave a site: `LOSS_DIGITS` significant digits, in [-1, 1]."""
    return None if likeness is None else float(f"{min(max(likeness, -1.0), 1.0):.{LOSS_DIGITS}g}")


def told_score(score: float) -> float:
    """A balanced accuracy as it may leave a site: three decimals."""
    return round(min(max(score, 0.0), 1.0), 3)


def told_rate(rate: float) -> float:
    """A learning rate as it may leave a site: two significant digits."""
    return float(f"{rate:.2g}")


def told_rank(rank: float) -> float:
    """An effective rank as it may leave a site: one decimal."""
    return round(max(rank, 1.0), 1)


def request_purpose(kind: str) -> str:
    """What a request's signature is for: one to describe oneself (``kind``: describe) is none to train."""
    return f"request-{kind}"


class Stamp(Options):
    """What makes a signed request good for one federation and site, for a while, and once.

    Attributes:
        federation: its name.
        site: the only site that the request is for; None in a description's, as the node is not known yet.
        issued, expires: seconds since 1970 in UTC, at most `LONGEST_VALIDITY_S` apart.
        nonce: 128 random bits in hexadecimal; a site does not answer it twice.
    """

    federation: str = Field(pattern=NAME)
    site: str | None = Field(default=None, pattern=NAME)
    issued: float = Field(gt=0, lt=1e11)
    expires: float = Field(gt=0, lt=1e11)
    nonce: str = Field(pattern=NONCE)


class Request(Options):
    """What every request says: the protocol's version, the run, the whole configuration, and the stamp if it is signed.

    The signature itself stands beside the body.
    """

    protocol: int = PROTOCOL
    run: str = Field(pattern=RUN_ID)
    config: FederationConfig
    stamp: Stamp | None = None


class DescribeRequest(Request):
    """Asks a site what it has for this federation."""


class Reply(Options):
    """What every reply names: the nonce of the request that it answers, which only its receiver knows; None without.

    So no other site, and no reply to an earlier request, can answer for it.
    """

    nonce: str | None = Field(default=None, pattern=NONCE)


class DescribeReply(Reply):
    """What a site says of itself. Counts are of images; ``test`` ones are never trained on.

    A site with fewer than 5 training images does not take part, and fewer than 5 validation images count as none: both
    numbers are needed exactly, the one as a weight, the other to check a reply.

    Where the federation learns labels, ``train``, ``validation`` and ``test`` count images of the classes that it
    names, and ``classes`` the training images of each as `told_counts` tells them.

    Under ``[privacy]`` ``train`` is the number of patients as `federation_configs.privacy_plan.told_patients` rounds
    it, and nothing else is told: ``validation`` is 0, ``test`` None and ``rejected`` empty.
    """

    protocol: int
    site: str = Field(pattern=NAME)
    version: str = Field(pattern=VERSION)
    train: Annotated[int, Field(ge=SMALLEST_COUNT, le=2**31)]
    validation: Literal[0] | Annotated[int, Field(ge=SMALLEST_COUNT, le=2**31)]
    test: SmallCount | None
    rejected: dict[RejectReason, SmallCount]
    classes: tuple[ClassCount, ...] | None = Field(default=None, strict=False, max_length=MOST_CLASSES)


class WeightedRequest(Request):
    """A request beside which weights travel, as one flat array of floats."""


class RoundRequest(WeightedRequest):
    """What a round asks; the current global weights travel beside it.

    Attributes:
        trial: number of the setting that is tried, where a stage's rate is looked for: what the site keeps between
            rounds is kept apart for each, and none of it is in the stage; None: this is the stage itself.
        class_images: training images of each class at all sites, as far as they told; None where no label is learnt.
    """

    trial: int | None = Field(default=None, ge=0, lt=MOST_TRIALS)
    class_images: tuple[Count, ...] | None = Field(default=None, strict=False, max_length=MOST_CLASSES)
    round: int = Field(ge=1)
    stage: int = Field(ge=0)
    round_in_stage: int = Field(ge=0)
    layout_sha256: str = Field(pattern=SHA256)


class ScoreRequest(RoundRequest):
    """Probe the global backbone on the site's own labelled images, the test split left alone.

    Attributes:
        probe: ``"knn"`` or ``"linear"``, as `aiseeme_models.downstream.probe` does them.
    """

    probe: Literal["knn", "linear"] = "knn"


class TeachRequest(RoundRequest):
    """Keep the backbone beside this as the teacher of the stage; once a stage, as it is too large for every round."""


class TrainRequest(RoundRequest):
    """Train one round of a stage.

    Attributes:
        proximal_mu: weight of FedProx' term.
        admitted: which classes are in this round, where a class-wise curriculum lets them in; None: all.
        ema_tau: FedEMA's tau: how much of its own model a site keeps at the start of a round; None: nothing.
        teacher: sha256 of the backbone to distil from, as `federation_configs.transfer.sha256_of` makes it; None where
            the stage does not, or distils from the round's own global backbone.
    """

    proximal_mu: float = Field(default=0.0, ge=0)
    admitted: tuple[bool, ...] | None = Field(default=None, strict=False, max_length=MOST_CLASSES)
    ema_tau: float | None = Field(default=None, ge=0, le=1)
    teacher: str | None = Field(default=None, pattern=SHA256)


class RangeRequest(RoundRequest):
    """Make a range test of the learning rate from the global weights, see `aiseeme_models.training.range_test`.

    Attributes:
        rates: smallest and largest rate.
        steps: optimiser steps.
    """

    rates: tuple[Rate, Rate] = Field(strict=False)
    steps: int = Field(ge=20, le=10_000)


class FitRequest(RoundRequest):
    """Tell the largest of some batch sizes that fits in the memory of the site's device.

    Attributes:
        sizes: the batch sizes.
    """

    sizes: tuple[Batch, ...] = Field(strict=False, min_length=1, max_length=16)


class AssessRequest(RoundRequest):
    """Test the global classifier on the site's labelled test images."""


class EvaluateRequest(RoundRequest):
    """Measure the held-out pretext loss of the global weights."""


class ComparedModel(ModelOptions):
    """A backbone that is compared; its weights are laid out as `layout_sha256` says."""

    layout_sha256: str = Field(pattern=SHA256)


class AnalyseRequest(WeightedRequest):
    """Compare two backbones on the site's held-out images; the weights of both travel beside it, one behind the other.

    The configuration says which images, how they are prepared, and who is held out; its stages ask for nothing here.

    Attributes:
        models: the two.
        images: most images to compare them on.
    """

    models: tuple[ComparedModel, ComparedModel]
    images: int = Field(default=512, ge=SMALLEST_COMPARISON, le=LARGEST_COMPARISON, multiple_of=SMALLEST_COMPARISON)


class RoundReply(Reply):
    """What every reply to a round names, so that an answer to another question is noticed."""

    site: str = Field(pattern=NAME)
    round: int = Field(ge=1)
    stage: int = Field(ge=0)
    images: Count
    seconds: Seconds


class ScoreReply(RoundReply):
    """The balanced accuracy on ``images`` labelled validation images, as `told_score` rounds it."""

    images: Annotated[int, Field(ge=SMALLEST_COMPARISON, le=2**31)]
    score: Annotated[float, Field(ge=0, le=1)]


class TeachReply(RoundReply):
    """The teacher is kept. ``images`` is 0: none was looked at."""


class TrainReply(RoundReply):
    """A trained round; the site's weights travel beside it as one flat float32 array.

    Attributes:
        steps: optimiser steps.
        loss: mean over the steps, as `told_loss` rounds it; None where patients are protected, as it would tell of
            them what the noise hides.
        epsilon: what the run has cost the site's patients so far, this round included, at the delta of ``[privacy]``;
            without that table None, or what it has cost where the site adds noise of its own.
        collapsed: whether the features of held-out images have become nearly one after the round; None where there are
            too few of them, or patients are protected.
        class_losses: of each class the mean cross-entropy of its images in this round, as `told_loss` rounds it, where
            a class-wise curriculum asks; None for a class of fewer than 5 images. How many it has is not told here.
    """

    steps: Count
    loss: Loss | None
    epsilon: Annotated[float, Field(ge=0, le=1e12)] | None = None
    collapsed: bool | None = None
    class_losses: tuple[Loss | None, ...] | None = Field(default=None, strict=False, max_length=MOST_CLASSES)


class EvaluateReply(RoundReply):
    """The held-out pretext loss on ``images`` validation images, as `told_loss` rounds it."""

    loss: Loss


class AssessReply(RoundReply):
    """What became of the ``images`` labelled test images, by class, as `downstream.answers.told_answers` tells it."""

    images: Annotated[int, Field(ge=SMALLEST_COMPARISON, le=2**31)]
    classes: tuple[ClassAnswers, ...] = Field(strict=False, min_length=2, max_length=MOST_CLASSES)


class RangeReply(RoundReply):
    """The rate that a range test on the site's training images suggests, as `told_rate` rounds it; None: none did."""

    rate: Rate | None


class FitReply(RoundReply):
    """The largest batch size that fits; 0: none of those that were asked about."""

    largest: Annotated[int, Field(ge=0, le=65536)]


class BlockFigures(Options):
    """How alike the two backbones are behind one block, as `told_likeness` and `told_rank` round it.

    Attributes:
        cka: linear CKA; None where one of them gives the same for all images.
        svcca: mean canonical correlation; None likewise.
        ranks: the effective rank of the first's features and of the second's.
    """

    cka: Likeness | None
    svcca: Likeness | None
    ranks: tuple[Rank, Rank]


class AnalyseReply(Reply):
    """What a comparison on ``images`` held-out images gave: figures by block, in the agreed order, and no name."""

    site: str = Field(pattern=NAME)
    images: Annotated[int, Field(ge=SMALLEST_COMPARISON, le=LARGEST_COMPARISON, multiple_of=SMALLEST_COMPARISON)]
    seconds: Seconds
    blocks: tuple[BlockFigures, ...] = Field(min_length=1, max_length=MOST_BLOCKS)
