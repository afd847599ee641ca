"""Every message between coordinator and hospital: strict, small, and complete.

A reply carries the fields written here and one flat array, nothing else: an unknown key makes it invalid.
Exceptions never travel; a site that cannot answer sends one of `SiteError` with its fixed sentence.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Literal

from pydantic import Field

from aiseeme_models.images.rejection import RejectReason
from aiseeme_models.options import Options
from federation_configs.schema import NAME, FederationConfig

PROTOCOL = 2
RUN_ID = r"^[a-z0-9][a-z0-9-]{0,95}$"
SHA256 = r"^[0-9a-f]{64}$"
VERSION = r"^[0-9A-Za-z.+-]{1,40}$"

Count = Annotated[int, Field(ge=0, le=2**31)]
# A small count may point at a person: the site says that it is small, and no more.
SMALLEST_COUNT = 5
FEW: Literal["<5"] = "<5"
SmallCount = Annotated[int, Field(ge=SMALLEST_COUNT, le=2**31)] | Literal["<5"]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
# Every pretext loss here is bounded below by 0; a larger one than this is no training.
Loss = Annotated[float, Field(ge=0, le=1e6)]


class SiteError(IntEnum):
    """Why a site did not do what was asked. The code and its sentence are all that leaves the site."""

    BAD_REQUEST = 1001
    VERSION_MISMATCH = 1002
    NO_IMAGES = 1003
    BATCH_EXCEEDS_IMAGES = 1004
    NON_FINITE_LOSS = 1005
    OUT_OF_MEMORY = 1006
    DISK_FULL = 1007
    INTERNAL = 1008
    TOO_FEW_IMAGES = 1009

    @property
    def sentence(self) -> str:
        """What the code means, in words that hold no detail of the site."""
        return _SENTENCES[self]


_SENTENCES = {
    SiteError.BAD_REQUEST: "the request is not valid",
    SiteError.VERSION_MISMATCH: "the coordinator and the site run different versions",
    SiteError.NO_IMAGES: "the site has no readable image for this request",
    SiteError.BATCH_EXCEEDS_IMAGES: "the stage's batch is larger than the site's number of training images",
    SiteError.NON_FINITE_LOSS: "the training loss became infinite or not a number",
    SiteError.OUT_OF_MEMORY: "the site ran out of memory",
    SiteError.DISK_FULL: "the site's disk is full",
    SiteError.TOO_FEW_IMAGES: "the site has fewer than 5 training images for this request",
    SiteError.INTERNAL: "an internal error; the site's own log has the details",
}


def small_count(count: int) -> int | Literal["<5"]:
    """``count`` as it may leave a site: under 5 it is ``"<5"``."""
    return count if count >= SMALLEST_COUNT else FEW


class Request(Options):
    """What every request says: the protocol's version, the run, and the whole configuration."""

    protocol: int = PROTOCOL
    run: str = Field(pattern=RUN_ID)
    config: FederationConfig


class DescribeRequest(Request):
    """Asks a site what it has for this federation."""


class DescribeReply(Options):
    """What a site says of itself. Counts are of images; ``test`` ones are never trained on.

    A site with fewer than 5 training images does not take part, and fewer than 5 validation images count as none: both
    numbers are needed exactly, the one as a weight, the other to check a reply.
    """

    protocol: int
    site: str = Field(pattern=NAME)
    version: str = Field(pattern=VERSION)
    train: Annotated[int, Field(ge=SMALLEST_COUNT, le=2**31)]
    validation: Literal[0] | Annotated[int, Field(ge=SMALLEST_COUNT, le=2**31)]
    test: SmallCount
    rejected: dict[RejectReason, SmallCount]


class RoundRequest(Request):
    """What a round asks; the current global weights travel beside it as one flat float32 array."""

    round: int = Field(ge=1)
    stage: int = Field(ge=0)
    round_in_stage: int = Field(ge=0)
    layout_sha256: str = Field(pattern=SHA256)


class TrainRequest(RoundRequest):
    """Train one round of a stage."""

    proximal_mu: float = Field(default=0.0, ge=0)


class EvaluateRequest(RoundRequest):
    """Measure the held-out pretext loss of the global weights."""


class RoundReply(Options):
    """What every reply to a round names, so that an answer to another question is noticed."""

    site: str = Field(pattern=NAME)
    round: int = Field(ge=1)
    stage: int = Field(ge=0)
    images: Count
    loss: Loss
    seconds: Seconds


class TrainReply(RoundReply):
    """A trained round; the site's weights travel beside it as one flat float32 array."""

    steps: Count


class EvaluateReply(RoundReply):
    """The held-out pretext loss on ``images`` validation images."""
