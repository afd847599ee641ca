"""A class activation map laid over the image that it is of, as a picture for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from aiseeme_models.analysis.attention import resized_to

READABLE_SIDE = 448
"""Images that are smaller are enlarged to at least this many pixels on their longer side, by a whole factor."""

COLOURS = "plasma"
_OPACITY = 0.6
_GROUND, _INK = (24, 24, 24), (255, 214, 90)
_SMALLEST_LETTERS, _LARGEST_LETTERS = 9, 16
# What a banner of that many letters takes of the width of an image, roughly, in units of a letter's height.
_LETTERS_A_LINE = 27


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32], *, apart: bool = False) -> NDArray[np.uint8]:
    """Lay a map over an image: yellow where it is largest; where it is 0 the image is as it was.

    The image is enlarged without smoothing, so that it shows the very pixels that the network was given; the map is
    interpolated linearly. A map that is 0 everywhere leaves the image alone.

    Args:
        image: ``(H, W)`` or ``(C, H, W)`` with 1 channel (grey) or 3 (RGB).
        heat: ``(h, w)``, none negative; it is divided by its maximum.
        apart: the channels are pictures of their own (2.5-D), and stand side by side.

    Returns:
        ``(H', W', 3)`` RGB with ``H' = f H`` and ``W' = f W``, or ``C f W`` of channels that stand apart.
    """
    planes = image[None] if image.ndim == 2 else image  # (C, H, W)
    if apart and len(planes) > 1:
        return np.concatenate([overlay(plane, heat) for plane in planes], axis=1)
    import matplotlib

    factor = -(-READABLE_SIDE // max(planes.shape[1:]))
    large = planes.repeat(factor, axis=1).repeat(factor, axis=2)  # (C, H', W')
    shown = np.broadcast_to(large, (3, *large.shape[1:])).transpose(1, 2, 0).astype(np.float64)  # (H', W', 3)
    strength = resized_to(torch.from_numpy(heat)[None], torch.from_numpy(large[:1]))[0].numpy()  # (H', W')
    # Divided before it is resized, the maximum of the coarse map may lie between pixels: nothing would be quite 1.
    strength = strength / highest if (highest := float(strength.max())) > 0 else strength
    colours = 255 * matplotlib.colormaps[COLOURS](strength)[..., :3]  # (H', W', 3)
    share = _OPACITY * strength[..., None]
    mixed: NDArray[np.uint8] = np.rint((1 - share) * shown + share * colours).astype(np.uint8)
    return mixed


def with_banner(picture: NDArray[np.uint8], lines: Sequence[str]) -> NDArray[np.uint8]:
    """A picture ``(H, W, 3)`` RGB with lines of text in a strip below it, which hides nothing; the width stays."""
    from PIL import Image, ImageDraw, ImageFont

    width = picture.shape[1]
    size = min(_LARGEST_LETTERS, max(_SMALLEST_LETTERS, width // _LETTERS_A_LINE))
    step = round(1.5 * size)
    strip = Image.new("RGB", (width, step * len(lines) + step // 2), _GROUND)
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        draw.text((size // 2, step // 4 + number * step), line, fill=_INK, font=ImageFont.load_default(size))
    return np.concatenate([picture, np.asarray(strip)])
