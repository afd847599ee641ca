"""Why a site did not do what was asked: fixed codes and sentences, which are all that leaves it of an error."""

from __future__ import annotations

from enum import IntEnum

from aiseeme_models.analysis.comparison import BATCH


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
    NOT_SIGNED = 1010
    UNKNOWN_COORDINATOR = 1011
    OTHER_FEDERATION = 1012
    OTHER_SITE = 1013
    CLOCK_SKEW = 1014
    EXPIRED = 1015
    REPLAYED = 1016
    BUNDLE_NOT_APPROVED = 1017
    TASK_NOT_ALLOWED = 1018
    BACKBONE_NOT_ALLOWED = 1019
    PRESET_NOT_ALLOWED = 1020
    TOO_LARGE = 1021
    TOO_MANY_ROUNDS = 1022
    TOO_MANY_EPOCHS = 1023
    PRIVACY_REQUIRED = 1024
    OUTSIDE_HOURS = 1025
    STOPPED = 1026
    LEDGER_BROKEN = 1027
    BUDGET_EXCEEDED = 1028
    BUDGET_BROKEN = 1029
    WITHHELD = 1030
    TOO_FEW_PATIENTS = 1031
    LOCAL_NOISE = 1032
    TEACHER_MISSING = 1033
    TOO_FEW_HELD_OUT = 1034
    TOO_MANY_COMPARISONS = 1035
    NO_LABELS = 1036
    LABELS_NOT_ALLOWED = 1037
    TOO_FEW_COMPARED = 1038
    NO_OWN_HEAD = 1039

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
    SiteError.TOO_FEW_IMAGES: "the site has fewer than 5 training images for this request, or than its policy asks for",
    SiteError.NOT_SIGNED: "the request is not signed; the site answers signed requests only",
    SiteError.UNKNOWN_COORDINATOR: "no coordinator that the site allows has signed this, or it was changed on its way",
    SiteError.OTHER_FEDERATION: "the request belongs to another federation",
    SiteError.OTHER_SITE: "the request is for another site",
    SiteError.CLOCK_SKEW: "the request comes from the future: the site's clock is behind, or the coordinator's ahead",
    SiteError.EXPIRED: "the request's time is over, or the site's clock is ahead",
    SiteError.REPLAYED: "the request was made before",
    SiteError.BUNDLE_NOT_APPROVED: "the site has not approved this app bundle",
    SiteError.TASK_NOT_ALLOWED: "the site's policy does not allow one of the pretext tasks",
    SiteError.BACKBONE_NOT_ALLOWED: "the site's policy does not allow this backbone",
    SiteError.PRESET_NOT_ALLOWED: "the site's policy does not allow this image preset",
    SiteError.TOO_LARGE: "the images or batches are larger than the site's policy allows",
    SiteError.TOO_MANY_ROUNDS: "the run has more rounds than the site's policy allows",
    SiteError.TOO_MANY_EPOCHS: "the site's policy allows no more training today",
    SiteError.PRIVACY_REQUIRED: "the site trains with differential privacy only",
    SiteError.OUTSIDE_HOURS: "the site does not work for the federation at this time of day",
    SiteError.STOPPED: "the run was stopped",
    SiteError.LEDGER_BROKEN: "the site's ledger does not hold together, so the site does no work",
    SiteError.BUDGET_EXCEEDED: "the site's privacy budget does not allow this",
    SiteError.BUDGET_BROKEN: "the site's privacy budget does not agree with its ledger, so the site does no work",
    SiteError.WITHHELD: "the site does not tell this under differential privacy",
    SiteError.TOO_FEW_PATIENTS: "the site has fewer patients than a step is to draw on average, or than 10",
    SiteError.LOCAL_NOISE: "the site adds noise of its own, which batch statistics do not bear",
    SiteError.TEACHER_MISSING: "the site does not have the backbone that the stage distils from",
    SiteError.TOO_FEW_HELD_OUT: f"the site has fewer than {BATCH} held-out images to compare models on",
    SiteError.TOO_MANY_COMPARISONS: "the site's policy allows no more comparisons of models today",
    SiteError.NO_LABELS: "the site has too few labels, or too few classes, for this",
    SiteError.LABELS_NOT_ALLOWED: "the site's policy does not allow the use of these labels",
    SiteError.NO_OWN_HEAD: "the site has trained no head of its own in this run",
    SiteError.TOO_FEW_COMPARED: "the site has fewer than 5 patients for one of the sets that are to be compared",
    SiteError.INTERNAL: "an internal error; the site's own log has the details",
}


def error_reason(code: SiteError, nonce: str | None) -> str:
    """The text of an error reply: the code's sentence, and behind it the nonce of the request where that has one."""
    return code.sentence if nonce is None else f"{code.sentence} ({nonce})"


def answers(reason: str, nonce: str | None) -> bool:
    """Whether an error reply's text names the request with this nonce; without one there is nothing to name."""
    return nonce is None or reason.endswith(f"({nonce})")
