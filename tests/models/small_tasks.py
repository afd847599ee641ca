"""Options that make the tasks fit toy images, by the tasks' names."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, dict[str, Any]] = {"moco": {"queue": 16}, "npid": {"negatives": 48}}
