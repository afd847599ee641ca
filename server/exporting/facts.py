"""What every exported file says of itself: which model it is, and how an image must be prepared for it."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field

from aiseeme_models.images.pipeline import LUMA
from aiseeme_models.images.presets import ImageOptions
from aiseeme_models.options import Options
from server.checkpoint_manifest import Sha256
from server.model_manifest import RunId

KEY = "aiseeme"
"""Under this name the facts stand, as JSON, in the metadata of every format."""


class Preprocessing(Options):
    """From an image to what the backbone takes, in this order: window, square, scale to [0, 1], normalise.

    Attributes:
        preset: the image domain, as configurations name it.
        channels: 1 (grey, or the luminance of colour) or 3 (RGB).
        size: side of the square, in pixels, that the backbone was trained on.
        fit: ``crop`` keeps the centre of a rectangle, ``pad`` keeps everything, on black.
        resampling: how the size is changed.
        window: lowest and highest value shown, in HU, of images in modality units; null: as the file displays it.
        orthogonal: the channels are the axial, coronal and sagittal plane through the centre of a 3-D patch.
        luminance: weights of red, green and blue where colour becomes grey.
        value_range: of the pixels before they are normalised.
        mean: per channel, subtracted.
        std: per channel, divided by.
    """

    preset: str
    channels: int
    size: int
    fit: Literal["crop", "pad"]
    resampling: Literal["bilinear, antialiased"] = "bilinear, antialiased"
    window: tuple[float, float] | None
    orthogonal: bool
    luminance: tuple[float, float, float] = LUMA
    value_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: ImageOptions) -> Preprocessing:
        """What a federation's ``[images]`` table comes to."""
        preset, pipeline = images.resolved_preset, images.pipeline
        return cls(
            preset=preset.name,
            channels=pipeline.channels,
            size=pipeline.size,
            fit=pipeline.fit,
            window=pipeline.window,
            orthogonal=pipeline.orthogonal,
            mean=preset.mean,
            std=preset.std,
        )


class ExportFacts(Options):
    """Which model this is.

    Attributes:
        run: id of the run.
        name: of its federation.
        backbone: as configurations name it.
        norm: its normalisation.
        feature_dim: length ``D`` of a feature.
        classes: of a classifier what its outputs stand for, in order; none: the model is a backbone.
        learns_labels: whether the run did; with no classes here, each site has a head of its own, which stays there.
        temperature: what its logits are divided by; None: nothing.
        own_head: whether the last layer is one hospital's own, learnt from its patients alone.
        input: shape and type of what goes in.
        output: shape and type of what comes out.
        model_sha256: of the bytes of the run's ``backbone.safetensors``.
        config_sha256: of the run's configuration.
        version: of AISEEME, which exported it.
        preprocessing: of an image, before it goes in.
    """

    run: RunId
    name: str
    backbone: str
    norm: str
    feature_dim: int
    classes: tuple[str, ...] = Field(default=(), strict=False)
    learns_labels: bool = False
    temperature: float | None = None
    own_head: bool = False
    input: str = "images: (B, channels, size, size) float32, normalised"
    output: str = "features: (B, feature_dim) float32"
    model_sha256: Sha256
    config_sha256: Sha256
    version: str
    preprocessing: Preprocessing

    def to_json(self) -> str:
        """As the formats carry it."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)
