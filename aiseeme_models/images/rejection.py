"""Why a file or one of its images is not used for training. Reasons are fixed words: they may be shown anywhere."""

from __future__ import annotations

from enum import StrEnum


class RejectReason(StrEnum):
    """Why something was left out; ``sentence`` says it in words without any value of the file.

    A reason with `is_policy` quarantines an image that could be read: the site's policy may admit it. All others
    reject a file that cannot be used.
    """

    UNREADABLE = "unreadable"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not-an-image"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    NO_PIXELS = "no-pixels"
    TOO_LARGE = "too-large"
    UNSUPPORTED_ENCODING = "unsupported-encoding"
    TIMED_OUT = "timed-out"
    DECODER_CRASHED = "decoder-crashed"
    DUPLICATE = "duplicate"

    BURNED_IN_TEXT = "burned-in-text"
    SECONDARY_CAPTURE = "secondary-capture"
    SCREEN_SAVE = "screen-save"
    ULTRASOUND_TEXT = "ultrasound-text"
    NOT_A_PICTURE = "not-a-picture"
    TOO_SMALL = "too-small"
    NEAR_BLANK = "near-blank"

    @property
    def sentence(self) -> str:
        """One fixed sentence about the reason."""
        return _SENTENCES[self]

    @property
    def is_policy(self) -> bool:
        """Whether the image could be read and a site's policy may admit it."""
        return self in POLICY_REASONS


POLICY_REASONS = (
    RejectReason.BURNED_IN_TEXT,
    RejectReason.SECONDARY_CAPTURE,
    RejectReason.SCREEN_SAVE,
    RejectReason.ULTRASOUND_TEXT,
    RejectReason.NOT_A_PICTURE,
    RejectReason.TOO_SMALL,
    RejectReason.NEAR_BLANK,
)

_SENTENCES = {
    RejectReason.UNREADABLE: "The file could not be opened or read: check its permissions and the disk.",
    RejectReason.EMPTY: "The file has no content.",
    RejectReason.NOT_AN_IMAGE: "The file is no DICOM, NIfTI, PNG, JPEG or TIFF image and no patch set.",
    RejectReason.TRUNCATED: "The file ends before its image does: copy it again from its source.",
    RejectReason.DAMAGED: "The image data are damaged or contradict the file's own header.",
    RejectReason.NO_PIXELS: "The DICOM object carries no image.",
    RejectReason.TOO_LARGE: "The image has more pixels, or needs more memory, than is allowed for one file.",
    RejectReason.UNSUPPORTED_ENCODING: "The image is stored in an encoding that is not supported here.",
    RejectReason.TIMED_OUT: "Decoding took longer than is allowed for one file.",
    RejectReason.DECODER_CRASHED: "The decoder crashed on this file; nothing else was affected.",
    RejectReason.DUPLICATE: "An image with identical pixels is already in the folder.",
    RejectReason.BURNED_IN_TEXT: "Its header says that identifying text is burned into the pixels.",
    RejectReason.SECONDARY_CAPTURE: "It is a secondary capture: a photograph or copy of a screen may show a name.",
    RejectReason.SCREEN_SAVE: "It is a saved screen, which usually shows the patient's name.",
    RejectReason.ULTRASOUND_TEXT: "An ultrasound image whose header does not say where its text is.",
    RejectReason.NOT_A_PICTURE: "It holds a segmentation, dose or map, which is no picture of a patient.",
    RejectReason.TOO_SMALL: "The image is smaller than 16 pixels on a side.",
    RejectReason.NEAR_BLANK: "The image is nearly of one grey value: there is nothing to learn from it.",
}


class ImageRejected(Exception):
    """A file that cannot be used. Its text is the reason alone: never a path, a pixel or a tag value."""

    def __init__(self, reason: RejectReason) -> None:
        super().__init__(reason.value)
        self.reason = reason
