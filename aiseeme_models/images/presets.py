"""Image domains: what an image of one kind needs, and a federation's ``[images]`` options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.images.pipeline import Fit, Pipeline
from aiseeme_models.options import Options
from aiseeme_models.registry import Registry

WindowName = Literal["lung", "mediastinum", "bone", "soft-tissue"]

CT_WINDOWS: dict[WindowName, tuple[float, float]] = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (40.0, 400.0),
    "bone": (400.0, 1800.0),
    "soft-tissue": (50.0, 350.0),
}
"""Centre and width of the usual windows of CT, in HU."""


def window_range(name: WindowName) -> tuple[float, float]:
    """Lowest and highest value shown by a window of `CT_WINDOWS`, in HU."""
    center, width = CT_WINDOWS[name]
    return center - width / 2, center + width / 2


@dataclass(frozen=True)
class ImagePreset:
    """How images of one domain become arrays, and how strongly views of them may differ.

    Attributes:
        name: as configurations call it.
        channels: 1 (grey) or 3 (RGB).
        fit: how a rectangle becomes a square: ``crop`` keeps the short side, ``pad`` keeps everything.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        augmentation: the random views.
        window: of grey images in modality units (HU), or None for the file's own.
        orthogonal: 3-D patches become their three central planes (2.5-D), not the axial one alone.
        modalities: what DICOM calls such images; another one is no fault, but worth a warning.
    """

    name: str
    channels: int
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: AugmentationOptions
    window: WindowName | None = None
    orthogonal: bool = False
    modalities: frozenset[str] = frozenset()


image_presets: Registry[ImagePreset] = Registry("image preset")

# Colour is diagnostic in dermoscopy (no hue, no grayscale), and a lesion has no upright. Mean and standard deviation
# over every pixel of 2,000 random HAM10000 images (fit "crop", 64 px).
image_presets.register("dermoscopy")(
    ImagePreset(
        name="dermoscopy",
        channels=3,
        fit="crop",
        mean=(0.755, 0.545, 0.570),
        std=(0.135, 0.153, 0.169),
        augmentation=AugmentationOptions(
            rotation_degrees=180.0,
            flip_horizontal=True,
            flip_vertical=True,
            crop_min=0.4,
            crop_max=1.0,
            brightness=0.15,
            contrast=0.2,
        ),
        modalities=frozenset({"ES", "GM", "XC"}),
    )
)

# No flips: the heart is on the left, and mirroring would make situs inversus of it. Mean and standard deviation over
# every pixel of 2,000 random chest radiographs of Kermany et al. 2018 (fit "pad", 64 px).
image_presets.register("chest-xray")(
    ImagePreset(
        name="chest-xray",
        channels=1,
        fit="pad",
        mean=(0.483,),
        std=(0.233,),
        augmentation=AugmentationOptions(
            rotation_degrees=10.0, crop_min=0.5, crop_max=1.0, brightness=0.2, contrast=0.2
        ),
        modalities=frozenset({"CR", "DX", "RF", "RG"}),
    )
)

_CT_AUGMENTATION = AugmentationOptions(
    rotation_degrees=180.0,
    flip_horizontal=True,
    flip_vertical=True,
    crop_min=0.5,
    crop_max=1.0,
    brightness=0.1,
    contrast=0.1,
)
# The lung window, whatever window a file declares. Mean and standard deviation of 1,004 nodule patches of LUNA16,
# windowed alike (whole slices hold more air: darker).
image_presets.register("ct-lung")(
    ImagePreset(
        name="ct-lung",
        channels=1,
        fit="pad",
        mean=(0.491,),
        std=(0.240,),
        augmentation=_CT_AUGMENTATION,
        window="lung",
        modalities=frozenset({"CT"}),
    )
)

# 2.5-D: axial, coronal and sagittal plane through a nodule as three channels. Their statistics are taken as equal.
image_presets.register("ct-nodule")(
    ImagePreset(
        name="ct-nodule",
        channels=3,
        fit="pad",
        mean=(0.491, 0.491, 0.491),
        std=(0.240, 0.240, 0.240),
        augmentation=_CT_AUGMENTATION,
        window="lung",
        orthogonal=True,
        modalities=frozenset({"CT"}),
    )
)


class ImageOptions(Options):
    """The ``[images]`` table of a federation."""

    preset: str = Field(description="image domain: dermoscopy, chest-xray, ct-lung, ct-nodule")
    size: int = Field(ge=16, le=1024, description="side of the cached square images, in pixels")
    window: WindowName | None = Field(
        default=None, description="CT window in place of the preset's: lung, mediastinum, bone, soft-tissue"
    )
    augmentation: AugmentationOptions = Field(
        default_factory=AugmentationOptions,
        description="strengths of the random views; what is not given is the preset's",
    )

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        return image_presets[name].name

    @model_validator(mode="before")
    @classmethod
    def _with_the_preset_s_strengths(cls, data: Any) -> Any:
        # Filled in here, so that a configuration that is written out and read again means the same.
        if not isinstance(data, dict) or not isinstance(data.get("preset"), str):
            return data
        given = data.get("augmentation", {})
        if isinstance(given, AugmentationOptions):
            given = given.model_dump(exclude_unset=True)
        if not isinstance(given, dict):
            return data
        strengths = image_presets[data["preset"]].augmentation.model_dump()
        return {**data, "augmentation": {**strengths, **given}}

    @property
    def resolved_preset(self) -> ImagePreset:
        """The preset, with ``augmentation`` in place of the preset's own."""
        return replace(image_presets[self.preset], augmentation=self.augmentation)

    @property
    def pipeline(self) -> Pipeline:
        """The deterministic part, which decides what is cached. Augmentation and normalisation happen later."""
        preset = image_presets[self.preset]
        window = self.window or preset.window
        return Pipeline(
            channels=preset.channels,
            fit=preset.fit,
            size=self.size,
            window=None if window is None else window_range(window),
            orthogonal=preset.orthogonal,
        )
