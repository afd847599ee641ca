"""Making sure that images which a catalogue has accepted are in a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiseeme_models.images.cache import ImageCache
from aiseeme_models.images.decode_pool import DecodedImage, DecodeLimits, DecodePool, DecodeTask
from aiseeme_models.images.rejection import POLICY_REASONS


@dataclass(frozen=True)
class WantedImage:
    """An accepted image.

    Attributes:
        key: its key in the cache, see `image_key`.
        path: the file it comes from.
    """

    key: str
    path: Path


def image_key(content: str, frame: int) -> str:
    """The key of an image: the sha256 of its file, and its number for all but a file's first."""
    return f"{content}.{frame}" if frame else content


def fill(
    cache: ImageCache,
    wanted: Sequence[WantedImage],
    limits: DecodeLimits = DecodeLimits(),
    on_file: Callable[[], None] | None = None,
) -> set[str]:
    """Decode what ``cache`` lacks of ``wanted``; nothing that is there is read again.

    Args:
        cache: takes the images.
        wanted: they were accepted before, so no policy is asked again.
        limits: what one file may cost.
        on_file: called once per file that was decoded.

    Returns:
        The keys that could not be had: files that changed or vanished since they were catalogued.
    """
    missing = cache.missing(image.key for image in wanted)
    if not missing:
        return set()
    paths = sorted({image.path for image in wanted if image.key in missing})
    tasks = [DecodeTask(number, path) for number, path in enumerate(paths)]

    def keep(content: str, image: DecodedImage) -> None:
        key = image_key(content, image.frame)
        if key in missing and image.square is not None:
            cache.put(key, image.square)
            missing.discard(key)

    with DecodePool(cache.pipeline, limits, frozenset(POLICY_REASONS)) as pool:
        for outcome in pool.decode(tasks, keep):
            for image in outcome.images:
                keep(outcome.content, image)
            if on_file is not None:
                on_file()
    cache.commit()
    return missing
