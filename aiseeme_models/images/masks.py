"""Masks of lesions or lungs beside a folder's images, brought to the square that the pipeline makes of an image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aiseeme_models.errors import InputError
from aiseeme_models.images.picture import Pixels, ReadOptions
from aiseeme_models.images.pipeline import Pipeline, square
from aiseeme_models.images.reading import read_picture
from aiseeme_models.images.rejection import ImageRejected

_ENDING = re.compile(r"_(segmentation|mask|lesion)$", re.IGNORECASE)
_NO_MASK = re.compile(r"_superpixels$", re.IGNORECASE)
_INSIDE = 128  # of 255: at least half of a resampled pixel lies in the mask


def mask_files(folder: Path) -> dict[str, Path]:
    """The masks in a folder and below it, by the path of the image that each belongs to, without its ending.

    A mask is called as its image, whatever the format, or so with ``_segmentation`` (ISIC), ``_mask`` or ``_lesion``
    (PH2) at the end. Hidden files and ISIC's ``_superpixels`` are left out.

    Raises:
        InputError: no such folder, no file in it, or two masks of one image.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of masks")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        name = _without_ending(below.as_posix())
        if not path.is_file() or any(part.startswith(".") for part in below.parts) or _NO_MASK.search(name):
            continue
        key = _ENDING.sub("", name)
        if key in found:
            raise InputError(f"{folder}: {found[key].name} and {path.name} are masks of the same image: keep one")
        found[key] = path
    if not found:
        raise InputError(f"{folder}: no mask in it; a mask is called as its image")
    return found


def mask_of(masks: Mapping[str, Path], file: str) -> Path | None:
    """The mask of an image among `mask_files`, or None; ``file`` is its path below the folder of images."""
    return masks.get(file) or masks.get(_without_ending(file))  # DICOM files are called 1.2.840.113, without an ending


def _without_ending(file: str) -> str:
    return Path(file).with_suffix("").as_posix().removesuffix(".nii")


def read_mask(path: Path, image: Path, pipeline: Pipeline, frame: int = 0) -> NDArray[np.bool_]:
    """A mask as it lies over what the pipeline makes of its image.

    What is at least half as bright as the brightest pixel is inside, so that 0 and 1, 0 and 255, two lungs numbered 1
    and 2 and the noise of JPEG all mean what they were meant to. A mask of another size is stretched over its image.

    Args:
        path: any image file.
        image: the file of its image.
        pipeline: what the image went through.
        frame: which image of the files.

    Returns:
        ``(S, S)`` bool.

    Raises:
        InputError: one of the two cannot be read, or the mask has another shape; the text names the file.
    """
    pixels = _pixels(path, ReadOptions(), frame)
    rows, columns = _pixels(image, pipeline.reading, frame).shape[:2]
    brightness = pixels if pixels.ndim == 2 else pixels.max(axis=2)  # (h, w)
    inside = (brightness >= brightness.max() / 2) & (brightness > 0)
    stretched = Image.fromarray(inside.astype(np.uint8) * 255)
    if inside.shape != (rows, columns):
        _check_same_aspect(path, stretched.size, (columns, rows))
        stretched = stretched.resize((columns, rows), Image.Resampling.NEAREST)
    grey = replace(pipeline, channels=1)
    covered: NDArray[np.bool_] = square(np.asarray(stretched), grey)[0][0] >= _INSIDE
    return covered


def _pixels(path: Path, options: ReadOptions, frame: int) -> Pixels:
    try:
        return read_picture(path, options, frame).pixels
    except ImageRejected as rejected:
        raise InputError(f"{path}: {rejected.reason.sentence}") from None


def _check_same_aspect(path: Path, mask: tuple[int, int], image: tuple[int, int]) -> None:
    """Refuse a mask that no scaling puts over its image; a pixel may be lost in rounding. Sizes are width, height."""
    (width, height), (image_width, image_height) = mask, image
    if abs(width - height * image_width / image_height) > 1 and abs(height - width * image_height / image_width) > 1:
        raise InputError(
            f"{path}: the mask has {width} x {height} px and its image {image_width} x {image_height}: not the same"
            " shape, so nobody knows what it covers"
        )
