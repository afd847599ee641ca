"""A picture of what the network will see: a random sample after preprocessing, a row of tiles per modality."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from aiseeme_models.images.decode_pool import DecodePool, DecodeTask
from aiseeme_models.images.pipeline import Pipeline
from aiseeme_models.images.rejection import POLICY_REASONS
from client.listing import ListedImage
from client.site_home import SiteHome

_COLUMNS = 10
_GAP = 4
_CAPTION = 18
_GROUND, _INK = (32, 32, 32), (230, 230, 230)


def write_contact_sheet(
    path: Path, root: Path, images: Sequence[ListedImage], home: SiteHome, pipeline: Pipeline, *, sample: int, seed: int
) -> int:
    """Draw up to ``sample`` images of every modality into a PNG file that only its owner may read.

    Args:
        path: of the PNG.
        root: where the images' files lie.
        images: to choose from; those without pixels are left out.
        home: of the site, for what decoding may cost.
        pipeline: what images become.
        sample: most images per modality.
        seed: of the choice.

    Returns:
        How many images were drawn.
    """
    by_modality: dict[str, list[ListedImage]] = defaultdict(list)
    for image in images:
        if image.frame is not None:
            by_modality[image.modality or image.encoding].append(image)
    chosen = {
        modality: random.Random(f"{seed} {modality}").sample(found, min(sample, len(found)))
        for modality, found in sorted(by_modality.items())
    }
    tiles = _decoded({image.file for few in chosen.values() for image in few}, root, home, pipeline)
    rows: list[tuple[str, list[NDArray[np.uint8]]]] = []
    for modality, few in chosen.items():
        squares = [tiles[image.file, image.frame] for image in few if (image.file, image.frame) in tiles]
        rows.append((f"{modality}: {len(squares)} of {len(by_modality[modality])} images", squares))
    sheet = _drawn(rows, pipeline.size)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        sheet.save(file, format="PNG")
    return sum(len(squares) for _, squares in rows)


def _decoded(
    files: set[str], root: Path, home: SiteHome, pipeline: Pipeline
) -> dict[tuple[str, int | None], NDArray[np.uint8]]:
    names = sorted(files)
    tasks = [DecodeTask(number, root / name) for number, name in enumerate(names)]
    tiles: dict[tuple[str, int | None], NDArray[np.uint8]] = {}
    with DecodePool(pipeline, home.config.intake.limits, frozenset(POLICY_REASONS)) as pool:
        for outcome in pool.decode(tasks):
            for image in outcome.images:
                if image.square is not None:
                    tiles[names[outcome.number], image.frame] = image.square
    return tiles


def _drawn(rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]], size: int) -> Image.Image:
    lines = [max(1, -(-len(squares) // _COLUMNS)) for _, squares in rows]
    width = _GAP + _COLUMNS * (size + _GAP)
    height = _GAP + sum(_CAPTION + count * (size + _GAP) for count in lines)
    sheet = Image.new("RGB", (width, height), _GROUND)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for (caption, squares), count in zip(rows, lines, strict=True):
        draw.text((_GAP, top), caption, fill=_INK)
        top += _CAPTION
        for number, square in enumerate(squares):
            line, column = divmod(number, _COLUMNS)
            tile = Image.fromarray(square[0] if len(square) == 1 else np.ascontiguousarray(square.transpose(1, 2, 0)))
            sheet.paste(tile.convert("RGB"), (_GAP + column * (size + _GAP), top + line * (size + _GAP)))
        top += count * (size + _GAP)
    return sheet
