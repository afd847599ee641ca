"""Mutated files through the scan: whatever a file holds, it ends accepted or rejected, in bounded time and memory."""

from __future__ import annotations

import random
import resource
import time
from pathlib import Path

import psutil

from aiseeme_models.images.phantom_intake import write_mixed_phantoms
from aiseeme_models.images.pipeline import Pipeline
from aiseeme_models.images.rejection import RejectReason
from client.listing import list_images
from client.scanning import scan
from client.site_home import SiteHome

FORMATS = ("*.dcm", "*.jp*g", "*.png")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few flipped bits, overwritten lengths, cut or doubled parts: mostly near the start, where headers are."""
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        reach = len(mutant) if rng.random() < 0.4 else min(len(mutant), 1500)
        place = rng.randrange(max(1, reach))
        kind = rng.randrange(6)
        if kind == 0:
            mutant[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            mutant[place : place + 2] = rng.choice((b"\xff\xff", b"\x00\x00", b"\x7f\xff", b"\xff\x7f", b"\x01\x80"))
        elif kind == 2:
            mutant[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f"))
        elif kind == 3:
            del mutant[place : place + rng.randrange(1, 200)]
        elif kind == 4:
            part = mutant[place : place + rng.randrange(1, 200)]
            mutant[place:place] = part
        else:
            mutant[place : place + 8] = rng.randbytes(8)
        if not mutant:
            return b"x"
    return bytes(mutant)


def fuzz(tmp_path: Path, count: int, seed: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_mixed_phantoms(source, seed=1)
    rng = random.Random(seed)
    files = [[path.read_bytes() for path in sorted(source.rglob(pattern))] for pattern in FORMATS]
    seeds = [[data for data in few if data] for few in files]
    folder = tmp_path / "mutants"
    folder.mkdir()
    for number in range(count):
        kind = (0, 0, 1, 2)[number % 4]
        (folder / f"{number:05d}.bin").write_bytes(mutated(rng.choice(seeds[kind]), rng))
    home = SiteHome(tmp_path / "home")
    (tmp_path / "home").mkdir()
    (home.folder / "site.toml").write_text("[intake]\nseconds_per_file = 20\nmemory_gb_per_file = 2.0\n")
    before = psutil.Process().memory_info().rss
    started = time.monotonic()
    done = scan(folder, home, Pipeline(1, "pad", 48))
    seconds = time.monotonic() - started
    assert done.decoded == count
    listed = list(list_images(home, folder))
    assert {image.file for image in listed} == {path.name for path in folder.iterdir()}
    assert all(image.status in ("accepted", "quarantined", "duplicate", "rejected") for image in listed)
    assert all(image.reasons for image in listed if image.status != "accepted")
    reasons = done.reasons
    assert reasons.get(RejectReason.DAMAGED, 0) > count / 20 and len(done.rows) > count / 20, reasons
    assert reasons.get(RejectReason.TIMED_OUT, 0) <= count / 100, reasons
    assert psutil.Process().memory_info().rss - before < 300 * 2**20
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2.2 * 2**20, "in KiB: the limit of a worker"
    assert seconds < 60 + count / 10


def test_two_thousand_mutants_end_accepted_or_rejected_in_bounded_time_and_memory(tmp_path: Path) -> None:
    fuzz(tmp_path, 2000, seed=5)
