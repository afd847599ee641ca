"""The deterministic part between a file and the cache, as a MONAI pipeline: path to uint8 ``(C, S, S)``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.transform import Transform
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from aiseeme_models.images.augmentation import LUMA
from aiseeme_models.images.presets import Fit, ImageOptions
from aiseeme_models.images.reading import read_pixels
from aiseeme_models.images.rejection import ImageRejected

# Raise this with every change that alters a pixel: caches of older pipelines are then left alone.
PIPELINE_VERSION = 1


class ReadImage(Transform):
    """Path to ``(H, W)`` or ``(H, W, 3)`` float32 in [0, 1]; see `read_pixels`."""

    def __init__(self, window: tuple[float, float] | None) -> None:
        self.window = window

    def __call__(self, path: Path) -> NDArray[np.float32]:
        """Read ``path``; raises ImageRejected."""
        return read_pixels(path, self.window)


class MatchChannels(Transform):
    """``(H, W)`` or ``(H, W, 3)`` to float32 ``(C, H, W)``: grey is repeated, colour becomes its luminance."""

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring ``pixels`` to ``(C, H, W)``."""
        if pixels.ndim == 2:
            return np.broadcast_to(pixels, (self.channels, *pixels.shape))  # (C, H, W)
        if self.channels == 1:
            return (pixels @ np.array(LUMA, np.float32))[None]  # (1, H, W)
        return pixels.transpose(2, 0, 1)  # (3, H, W)


class ResizeToSquare(Transform):
    """``(C, H, W)`` to ``(C, S, S)`` by antialiased bilinear resampling; the aspect ratio is kept.

    ``crop`` cuts the centre square and resizes it to ``S``; ``pad`` resizes the long side to ``S`` and adds black.
    Pillow resamples: torch's antialiased ``interpolate`` took 8 ms for a 171x128 image with two threads (0.13 ms with
    one), and its result may depend on the number of threads.
    """

    def __init__(self, size: int, fit: Fit) -> None:
        self.size = size
        self.fit = fit

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring ``image`` to ``(C, S, S)``."""
        height, width = image.shape[1:]
        if self.fit == "crop":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            return self._resize(image[:, top : top + side, left : left + side], self.size, self.size)
        scale = self.size / max(height, width)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        above, before = (self.size - rows) // 2, (self.size - columns) // 2
        square = np.zeros((image.shape[0], self.size, self.size), np.float32)
        square[:, above : above + rows, before : before + columns] = self._resize(image, rows, columns)
        return square

    @staticmethod
    def _resize(image: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
        if image.shape[1:] == (rows, columns):
            return image
        grey = image.strides[0] == 0  # one channel repeated: resize it once
        channels = [
            np.asarray(Image.fromarray(channel).resize((columns, rows), Image.Resampling.BILINEAR))
            for channel in (image[:1] if grey else image)
        ]
        return np.broadcast_to(np.stack(channels), (image.shape[0], rows, columns))  # (C, rows, columns)


class ToUint8(Transform):
    """Float ``(C, S, S)`` in [0, 1] to a uint8 tensor, rounded."""

    def __call__(self, image: NDArray[np.float32]) -> Tensor:
        """Round ``image``."""
        return torch.from_numpy(np.rint(image * 255).clip(0, 255).astype(np.uint8))


def preprocessing(options: ImageOptions) -> Compose:
    """The pipeline of ``options``: call `preprocess` with it, which keeps the reason of a rejected file."""
    preset = options.resolved_preset
    return Compose(
        [ReadImage(preset.window), MatchChannels(preset.channels), ResizeToSquare(options.size, preset.fit), ToUint8()]
    )


def preprocess(pipeline: Compose, path: Path) -> Tensor:
    """The image in ``path`` as uint8 ``(C, S, S)``.

    Raises:
        ImageRejected: MONAI wraps it into a RuntimeError that names the transform; here it comes as it was raised.
    """
    try:
        image: Tensor = pipeline(path)
    except RuntimeError as error:
        if isinstance(error.__cause__, ImageRejected):
            raise error.__cause__ from None
        raise
    return image


def pipeline_key(options: ImageOptions) -> str:
    """16 hex digits that change with everything that changes a cached array, and with nothing else.

    Augmentation and normalisation happen later, so a cache serves every strength of them.
    """
    preset = options.resolved_preset
    parts = {
        "version": PIPELINE_VERSION,
        "channels": preset.channels,
        "fit": preset.fit,
        "size": options.size,
        "window": preset.window,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
