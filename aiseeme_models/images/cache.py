"""Decoded uint8 images on disk, keyed by the content of their files and by the pipeline that made them.

``<root>/<pipeline key>/pack-<id>.npy`` holds ``(N, C, S, S)`` uint8 and is memory-mapped; with a key it is
``pack-<id>.sealed``, AES-256-GCM over the same bytes, and is decrypted into memory when it is opened.
``pack-<id>.json`` says which image each row is. The json is renamed into place last, which is the commit: a process
killed at any point loses the pack in progress at most, and what lies around of it is never read. Packs are only ever
added, under names of their own, so several processes may add at once (an image stored twice is stored equally).
"""

from __future__ import annotations

import io
import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import InputError
from aiseeme_models.images.pipeline import Pipeline
from aiseeme_models.sealing import WrongKey, seal, unseal

if TYPE_CHECKING:
    from aiseeme_models.images.cached_images import CachedImages

_PACK_IMAGES = 4096
_PACK_BYTES = 64 * 2**20
_LEFTOVER_SECONDS = 24 * 3600
_USED = ".used"
_CLEAR, _SEALED = ".npy", ".sealed"


@dataclass(frozen=True)
class CacheStore:
    """Where decoded images are kept, for all pipelines.

    Attributes:
        root: made when something is added.
        key: 32 bytes; with it everything is encrypted at rest, and what lies there in clear is removed.
        budget_bytes: most bytes on disk; what other pipelines have not used for longest makes room first.
    """

    root: Path
    key: bytes | None = field(default=None, repr=False)
    budget_bytes: int | None = None


@dataclass
class _Index:
    """What the committed packs hold: image key to pack and row."""

    rows: dict[str, tuple[str, int]] = field(default_factory=dict)
    packs: set[str] = field(default_factory=set)


class ImageCache:
    """The cache of one pipeline.

    Args:
        store: where.
        pipeline: what the images went through.
    """

    def __init__(self, store: CacheStore, pipeline: Pipeline) -> None:
        self.store, self.pipeline = store, pipeline
        self.folder = store.root / pipeline.key
        self._index = _Index()
        self._waiting: dict[str, NDArray[np.uint8]] = {}

    def missing(self, keys: Iterable[str]) -> set[str]:
        """Those of ``keys`` that are not cached."""
        self._refresh()
        return {key for key in keys if key not in self._index.rows}

    def put(self, key: str, image: NDArray[np.uint8]) -> None:
        """Keep an image ``(C, S, S)`` under a key that stands for its content; it lasts from `commit` on.

        Raises:
            InputError: the budget is used up.
        """
        if key in self._index.rows or key in self._waiting:
            return
        if image.shape != self.pipeline.shape:
            raise ValueError(f"an image of shape {image.shape} where {self.pipeline.shape} is cached")
        self._waiting[key] = image
        if len(self._waiting) >= max(1, min(_PACK_IMAGES, _PACK_BYTES // image.nbytes)):
            self.commit()

    def commit(self) -> None:
        """Make everything that was put last through a crash and a power cut.

        Raises:
            InputError: the budget is used up.
        """
        if not self._waiting:
            return
        if not self.store.root.exists():
            self.store.root.mkdir(parents=True, mode=0o700)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        (self.folder / _USED).touch()
        if self.store.key is not None or self.store.budget_bytes is not None:
            self._remove_packs_of_the_other_setting()
        self._remove_leftovers()
        name = f"pack-{uuid.uuid4().hex}"
        images = np.stack(list(self._waiting.values()))  # (N, C, S, S)
        self._make_room(images.nbytes)
        array = self.folder / f"{name}{self._suffix}"
        try:
            with array.open("xb") as file:
                # Not np.save(file): on a full disk it says neither the file nor the reason.
                file.write(_npy(images) if self.store.key is None else self._sealed(name, images))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            array.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(array)) from None
        entry = {"hashes": list(self._waiting), "bytes": array.stat().st_size}
        write_atomically(self.folder / f"{name}.json", json.dumps(entry).encode())
        self._take_in(name, self._waiting)
        self._waiting = {}

    def open(self, keys: Sequence[str]) -> CachedImages:
        """The images of ``keys``, in their order; those in clear are read as they are asked for.

        Raises:
            KeyError: an image that is not cached.
        """
        from aiseeme_models.images.cached_images import CachedImages

        if any(key not in self._index.rows for key in keys):
            self._refresh()
        places = [self._index.rows[key] for key in keys]
        names = sorted({pack for pack, _ in places})
        numbers = {name: number for number, name in enumerate(names)}
        if names:
            (self.folder / _USED).touch()
        return CachedImages(
            [self._pack(name) for name in names],
            np.array([numbers[pack] for pack, _ in places], np.int64),
            np.array([row for _, row in places], np.int64),
            self.pipeline.shape,
        )

    @property
    def _suffix(self) -> str:
        return _CLEAR if self.store.key is None else _SEALED

    def _pack(self, name: str) -> NDArray[np.uint8]:
        path = self.folder / f"{name}{self._suffix}"
        if self.store.key is None:
            # A plain ndarray view of the map: indexing np.memmap itself is several times slower.
            mapped: NDArray[np.uint8] = np.load(path, mmap_mode="r").view(np.ndarray)
            return mapped
        images: NDArray[np.uint8] = np.load(io.BytesIO(self._unsealed(name, path.read_bytes())), allow_pickle=False)
        return images

    def _sealed(self, name: str, images: NDArray[np.uint8]) -> bytes:
        assert self.store.key is not None
        return seal(self.store.key, _npy(images), self._purpose(name))

    def _unsealed(self, name: str, sealed: bytes) -> bytes:
        assert self.store.key is not None
        try:
            return unseal(self.store.key, sealed, self._purpose(name))
        except WrongKey:
            raise InputError(
                f"{self.folder}: encrypted with another key, or changed since it was written: "
                "give the site its key back, or delete the folder and scan again"
            ) from None

    def _purpose(self, name: str) -> bytes:
        """Binds a sealed pack to its name and pipeline: packs cannot be exchanged unnoticed."""
        return f"aiseeme cache {self.pipeline.key} {name}".encode()

    def _refresh(self) -> None:
        """Take in packs that were committed since, by this process or another one."""
        for file in sorted(self.folder.glob("pack-*.json")):
            if file.stem in self._index.packs:
                continue
            try:
                entry = json.loads(file.read_text(encoding="utf-8"))
                array = file.with_suffix(self._suffix)
                # A pack that was cut or deleted by hand is as good as missing: its images are decoded again.
                whole = array.stat().st_size == entry["bytes"]
                keys = [str(key) for key in entry["hashes"]]
            except (ValueError, KeyError, TypeError, OSError):
                continue
            if whole:
                self._take_in(file.stem, keys)
        # Packs may have made room for others since.
        gone = {name for name in self._index.packs if not (self.folder / f"{name}.json").exists()}
        if gone:
            self._index.packs -= gone
            self._index.rows = {key: place for key, place in self._index.rows.items() if place[0] not in gone}

    def _take_in(self, name: str, keys: Iterable[str] | Mapping[str, object]) -> None:
        self._index.packs.add(name)
        for row, key in enumerate(keys):
            self._index.rows.setdefault(key, (name, row))

    def _make_room(self, needed: int) -> None:
        budget = self.store.budget_bytes
        if budget is None:
            return
        taken = {folder: _bytes_in(folder) for folder in self.store.root.iterdir() if folder.is_dir()}
        others = sorted((folder for folder in taken if folder != self.folder), key=_last_used)
        while sum(taken.values()) + needed > budget and others:
            oldest = others.pop(0)
            for file in (*oldest.glob("pack-*.json"), *oldest.glob("pack-*")):
                file.unlink(missing_ok=True)
            taken[oldest] = 0
        if sum(taken.values()) + needed > budget:
            gigabytes = budget / 10**9
            raise InputError(
                f"{self.store.root}: the cache budget of {gigabytes:g} GB is used up by the images of this pipeline:"
                " raise budget_gb in site.toml, take a smaller image size, or scan fewer images"
            )

    def _remove_packs_of_the_other_setting(self) -> None:
        """What was written with or without encryption, where the other holds now: it cannot be read here."""
        for array in self.store.root.glob(f"*/pack-*{_CLEAR if self.store.key is not None else _SEALED}"):
            array.with_suffix(".json").unlink(missing_ok=True)
            array.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Remove uncommitted files that are too old to be another process' pack in progress."""
        committed = {file.stem for file in self.folder.glob("pack-*.json")}
        for file in self.folder.glob("pack-*"):
            if file.stem not in committed and time.time() - file.stat().st_mtime > _LEFTOVER_SECONDS:
                file.unlink(missing_ok=True)


def _npy(images: NDArray[np.uint8]) -> memoryview:
    plain = io.BytesIO()
    np.save(plain, images)
    return plain.getbuffer()


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("pack-*"))


def _last_used(folder: Path) -> float:
    mark = folder / _USED
    return mark.stat().st_mtime if mark.exists() else 0.0
