"""Why a file is not used for training. Reasons are fixed words: they may be shown and counted anywhere."""

from __future__ import annotations

from enum import StrEnum


class RejectReason(StrEnum):
    """The reason why a file was left out; ``sentence`` says it in words without any value of the file."""

    UNREADABLE = "unreadable"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not-an-image"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    NO_PIXELS = "no-pixels"
    MULTI_FRAME = "multi-frame"
    TOO_SMALL = "too-small"
    TOO_LARGE = "too-large"
    UNSUPPORTED_ENCODING = "unsupported-encoding"
    DUPLICATE = "duplicate"

    @property
    def sentence(self) -> str:
        """One fixed sentence about the reason."""
        return _SENTENCES[self]


_SENTENCES = {
    RejectReason.UNREADABLE: "The file could not be opened or read: check its permissions and the disk.",
    RejectReason.EMPTY: "The file has no content.",
    RejectReason.NOT_AN_IMAGE: "The file is no PNG, JPEG, TIFF or DICOM image.",
    RejectReason.TRUNCATED: "The file ends before its image does: copy it again from its source.",
    RejectReason.DAMAGED: "The image data are damaged or contradict the file's own header.",
    RejectReason.NO_PIXELS: "The DICOM object carries no image.",
    RejectReason.MULTI_FRAME: "The file holds several frames; only single images are read.",
    RejectReason.TOO_SMALL: "The image is smaller than 16 pixels on a side.",
    RejectReason.TOO_LARGE: "The image has more pixels than are read from one file.",
    RejectReason.UNSUPPORTED_ENCODING: "The image is stored in an encoding that is not supported here.",
    RejectReason.DUPLICATE: "A file with identical content is already in the folder.",
}


class ImageRejected(Exception):
    """A file that cannot be used. Its text is the reason alone: never a path, a pixel or a tag value."""

    def __init__(self, reason: RejectReason) -> None:
        super().__init__(reason.value)
        self.reason = reason
