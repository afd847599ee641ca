"""Decoded uint8 images on disk, keyed by the content of their files and by the pipeline that made them.

``<root>/<pipeline key>/pack-<id>.npy`` holds ``(N, C, S, S)`` uint8 and is memory-mapped; ``pack-<id>.json`` says
which content each row is. The json is renamed into place last, which is the commit: a process killed at any point
loses the pack in progress at most, and what lies around of it is never read. Packs are only ever added, under names
of their own, so several processes may add at once (a content decoded twice is stored twice, equally).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from monai.transforms.compose import Compose
from numpy.typing import NDArray
from torch import Tensor

from aiseeme_models.atomic_files import flush_folder
from aiseeme_models.images.cached_images import CachedImages
from aiseeme_models.images.preprocessing import pipeline_key, preprocess, preprocessing
from aiseeme_models.images.presets import ImageOptions
from aiseeme_models.images.rejection import ImageRejected, RejectReason

__all__ = ["CachedImages", "ImageCache", "content_hash"]

_PACK_IMAGES = 1024
_PACK_BYTES = 64 * 2**20
_LEFTOVER_SECONDS = 24 * 3600
# Depend on the moment, not on the content: such a file is tried again.
_PASSING_REASONS = frozenset({RejectReason.UNREADABLE, RejectReason.TOO_LARGE})


def content_hash(path: Path) -> str:
    """sha256 of a file's content, in hex.

    Raises:
        ImageRejected: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageRejected(RejectReason.UNREADABLE) from error


@dataclass
class _Index:
    """What the committed packs hold: content hash to pack and row, and the contents that were rejected."""

    rows: dict[str, tuple[str, int]] = field(default_factory=dict)
    rejected: dict[str, RejectReason] = field(default_factory=dict)
    packs: set[str] = field(default_factory=set)


class ImageCache:
    """The cache of one pipeline under ``root``.

    Args:
        root: folder of all pipelines' caches; made when something is added.
        options: images; everything but the augmentation decides what is cached.
    """

    def __init__(self, root: Path, options: ImageOptions) -> None:
        self.options = options
        self.folder = root / pipeline_key(options)
        self.shape = (options.resolved_preset.channels, options.size, options.size)
        self._index = _Index()

    def add(self, files: Mapping[str, Path], on_image: Callable[[], None] | None = None) -> dict[str, RejectReason]:
        """Make sure that every file is decoded; only what is missing is read.

        Args:
            files: `content_hash` of a file to its path.
            on_image: called once per file, in this thread, decoded now or before.

        Returns:
            The contents among ``files`` that are no usable image, and why.
        """
        self._refresh()
        rejected = {key: self._index.rejected[key] for key in files if key in self._index.rejected}
        missing = [key for key in files if key not in self._index.rows and key not in rejected]
        for _ in range(len(files) - len(missing)):
            if on_image is not None:
                on_image()
        if not missing:
            return rejected
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        capacity = max(1, min(_PACK_IMAGES, _PACK_BYTES // int(np.prod(self.shape))))
        good: dict[str, NDArray[np.uint8]] = {}
        bad: dict[str, RejectReason] = {}
        for key, outcome in self._decode(files, missing):
            if isinstance(outcome, RejectReason):
                bad[key] = rejected[key] = outcome
            else:
                good[key] = outcome
            if len(good) == capacity:
                self._commit(good, bad)
                good, bad = {}, {}
            if on_image is not None:
                on_image()
        self._commit(good, bad)
        self._refresh()
        return rejected

    def open(self, hashes: Sequence[str]) -> CachedImages:
        """The images of ``hashes``, in their order; nothing is read yet.

        Raises:
            KeyError: a content that was never added, or that was rejected.
        """
        if any(key not in self._index.rows for key in hashes):
            self._refresh()
        places = [self._index.rows[key] for key in hashes]
        names = sorted({pack for pack, _ in places})
        numbers = {name: number for number, name in enumerate(names)}
        # A plain ndarray view of the map: indexing np.memmap itself is several times slower.
        packs = [np.load(self.folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in names]
        return CachedImages(
            packs,
            np.array([numbers[pack] for pack, _ in places], np.int64),
            np.array([row for _, row in places], np.int64),
            self.shape,
        )

    def _decode(
        self, files: Mapping[str, Path], keys: Sequence[str]
    ) -> Iterator[tuple[str, NDArray[np.uint8] | RejectReason]]:
        """Outcomes in the order of ``keys``, a few threads ahead: decoders let go of the interpreter's lock."""
        pipeline = preprocessing(self.options)
        workers = min(8, os.cpu_count() or 1)
        waiting: list[tuple[str, Future[NDArray[np.uint8] | RejectReason]]] = []
        upcoming = iter(keys)
        # pydicom warns with the values of tags, which may identify a patient.
        with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
            warnings.simplefilter("ignore")
            while True:
                for key in islice(upcoming, 4 * workers - len(waiting)):
                    waiting.append((key, pool.submit(_decode_one, pipeline, files[key], key)))
                if not waiting:
                    return
                key, future = waiting.pop(0)
                yield key, future.result()

    def _commit(self, good: Mapping[str, NDArray[np.uint8]], bad: Mapping[str, RejectReason]) -> None:
        """Write one pack; it exists once its json does."""
        lasting = {key: reason.value for key, reason in bad.items() if reason not in _PASSING_REASONS}
        if not good and not lasting:
            return
        name = f"pack-{uuid.uuid4().hex}"
        size = 0
        if good:
            array = self.folder / f"{name}.npy"
            with array.open("xb") as file:
                np.save(file, np.stack(list(good.values())))  # (N, C, S, S)
                file.flush()
                os.fsync(file.fileno())
            size = array.stat().st_size
        entry = {"hashes": list(good), "bytes": size, "rejected": lasting, "readers": _readers()}
        draft = self.folder / f"{name}.tmp"
        with draft.open("x", encoding="utf-8") as file:
            json.dump(entry, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self.folder / f"{name}.json")
        flush_folder(self.folder)

    def _refresh(self) -> None:
        """Take in packs that were committed since, by this process or another one."""
        for file in sorted(self.folder.glob("pack-*.json")):
            if file.stem in self._index.packs:
                continue
            try:
                entry = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:  # damaged by hand or by the disk: as good as missing, its images are decoded again
                continue
            if entry["hashes"]:
                array = file.with_suffix(".npy")
                # A pack that was cut or deleted by hand is as good as missing: its images are decoded again.
                if not array.is_file() or array.stat().st_size != entry["bytes"]:
                    continue
            self._index.packs.add(file.stem)
            for row, key in enumerate(entry["hashes"]):
                self._index.rows.setdefault(key, (file.stem, row))
            if entry["readers"] == _readers():  # another version of a decoder may read what this one could not
                reasons = {key: RejectReason(reason) for key, reason in entry["rejected"].items()}
                self._index.rejected.update(reasons)

    def _remove_leftovers(self) -> None:
        """Remove uncommitted files that are too old to be another process' pack in progress."""
        committed = {file.stem for file in self.folder.glob("pack-*.json")}
        for file in self.folder.glob("pack-*"):
            if file.stem not in committed and time.time() - file.stat().st_mtime > _LEFTOVER_SECONDS:
                file.unlink(missing_ok=True)


def _decode_one(pipeline: Compose, path: Path, key: str) -> NDArray[np.uint8] | RejectReason:
    try:
        image: Tensor = preprocess(pipeline, path)
        if content_hash(path) != key:  # replaced since it was scanned: its image must not stand under that hash
            return RejectReason.UNREADABLE
    except ImageRejected as rejected:
        return rejected.reason
    return image.to(torch.uint8).numpy()


def _readers() -> str:
    return f"pillow {version('pillow')}, pydicom {version('pydicom')}"
