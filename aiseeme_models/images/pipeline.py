"""The deterministic part between an image and the cache: from pixels of any size to a uint8 square."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aiseeme_models.images.picture import Pixels, ReadOptions

Fit = Literal["crop", "pad"]

# Raise this with every change that alters a pixel: caches of older pipelines are then left alone.
PIPELINE_VERSION = 2

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance (ITU-R BT.601, as in Pillow's ``convert("L")``)."""

_BLANK_DEVIATION = 2.0
_SATURATED_SHARE = 0.25
# Quality is told from a regular sample of about this many rows and columns.
_QUALITY_SIDE = 24
# Pillow shrinks images of over six times the size by a whole factor first: the same picture in half the time.
_REDUCING_GAP = 3.0


@dataclass(frozen=True)
class Pipeline:
    """How an image becomes ``(channels, size, size)`` uint8.

    Attributes:
        channels: 1 (grey) or 3; grey is repeated, colour becomes its luminance.
        fit: how a rectangle becomes a square: ``crop`` keeps the centre, ``pad`` keeps everything, on black.
        size: side in pixels.
        window: lowest and highest value shown of grey images in modality units, or None for the file's own.
        orthogonal: 3-D patches become three orthogonal planes.
    """

    channels: int
    fit: Fit
    size: int
    window: tuple[float, float] | None = None
    orthogonal: bool = False

    @property
    def key(self) -> str:
        """16 hex digits that change with everything that changes a cached array, and with nothing else."""
        parts = asdict(self) | {"version": PIPELINE_VERSION}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, S, S)``."""
        return self.channels, self.size, self.size

    @property
    def reading(self) -> ReadOptions:
        """What the reader of a file must know."""
        return ReadOptions(window=self.window, orthogonal=self.orthogonal)


@dataclass(frozen=True)
class Quality:
    """What is striking about an image at its working size, padding left out.

    Attributes:
        near_blank: its standard deviation is under 2 of 255 levels.
        saturated: over a quarter of it is as bright as can be.
    """

    near_blank: bool
    saturated: bool


def square(pixels: Pixels, pipeline: Pipeline) -> tuple[NDArray[np.uint8], Quality]:
    """An image at its working size.

    Pillow resamples (bilinear, antialiased): torch's antialiased ``interpolate`` took 8 ms for a 171x128 image with
    two threads (0.13 ms with one), and its result may depend on the number of threads.

    Args:
        pixels: ``(H, W)`` or ``(H, W, 3)``, uint8 or float32 in [0, 1].
        pipeline: what is wanted.

    Returns:
        ``(C, S, S)`` uint8, and its quality.
    """
    height, width = pixels.shape[:2]
    if pipeline.fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
        rows = columns = pipeline.size
    else:
        scale = pipeline.size / max(height, width)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    content = _resized(pixels, pipeline.channels, rows, columns)  # (h, w) or (h, w, 3)
    step = max(1, min(rows, columns) // _QUALITY_SIDE)
    sample = content[::step, ::step]
    quality = Quality(
        near_blank=bool(sample.std() < _BLANK_DEVIATION),
        saturated=bool(np.count_nonzero(sample == 255) > _SATURATED_SHARE * sample.size),
    )
    above, before = (pipeline.size - rows) // 2, (pipeline.size - columns) // 2
    image = np.zeros(pipeline.shape, np.uint8)
    target = image[:, above : above + rows, before : before + columns]
    target[...] = content if content.ndim == 2 else content.transpose(2, 0, 1)
    return image, quality


def _resized(pixels: Pixels, channels: int, rows: int, columns: int) -> NDArray[np.uint8]:
    """The image as uint8 ``(rows, columns)``, or ``(rows, columns, 3)`` where it has colour to keep."""
    if pixels.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if channels == 1 and image.mode == "RGB":
            image = image.convert("L")
        return np.asarray(_resize(image, rows, columns))
    if pixels.ndim == 3 and channels == 1:
        pixels = pixels @ np.array(LUMA, np.float32)
    planes = [pixels] if pixels.ndim == 2 else [pixels[..., channel] for channel in range(3)]
    resized = [
        np.asarray(_resize(Image.fromarray(np.ascontiguousarray(plane, np.float32)), rows, columns)) for plane in planes
    ]
    values = resized[0] if len(resized) == 1 else np.stack(resized, axis=-1)
    content: NDArray[np.uint8] = np.rint(values * 255).clip(0, 255).astype(np.uint8)
    return content


def _resize(image: Image.Image, rows: int, columns: int) -> Image.Image:
    if image.size == (columns, rows):
        return image
    return image.resize((columns, rows), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP)
