"""Files are decoded in processes of their own: what crashes, hangs or devours memory costs one file."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aiseeme_models.images.cache import CacheStore, ImageCache
from aiseeme_models.images.decode_pool import DecodeLimits, DecodePool, DecodeTask
from aiseeme_models.images.filling import WantedImage, fill
from aiseeme_models.images.preprocessing import preprocess, preprocessing
from aiseeme_models.images.presets import ImageOptions
from aiseeme_models.images.rejection import POLICY_REASONS, RejectReason

OPTIONS = ImageOptions(preset="dermoscopy", size=16)


def pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:03d}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return paths


def decode(paths: list[Path], limits: DecodeLimits = DecodeLimits(workers=2), **options):
    tasks = [DecodeTask(number, path, path.stat().st_size) for number, path in enumerate(paths)]
    with DecodePool(OPTIONS.pipeline, limits, **options) as pool:
        return {paths[outcome.number].name: outcome for outcome in pool.decode(tasks)}


@pytest.fixture
def bad_decoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Workers in which reading a file called ``evil`` does what the test says."""

    def install(what: str) -> None:
        module = tmp_path / "evil" / "sitecustomize.py"
        module.parent.mkdir(exist_ok=True)
        module.write_text(
            "import sys\n"
            "if 'aiseeme_models.images.decode_worker' in ' '.join(sys.orig_argv):\n"
            "    import ctypes, os, signal, time\n"
            "    import aiseeme_models.images.reading as reading\n"
            "    honest = reading.read_bytes\n"
            "    def read(path):\n"
            "        if path.name == 'evil.png':\n"
            f"            {what}\n"
            "        return honest(path)\n"
            "    reading.read_bytes = read\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(module.parent))

    return install


def test_every_file_has_its_outcome_and_the_very_array_of_the_pipeline(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 70)
    (tmp_path / "notes.txt").write_text("no image")
    outcomes = decode([*paths, tmp_path / "notes.txt", tmp_path])
    assert len(outcomes) == 72
    assert outcomes["notes.txt"].reason == RejectReason.NOT_AN_IMAGE
    assert outcomes[tmp_path.name].reason == RejectReason.UNREADABLE
    for path in paths:
        (image,) = outcomes[path.name].images
        assert torch.equal(torch.from_numpy(image.square), preprocess(preprocessing(OPTIONS), path))


def test_a_file_of_more_images_than_the_shared_memory_has_places(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("aiseeme_models.images.decode_pool._MOST_SLOTS", 3)
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)) for _ in range(11)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    outcomes = decode([tmp_path / "pages.tif", *pictures(tmp_path / "in", 7)])
    images = outcomes["pages.tif"].images
    assert [image.frame for image in images] == list(range(11))
    assert len({image.square.tobytes() for image in images}) == 11
    assert all(outcome.reason is None for outcome in outcomes.values())
    parts: list[tuple[str, int]] = []
    with DecodePool(OPTIONS.pipeline, DecodeLimits(workers=1)) as pool:
        (done,) = pool.decode([DecodeTask(0, tmp_path / "pages.tif")], lambda c, image: parts.append((c, image.frame)))
    assert parts == [(done.content, frame) for frame in range(9)], "memory does not grow with the images of a file"
    assert [image.square is None for image in done.images] == [True] * 9 + [False] * 2


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("ctypes.string_at(0)", RejectReason.DECODER_CRASHED),  # a segmentation fault
        ("os._exit(0)", RejectReason.DECODER_CRASHED),
        ("time.sleep(600)", RejectReason.TIMED_OUT),
        (
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); [None for _ in iter(int, 1)]",
            RejectReason.TIMED_OUT,
        ),
        ("bytearray(3 * 2**30)", RejectReason.TOO_LARGE),
        ("print('DOE^JOHN'); os.write(2, b'DOE^JOHN'); raise KeyError('DOE^JOHN')", RejectReason.DECODER_CRASHED),
    ],
)
def test_a_decoder_that_misbehaves_costs_its_file_only(
    tmp_path: Path, bad_decoder, what: str, reason: RejectReason, capfd: pytest.CaptureFixture[str]
) -> None:
    bad_decoder(what)
    paths = pictures(tmp_path / "in", 40)
    evil = tmp_path / "in" / "evil.png"
    evil.write_bytes(paths[0].read_bytes())
    outcomes = decode([*paths[:20], evil, *paths[20:]], DecodeLimits(seconds=2, memory_bytes=2 * 2**30, workers=2))
    assert outcomes["evil.png"].reason == reason
    assert all(outcomes[path.name].reason is None for path in paths)
    assert "DOE" not in "".join(capfd.readouterr()), "what a decoder prints may quote the file"


def test_workers_end_with_the_pool_and_with_their_parent(tmp_path: Path) -> None:
    import subprocess

    import psutil

    paths = pictures(tmp_path, 3)
    pool = DecodePool(OPTIONS.pipeline, DecodeLimits(workers=2))
    outcomes = pool.decode([DecodeTask(number, path) for number, path in enumerate(paths)])
    next(outcomes)
    mine = [worker.process.pid for worker in pool._processes]
    assert all(psutil.pid_exists(pid) for pid in mine)
    pool.close()
    assert not any(psutil.pid_exists(pid) for pid in mine)

    code = (
        "import sys, time; from pathlib import Path\n"
        "from aiseeme_models.images.decode_pool import *\n"
        "from aiseeme_models.images.pipeline import Pipeline\n"
        "pool = DecodePool(Pipeline(3, 'crop', 16), DecodeLimits(workers=1))\n"
        "list(pool.decode([DecodeTask(0, Path(sys.argv[1]))]))\n"
        "print(pool._processes[0].process.pid, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(paths[0])], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    worker.wait(timeout=20)


def test_filling_decodes_what_is_missing_and_names_what_is_gone(tmp_path: Path) -> None:
    paths = pictures(tmp_path / "in", 4)
    outcomes = decode(paths)
    cache = ImageCache(CacheStore(tmp_path / "cache"), OPTIONS.pipeline)
    wanted = [WantedImage(outcomes[path.name].content, path) for path in paths]
    paths[1].unlink()
    paths[2].write_bytes(paths[3].read_bytes())
    decoded: list[int] = []
    assert fill(cache, wanted, on_file=lambda: decoded.append(1)) == {wanted[1].key, wanted[2].key}
    assert len(decoded) == 4
    assert fill(cache, [wanted[0], wanted[3]], on_file=lambda: decoded.append(1)) == set()
    assert len(decoded) == 4


def test_what_a_policy_keeps_out_has_no_array_until_it_is_admitted(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (90, 90, 90)).save(tmp_path / "blank.png")
    (image,) = decode([tmp_path / "blank.png"])["blank.png"].images
    assert (image.findings, image.square) == ((RejectReason.NEAR_BLANK,), None)
    (image,) = decode([tmp_path / "blank.png"], admitted=frozenset(POLICY_REASONS))["blank.png"].images
    assert image.square is not None
