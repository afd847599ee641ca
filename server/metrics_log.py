"""``metrics.jsonl``: one line per site and round, one per round."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from aiseeme_models.atomic_files import write_atomically

FILE = "metrics.jsonl"


class MetricsLog:
    """Appended before a round's checkpoint; what a crash left beyond the last checkpoint is cut on resume."""

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / FILE

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Add lines, durably."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())

    def cut_after(self, round_number: int) -> None:
        """Keep only whole lines of rounds up to ``round_number``."""
        if self.path.exists():
            kept = [line for line in self._lines() if line["round"] <= round_number]
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            if text.endswith("\n"):  # a crash may have cut the last line
                lines.append(json.loads(text))
        return lines
