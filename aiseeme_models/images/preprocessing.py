"""The pipeline of a federation's images as MONAI transforms, which compose with MONAI's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.transform import Transform
from torch import Tensor

from aiseeme_models.images.picture import ReadOptions
from aiseeme_models.images.pipeline import Pipeline, square
from aiseeme_models.images.presets import ImageOptions
from aiseeme_models.images.reading import read_picture
from aiseeme_models.images.rejection import ImageRejected


class ReadImage(Transform):
    """Path to ``(C, H, W)``: uint8, or float32 in [0, 1] for what is deeper than 8 bits; 0 is black.

    Args:
        options: window and views; see `ReadOptions`.
        frame: which image of the file.
    """

    def __init__(self, options: ReadOptions = ReadOptions(), frame: int = 0) -> None:
        self.options = options
        self.frame = frame

    def __call__(self, path: Path) -> Tensor:
        """Read ``path``; raises ImageRejected."""
        pixels = read_picture(path, self.options, self.frame).pixels
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return torch.from_numpy(np.array(planes))  # a copy: arrays of decoders may be read-only


class ToSquare(Transform):
    """``(C, H, W)``, uint8 or float32 in [0, 1], with one or three channels, to uint8 ``(channels, size, size)``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def __call__(self, image: Tensor) -> Tensor:
        """Bring ``image`` to its working size."""
        array = np.asarray(image)
        pixels = array[0] if len(array) == 1 else array.transpose(1, 2, 0)
        return torch.from_numpy(square(pixels, self.pipeline)[0])


def preprocessing(options: ImageOptions) -> Compose:
    """The pipeline of ``options`` from a path to ``(C, S, S)`` uint8: the very arrays that the cache holds.

    Call `preprocess` with it, which keeps the reason of a rejected file.
    """
    pipeline = options.pipeline
    return Compose([ReadImage(pipeline.reading), ToSquare(pipeline)])


def preprocess(transforms: Compose, path: Path) -> Tensor:
    """The image in ``path`` as uint8 ``(C, S, S)``.

    Raises:
        ImageRejected: MONAI wraps it into a RuntimeError that names the transform; here it comes as it was raised.
    """
    try:
        image: Tensor = transforms(path)
    except RuntimeError as error:
        if isinstance(error.__cause__, ImageRejected):
            raise error.__cause__ from None
        raise
    return image
