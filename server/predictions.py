"""What ``aiseeme predict`` says of images: nothing in it is from a file's header but words of DICOM's own lists."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from aiseeme_models.images.rejection import RejectReason

RESEARCH_USE_ONLY = "research use only; not for diagnosis"


class Drawn(BaseModel):
    """A picture of where a classifier looks.

    Attributes:
        file: its name in the folder of overlays.
        cam: the kind of map.
        of_class: the class that the map is of; None: that kind is of no class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    cam: str
    of_class: str | None


class Prediction(BaseModel):
    """What a classifier makes of one image.

    Attributes:
        file: as it was named, made printable.
        position: of the file among the inputs, from 1.
        frame: which image of the file, from 0.
        predicted: the most probable class.
        probabilities: of every class.
        calibrated: whether the logits were divided by a temperature that validation images told.
        temperature: that; None where nobody knows one.
        model_sha256: of the model's ``backbone.safetensors``, as its manifest names it.
        head_sha256: of its ``head.safetensors``.
        findings: what would keep the image out of training and was admitted.
        saturated: over a quarter of it is as bright as can be.
        warnings: what speaks against believing the figures.
        overlay: what was drawn of it; None: nothing was asked for.
        research_use_only: always.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    file: str
    position: int
    frame: int
    predicted: str
    probabilities: dict[str, float]
    calibrated: bool
    temperature: float | None
    model_sha256: str
    head_sha256: str
    findings: tuple[RejectReason, ...]
    saturated: bool
    warnings: tuple[str, ...]
    overlay: Drawn | None
    research_use_only: Literal[True] = True


class LeftOut(BaseModel):
    """A file, or an image of one, that nothing was predicted for.

    Attributes:
        file: as it was named, made printable.
        position: of the file among the inputs, from 1.
        frame: which image of the file, from 0; None: the whole file could not be read.
        reasons: why.
        sentences: the reasons in words.
        quarantined: whether it could be read, and is predicted where the reasons are admitted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    position: int
    frame: int | None
    reasons: tuple[RejectReason, ...]
    sentences: tuple[str, ...]
    quarantined: bool


class Predictions(BaseModel):
    """What a classifier makes of all files.

    Attributes:
        run: the classifier's.
        classes: in the order of its outputs.
        images: in the order of files and frames.
        left_out: in the same order.
        research_use_only: always.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    classes: tuple[str, ...]
    images: tuple[Prediction, ...]
    left_out: tuple[LeftOut, ...]
    research_use_only: Literal[True] = True
