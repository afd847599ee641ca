"""The strengths of random views, apart from their code, so that a configuration is read without torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from aiseeme_models.options import Options


class AugmentationOptions(Options):
    """Strength of the random views of one image domain. The defaults change nothing."""

    rotation_degrees: float = Field(0.0, ge=0, le=180, description="rotation by an angle in [-x, x] degrees")
    flip_horizontal: bool = Field(False, description="mirror left and right, with probability 0.5")
    flip_vertical: bool = Field(False, description="mirror top and bottom, with probability 0.5")
    crop_min: float = Field(1.0, gt=0, le=1, description="smallest part of the area that a view shows")
    crop_max: float = Field(1.0, gt=0, le=1, description="largest part of the area that a view shows")
    aspect: float = Field(1.0, ge=1, le=4, description="largest aspect ratio of the crop, either way")
    brightness: float = Field(0.0, ge=0, le=1, description="brightness factor in [1-x, 1+x]")
    contrast: float = Field(0.0, ge=0, le=1, description="contrast factor in [1-x, 1+x], about the mean luminance")
    saturation: float = Field(0.0, ge=0, le=1, description="saturation factor in [1-x, 1+x] (3 channels only)")
    hue: float = Field(0.0, ge=0, le=0.5, description="hue turned by [-x, x] of the colour circle (3 channels only)")
    grayscale_p: float = Field(0.0, ge=0, le=1, description="probability that a view has no colour (3 channels only)")
    blur_p: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur")
    noise_std: float = Field(0.0, ge=0, le=1, description="standard deviation of Gaussian noise, in [0, 1] pixel units")

    @model_validator(mode="after")
    def _ordered(self) -> AugmentationOptions:
        if self.crop_min > self.crop_max:
            raise ValueError("crop_min must not exceed crop_max")
        return self
