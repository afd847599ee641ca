"""The cache keeps every image once, survives interruptions, keeps to its budget and its key, and feeds batches."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from aiseeme_models.errors import InputError
from aiseeme_models.images import cache as cache_module
from aiseeme_models.images.cache import CacheStore, ImageCache
from aiseeme_models.images.pipeline import Pipeline

PIPELINE = Pipeline(channels=3, fit="crop", size=16)
KEY = bytes(range(32))


def images(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"{seed}-{number}": rng.integers(0, 256, PIPELINE.shape, dtype=np.uint8) for number in range(count)}


def filled(store: CacheStore, some: dict[str, np.ndarray], pipeline: Pipeline = PIPELINE) -> ImageCache:
    cache = ImageCache(store, pipeline)
    for key, image in some.items():
        cache.put(key, image)
    cache.commit()
    return cache


def read(cache: ImageCache, keys: list[str]) -> np.ndarray:
    return cache.open(keys).batch(torch.arange(len(keys))).numpy()


@pytest.fixture
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_PACK_IMAGES", 4)


@pytest.mark.usefixtures("small_packs")
@pytest.mark.parametrize("key", [None, KEY])
def test_batches_hold_the_images_in_the_order_asked_for(tmp_path: Path, key: bytes | None) -> None:
    some = images(11)
    filled(CacheStore(tmp_path, key), some)
    cache = ImageCache(CacheStore(tmp_path, key), PIPELINE)
    opened, truth = cache.open(list(some)), torch.from_numpy(np.stack(list(some.values())))
    assert len(opened) == 11 and opened.shape == (3, 16, 16)
    order = torch.tensor([10, 0, 5, 5, 3, 9, 1])
    assert torch.equal(opened.batch(order), truth[order])
    assert opened.batch(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 16, 16)
    with pytest.raises(IndexError):
        opened.batch(torch.tensor([11]))
    with pytest.raises(KeyError):
        cache.open(["nobody"])


def test_what_is_missing_is_told_and_nothing_is_kept_twice(tmp_path: Path) -> None:
    some = images(5)
    cache = filled(CacheStore(tmp_path), some)
    assert cache.missing([*some, "other"]) == {"other"}
    for key, image in some.items():
        cache.put(key, 255 - image)
    cache.commit()
    assert len(list(cache.folder.glob("*.npy"))) == 1
    np.testing.assert_array_equal(read(cache, list(some)), np.stack(list(some.values())))


def test_an_image_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        ImageCache(CacheStore(tmp_path), PIPELINE).put("a", np.zeros((3, 8, 8), np.uint8))


@pytest.mark.usefixtures("small_packs")
def test_a_cut_pack_or_index_is_as_good_as_missing(tmp_path: Path) -> None:
    some = images(12)
    cache = filled(CacheStore(tmp_path), some)
    first, second, third = sorted(cache.folder.glob("*.json"))
    array = first.with_suffix(".npy")
    array.write_bytes(array.read_bytes()[:-7])
    second.write_text('{"hashes": ["')
    (cache.folder / "pack-feed.npy").write_bytes(b"half a pack")  # what a kill within a write leaves
    (cache.folder / "pack-feed.tmp").write_bytes(b"{")
    again = ImageCache(CacheStore(tmp_path), PIPELINE)
    missing = again.missing(some)
    assert len(missing) == 8
    for key in missing:
        again.put(key, some[key])
    again.commit()
    np.testing.assert_array_equal(read(again, list(some)), np.stack(list(some.values())))
    assert third.exists()


def test_old_leftovers_are_removed_and_new_ones_left_to_their_owner(tmp_path: Path) -> None:
    cache = ImageCache(CacheStore(tmp_path), PIPELINE)
    cache.folder.mkdir(parents=True)
    for name, age in (("pack-old.npy", 2 * 24 * 3600), ("pack-new.npy", 0)):
        (cache.folder / name).write_bytes(b"x")
        os.utime(cache.folder / name, (time.time() - age,) * 2)
    filled(cache.store, images(2))
    assert not (cache.folder / "pack-old.npy").exists()
    assert (cache.folder / "pack-new.npy").exists()


def _fill(root: str) -> None:
    filled(CacheStore(Path(root)), images(40))


def test_two_processes_may_add_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(str(tmp_path),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    some = images(40)
    cache = ImageCache(CacheStore(tmp_path), PIPELINE)
    np.testing.assert_array_equal(read(cache, list(some)), np.stack(list(some.values())))


def test_with_a_key_no_pixel_lies_on_the_disk_in_clear(tmp_path: Path) -> None:
    some = images(3)
    filled(CacheStore(tmp_path), some)  # before the site asked for encryption
    more = images(3, seed=1)
    cache = filled(CacheStore(tmp_path, KEY), more)
    assert cache.missing(some) == set(some), "what lay there in clear is decoded again"
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for image in (*some.values(), *more.values()):
        assert image.tobytes()[:64] not in written
    with pytest.raises(InputError, match="another key"):
        read(ImageCache(CacheStore(tmp_path, bytes(32)), PIPELINE), list(more))


def test_a_sealed_pack_that_was_changed_or_exchanged_is_noticed(tmp_path: Path) -> None:
    store = CacheStore(tmp_path, KEY)
    filled(store, images(3))
    filled(store, images(3, seed=1))
    first, second = sorted(tmp_path.rglob("*.sealed"))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.raises(InputError, match="changed since"):
        read(ImageCache(store, PIPELINE), ["0-0"])
    first.write_bytes(one[:-1] + bytes([one[-1] ^ 1]))
    second.write_bytes(two)
    with pytest.raises(InputError, match="changed since"):
        read(ImageCache(store, PIPELINE), ["0-0", "1-0"])


def test_the_pipeline_used_longest_ago_makes_room_for_another(tmp_path: Path) -> None:
    one = 3 * 16 * 16
    store = CacheStore(tmp_path, budget_bytes=25 * one)
    old, new = Pipeline(3, "pad", 16), Pipeline(3, "pad", 16, window=(0.0, 1.0))
    for pipeline, age in ((old, 7200), (new, 3600)):
        cache = filled(store, images(10), pipeline)
        os.utime(cache.folder / ".used", (time.time() - age,) * 2)
    cache = filled(store, images(8, seed=1))
    assert len(cache.missing(images(8, seed=1))) == 0
    assert len(ImageCache(store, old).missing(images(10))) == 10
    assert len(ImageCache(store, new).missing(images(10))) == 0


def test_a_budget_that_one_pipeline_alone_exceeds_is_an_error_and_what_was_kept_stays(tmp_path: Path) -> None:
    store = CacheStore(tmp_path, budget_bytes=12 * 3 * 16 * 16)
    filled(store, images(10))
    with pytest.raises(InputError, match="budget_gb"):
        filled(store, images(10, seed=1))
    assert ImageCache(store, PIPELINE).missing(images(10)) == set()
