"""Options that make the tasks fit toy images, by the tasks' names."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "deepcluster": {"clusters": 8},
    "moco": {"queue": 16},
    "npid": {"negatives": 48, "temperature": 0.2},
}
