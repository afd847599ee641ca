"""Random augmentation of a whole batch on its device: one warp and one colour map, each fused.

Per-image transforms made a SimCLR epoch on two cores 13 times slower than one ``affine_grid`` + ``grid_sample`` per
batch. Brightness, contrast, saturation, hue, grayscale and normalisation are all affine in colour space, so that they
too are one multiplication per pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.images.pipeline import LUMA

if TYPE_CHECKING:
    from aiseeme_models.images.presets import ImagePreset

# Columns of the uniform draws of a batch: every parameter has its own, whatever is switched on.
_SCALE, _ASPECT, _X, _Y, _ANGLE, _HFLIP, _VFLIP, _BRIGHT, _CONTRAST, _SATURATION, _HUE, _GRAY, _BLUR, _SIGMA = range(14)
_DRAWS = 14


class BatchAugmentation:
    """Turns uint8 batches into float32 network inputs, randomly (call) or not (`plain`).

    Args:
        options: strengths.
        mean: per channel, in [0, 1] pixel units.
        std: per channel, in [0, 1] pixel units.
    """

    def __init__(self, options: AugmentationOptions, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std):
            raise ValueError("mean and std must have one value per channel")
        self.options = options
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)

    @classmethod
    def of(cls, preset: ImagePreset) -> BatchAugmentation:
        """The augmentation of an image domain."""
        return cls(preset.augmentation, preset.mean, preset.std)

    def upright(self) -> BatchAugmentation:
        """The same without rotations and vertical flips: for tasks whose target is an orientation or a position."""
        options = self.options.model_copy(update={"rotation_degrees": 0.0, "flip_vertical": False})
        return BatchAugmentation(options, self.mean, self.std)

    def cropped(self, crop_min: float, crop_max: float) -> BatchAugmentation:
        """The same with views that show other parts of the area, in (0, 1]: for tasks that need smaller crops too."""
        options = self.options.model_copy(update={"crop_min": crop_min, "crop_max": crop_max})
        return BatchAugmentation(options, self.mean, self.std)

    def grayscale(self, probability: float) -> BatchAugmentation:
        """The same, but a view has no colour with at least ``probability``: for tasks that colour makes too easy."""
        options = self.options.model_copy(update={"grayscale_p": max(probability, self.options.grayscale_p)})
        return BatchAugmentation(options, self.mean, self.std)

    def true_colours(self) -> BatchAugmentation:
        """The same without changes of saturation and hue and without grayscale: for tasks whose target is a colour."""
        options = self.options.model_copy(update={"saturation": 0.0, "hue": 0.0, "grayscale_p": 0.0})
        return BatchAugmentation(options, self.mean, self.std)

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator, size: int | None = None) -> Tensor:
        """A random view of every image.

        Args:
            images: ``(B, C, H, W)`` uint8.
            generator: CPU generator; the draws are the same on every device.
            size: side of the views; default ``H``.

        Returns:
            ``(B, C, size, size)`` float32, normalised, on the device of ``images``.
        """
        batch, channels, height, _ = images.shape
        device = images.device
        size = size or height
        draws = torch.rand((batch, _DRAWS), generator=generator)
        with torch.autocast(device.type, enabled=False):
            theta = self._warp(draws).to(device, non_blocking=True)
            grid = F.affine_grid(theta, [batch, channels, size, size], align_corners=False)  # (B, S, S, 2)
            # Both the warp and the normalisation are linear, so 0..255 is rescaled only once, in the colour map.
            views = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
            if self.options.blur_p > 0:
                views = self._blur(views, draws)
            views = self._colour(views, draws)
            if self.options.noise_std > 0:
                views = self._noise(views, generator)
        return views

    @torch.no_grad()
    def plain(self, images: Tensor) -> Tensor:
        """The images themselves for evaluation: ``(B, C, H, W)`` uint8 to normalised float32."""
        scale, shift = self._normalisation(images.device)
        return torch.addcmul(shift, images.float(), scale)

    def _normalisation(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``x * scale + shift`` normalises pixels in 0..255; both ``(1, C, 1, 1)``."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        scale, shift = 1 / (255 * std), -mean / std
        return scale.view(1, -1, 1, 1).to(device), shift.view(1, -1, 1, 1).to(device)

    def _warp(self, draws: Tensor) -> Tensor:
        """Output-to-input affine maps in [-1, 1] coordinates, ``(B, 2, 3)``: crop, aspect, rotation, flips."""
        options = self.options
        area = options.crop_min + (options.crop_max - options.crop_min) * draws[:, _SCALE]
        stretch = torch.exp((2 * draws[:, _ASPECT] - 1) * math.log(options.aspect) / 2)
        width = (area.sqrt() * stretch).clamp(max=1)
        height = (area.sqrt() / stretch).clamp(max=1)
        centre_x = (2 * draws[:, _X] - 1) * (1 - width)
        centre_y = (2 * draws[:, _Y] - 1) * (1 - height)
        angle = (2 * draws[:, _ANGLE] - 1) * math.radians(options.rotation_degrees)
        if options.flip_horizontal:
            width = torch.where(draws[:, _HFLIP] < 0.5, -width, width)
        if options.flip_vertical:
            height = torch.where(draws[:, _VFLIP] < 0.5, -height, height)
        cos, sin = angle.cos(), angle.sin()
        rows = (cos * width, -sin * height, centre_x, sin * width, cos * height, centre_y)
        return torch.stack(rows, dim=1).view(-1, 2, 3)  # (B, 2, 3)

    def _colour(self, views: Tensor, draws: Tensor) -> Tensor:
        """Brightness, then contrast, saturation, hue and grayscale, clamped to the pixel range, and normalisation."""
        options = self.options
        batch, channels, height, width = views.shape
        device = views.device
        scale, shift = self._normalisation(device)
        gain = _factor(draws[:, _BRIGHT], options.brightness)  # (B,)
        contrast = _factor(draws[:, _CONTRAST], options.contrast)
        if options.contrast > 0:
            level = _luminance(views.mean(dim=(2, 3)))  # (B,)
            offset = ((1 - contrast) * gain).to(device, non_blocking=True) * level  # (B,)
        else:
            offset = torch.zeros(batch, device=device)
        gain = (gain * contrast).to(device, non_blocking=True)
        if channels == 3 and (options.saturation > 0 or options.hue > 0 or options.grayscale_p > 0):
            # The colour matrix keeps greys grey (its rows sum to 1): the offset passes through it unchanged.
            matrix = self._colour_matrix(draws).to(device, non_blocking=True) * gain.view(-1, 1, 1)
            pixels = torch.bmm(matrix, views.view(batch, 3, -1))  # (B, 3, H*W)
            views = pixels.view(batch, 3, height, width).add_(offset.view(-1, 1, 1, 1))
        elif options.brightness > 0 or options.contrast > 0:
            views = torch.addcmul(offset.view(-1, 1, 1, 1), views, gain.view(-1, 1, 1, 1))
        else:
            return torch.addcmul(shift, views, scale)
        return views.clamp_(0, 255).mul_(scale).add_(shift)

    def _colour_matrix(self, draws: Tensor) -> Tensor:
        """Per-image maps of RGB for saturation, hue (a turn in the YIQ plane) and grayscale, ``(B, 3, 3)``."""
        options = self.options
        luma = torch.tensor(LUMA).expand(3, 3)  # every row gives the luminance
        to_yiq = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
        angle = (2 * draws[:, _HUE] - 1) * options.hue * 2 * math.pi
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        turn = torch.stack((one, zero, zero, zero, cos, -sin, zero, sin, cos), dim=1).view(-1, 3, 3)  # (B, 3, 3)
        hue = torch.linalg.inv(to_yiq) @ turn @ to_yiq
        saturation = _factor(draws[:, _SATURATION], options.saturation)
        saturation = torch.where(draws[:, _GRAY] < options.grayscale_p, 0.0, saturation).view(-1, 1, 1)
        matrix: Tensor = saturation * hue + (1 - saturation) * luma
        return matrix

    def _blur(self, views: Tensor, draws: Tensor) -> Tensor:
        """Gaussian blur of a random part of the batch; sigma in [0.1, 2] at 224 px, in proportion otherwise."""
        chosen = torch.nonzero(draws[:, _BLUR] < self.options.blur_p).flatten()
        if len(chosen) == 0:
            return views
        _, channels, height, width = views.shape
        sigma = (0.1 + 1.9 * draws[chosen, _SIGMA]) * (width / 224)
        radius = min(max(1, math.ceil(3 * 2.0 * width / 224)), width - 1)
        kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma.view(-1, 1)) ** 2)
        kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)  # (n*C, 2r+1)
        kernel = kernel.to(views.device, non_blocking=True)
        chosen = chosen.to(views.device, non_blocking=True)
        groups = len(kernel)
        part = views[chosen].view(1, groups, height, width)  # (1, n*C, H, W)
        part = F.pad(part, (radius, radius, radius, radius), mode="reflect")
        part = F.conv2d(part, kernel.view(groups, 1, 1, -1), groups=groups)
        part = F.conv2d(part, kernel.view(groups, 1, -1, 1), groups=groups)
        return views.index_copy(0, chosen, part.view(len(chosen), channels, height, width))

    def _noise(self, views: Tensor, generator: torch.Generator) -> Tensor:
        # The one draw made on the device: a batch of noise is too large to be moved. Seeded by the CPU generator.
        seed = int(torch.randint(2**62, (1,), generator=generator))
        on_device = torch.Generator(views.device).manual_seed(seed)
        noise = torch.randn(views.shape, generator=on_device, device=views.device)
        strength = self.options.noise_std / torch.tensor(self.std)
        return views.addcmul_(noise, strength.view(1, -1, 1, 1).to(views.device))


def _factor(draw: Tensor, strength: float) -> Tensor:
    """A factor in [1-strength, 1+strength] from a uniform draw."""
    factor: Tensor = 1 + (2 * draw - 1) * strength
    return factor


def _luminance(means: Tensor) -> Tensor:
    """Luminance of channel means: ``(B, C)`` to ``(B,)``."""
    luma = torch.tensor(LUMA) if means.shape[1] == 3 else torch.full((means.shape[1],), 1 / means.shape[1])
    return torch.mv(means, luma.to(means.device))
