"""``metrics.jsonl``: one line per site and round, one per round."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.errors import RunFailed

FILE = "metrics.jsonl"


class MetricsLog:
    """Appended before a round's checkpoint; what a crash left beyond the last checkpoint is cut on resume."""

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / FILE

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Add lines, durably.

        Raises:
            RunFailed: they cannot be written, for instance because the disk is full.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFailed(f"{self.path} could not be written: {error.strerror}") from error

    def cut_after(self, round_number: int) -> None:
        """Keep only whole lines of rounds up to ``round_number``.

        Raises:
            RunFailed: the file cannot be written.
        """
        if not self.path.exists():
            return
        kept = [line for line in read_lines(self.path)[0] if line.get("round", 0) <= round_number]
        try:
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        except OSError as error:
            raise RunFailed(f"{self.path} could not be written: {error.strerror}") from error


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a ``metrics.jsonl`` that are JSON objects, and how many are not (a crash may cut one)."""
    lines: list[dict[str, Any]] = []
    unread = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            unread += bool(text.strip())
    return lines, unread


def speeds(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Images per second of each site: the mean of what its rounds reached, weighted by their seconds."""
    images: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for line in lines:
        speed, spent, site = line.get("images_per_s"), line.get("seconds"), line.get("site")
        if isinstance(site, str) and isinstance(speed, int | float) and isinstance(spent, int | float) and spent > 0:
            images[site] = images.get(site, 0.0) + speed * spent
            seconds[site] = seconds.get(site, 0.0) + spent
    return {site: images[site] / seconds[site] for site in images}
